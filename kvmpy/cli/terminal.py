"""Where the guest's serial port goes: stdin and stdout, a file, a pseudo-terminal."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading

from kvmpy.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

ESCAPE = 0x01  # Ctrl-A
HELP = b"\r\nCtrl-A x: quit   Ctrl-A c: send Ctrl-C   Ctrl-A a: send Ctrl-A   Ctrl-A h: this help\r\n"


def write_all(fd: int, data: bytes) -> None:
    """All of ``data``, to a descriptor that may be slow or non-blocking. OSError if it can't take it."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])


class Console:
    """The host's end of a serial port: a context manager that puts everything back as it was.

    ``receive(bytes)`` gets what is typed, from another thread; ``quit()`` is called for Ctrl-A x. Set both before
    entering.
    """

    def __init__(self, where: str) -> None:
        self.receive: Callable[[bytes], object] = lambda data: None
        self.quit: Callable[[], object] = lambda: None
        self._kind, _, self._path = where.partition(":")
        if (self._kind not in ("stdio", "none", "file", "pty")) or bool(self._path) != (self._kind == "file"):
            raise UsageError(f"serial {where!r}: one of stdio, none, file:PATH, pty")
        self._input = self._output = self._slave = -1
        self._escaped = False
        self._raw = RawMode(0) if self._kind == "stdio" else None
        self._reader: threading.Thread | None = None
        self._stop = (-1, -1)

    def __enter__(self) -> Self:
        if self._kind == "stdio":
            self._input, self._output = 0, 1
        elif self._kind == "file":
            self._output = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        elif self._kind == "pty":
            self._open_pty()
        if self._raw is not None:
            self._raw.enter()
        if self._input >= 0 and _is_open(self._input):
            self._start_reader()
        return self

    def _open_pty(self) -> None:
        import tty

        # The other end stays open here: a terminal program that comes and goes doesn't end the session.
        self._input, self._slave = os.openpty()
        self._output = self._input
        tty.setraw(self._slave)
        os.set_blocking(self._input, False)
        print(f"kvmpy: the serial port is {os.ttyname(self._slave)}", file=sys.stderr, flush=True)

    def __exit__(self, *exception: object) -> None:
        if self._reader is not None:
            os.write(self._stop[1], b"x")
            self._reader.join()
            for fd in self._stop:
                os.close(fd)
        if self._raw is not None:
            self._raw.leave()
        if self._kind in ("file", "pty"):
            os.close(self._output)
        if self._slave >= 0:
            os.close(self._slave)

    def write(self, data: bytes) -> None:
        """What the guest sends."""
        if self._kind == "pty":
            try:
                os.write(self._output, data)
            except BlockingIOError:
                pass  # nobody has read for long: like a cable that hangs loose
        elif self._output >= 0:
            write_all(self._output, data)

    def _start_reader(self) -> None:
        self._stop = os.pipe2(os.O_CLOEXEC)
        self._reader = threading.Thread(target=self._read, name="serial input", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # Signals are the main thread's: only there Python can act on them.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            ready, _, _ = select.select([self._input, self._stop[0]], [], [])
            if self._stop[0] in ready:
                return
            try:
                data = os.read(self._input, 4096)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            if self._raw is not None and self._raw.active:
                data = self._unescape(data)
            if data:
                self.receive(data)

    def _unescape(self, data: bytes) -> bytes:
        """Takes out what Ctrl-A introduces."""
        out = bytearray()
        for byte in data:
            if not self._escaped:
                if byte == ESCAPE:
                    self._escaped = True
                else:
                    out.append(byte)
                continue
            self._escaped = False
            key = chr(byte).lower()
            if key == "x":
                self.quit()
            elif key == "c":
                out.append(3)
            elif key == "h":
                os.write(2, HELP)
            elif key == "a" or byte == ESCAPE:
                out.append(ESCAPE)
        return bytes(out)


class RawMode:
    """A terminal that gives keys at once and without echo; Ctrl-C and Ctrl-Z still make signals."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.active = False
        self._saved: Any = None
        self._handlers: dict[int, Any] = {}

    def enter(self) -> None:
        """Does nothing where ``fd`` is no terminal, or one that belongs to another process group now."""
        try:
            if not os.isatty(self.fd) or os.tcgetpgrp(self.fd) != os.getpgrp():
                return
        except OSError:
            return
        import termios

        self._saved = termios.tcgetattr(self.fd)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
            handler = self._suspend if number == signal.SIGTSTP else self._terminate
            self._handlers[number] = signal.signal(number, handler)
        self._set_raw()

    def _set_raw(self) -> None:
        import termios

        mode = list(self._saved)
        mode[0] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.IXON | termios.ISTRIP)
        mode[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        mode[6] = list(mode[6])
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.fd, termios.TCSADRAIN, mode)
        self.active = True

    def _restore(self) -> None:
        import termios

        if self.active:
            self.active = False
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._saved)

    def leave(self) -> None:
        """The terminal as it was."""
        self._restore()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _terminate(self, number: int, frame: object) -> None:
        self._restore()
        sys.exit(128 + number)

    def _suspend(self, number: int, frame: object) -> None:
        self._restore()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._set_raw()  # continued


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
