"""Where the guest's serial port goes: stdin and stdout, a file, a pseudo-terminal."""

from __future__ import annotations

import os
import select
import signal
import threading

from kvmpy.cli.messages import say, write
from kvmpy.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

ESCAPE = 0x01  # Ctrl-A
HELP = "\r\nCtrl-A x: quit   Ctrl-A c: send Ctrl-C   Ctrl-A a: send Ctrl-A   Ctrl-A h: this help\r\n"
KINDS = ("stdio", "none", "file", "pty")
BACKGROUND_WAIT = 0.2
"""Seconds between two looks at whether a job is in the foreground again."""


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
    entering. Raises UsageError for a place there is none of, or a file that can't be opened.
    """

    def __init__(self, where: str) -> None:
        self.receive: Callable[[bytes], object] = lambda data: None
        self.quit: Callable[[], object] = lambda: None
        self._kind, _, self._path = where.partition(":")
        if self._kind not in KINDS or bool(self._path) != (self._kind == "file"):
            raise UsageError(f"--serial {where!r}: one of stdio, none, file:PATH, pty")
        self._input = self._output = self._slave = -1
        self._last = b"\n"
        self._escaped = False
        self._raw = RawMode(0) if self._kind == "stdio" else None
        self._reader: threading.Thread | None = None
        self._stop = (-1, -1)

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _open(self) -> None:
        if self._kind == "stdio":
            self._input, self._output = 0, 1
        elif self._kind == "file":
            self._output = self._open_file()
        elif self._kind == "pty":
            self._open_pty()
        if self._input >= 0:
            self._start_reader()
        if self._raw is not None:
            self._raw.enter()

    def _open_file(self) -> int:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:
            raise UsageError(f"--serial file:{self._path}: {getattr(error, 'strerror', error)}") from None

    def _open_pty(self) -> None:
        import tty

        # The other end stays open here: a terminal program that comes and goes doesn't end the session.
        self._input, self._slave = os.openpty()
        self._output = self._input
        tty.setraw(self._slave)
        os.set_blocking(self._input, False)
        say(f"the serial port is {os.ttyname(self._slave)}")

    def __exit__(self, *exception: object) -> None:
        if self._reader is not None:
            os.write(self._stop[1], b"x")
            self._reader.join()
            for fd in self._stop:
                os.close(fd)
            self._reader = None
        if self._raw is not None:
            self._raw.leave()
            self._finish_line()
        if self._kind in ("file", "pty") and self._output >= 0:
            os.close(self._output)
        if self._slave >= 0:
            os.close(self._slave)

    def _finish_line(self) -> None:
        """What the shell or kvmpy says next begins a line; a file or pipe gets what the guest sent and no more."""
        if self._last != b"\n" and os.isatty(1):
            try:
                os.write(1, b"\n")
            except OSError:
                pass

    def write(self, data: bytes) -> None:
        """What the guest sends. OSError names where it can't be written."""
        self._last = data[-1:] or self._last
        if self._kind == "pty":
            try:
                os.write(self._output, data)
            except BlockingIOError:
                pass  # nobody has read for long: like a cable that hangs loose
        elif self._output >= 0:
            try:
                write_all(self._output, data)
            except OSError as error:
                error.filename = self._path or "stdout"
                raise

    def _start_reader(self) -> None:
        self._stop = os.pipe2(os.O_CLOEXEC)
        self._reader = threading.Thread(target=self._read, name="serial input", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # Signals are the main thread's: only there Python can act on them. With SIGTTIN blocked, reading in the
        # background fails instead of stopping the guest.
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
                if not in_background(self._input) or self._wait(BACKGROUND_WAIT):
                    return
                continue
            if not data:
                return
            if self._raw is not None and self._raw.active:
                data = self._unescape(data)
            if data:
                self.receive(data)

    def _wait(self, seconds: float) -> bool:
        """Whether the reader is told to stop meanwhile."""
        return bool(select.select([self._stop[0]], [], [], seconds)[0])

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
                write(HELP)
            elif key == "a" or byte == ESCAPE:
                out.append(ESCAPE)
        return bytes(out)


def in_background(fd: int) -> bool:
    """Whether ``fd`` is this session's terminal, and belongs to another of its jobs now."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:
        return False  # no terminal, or no longer one


class RawMode:
    """A terminal that gives keys at once and without echo; Ctrl-C and Ctrl-Z still make signals."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.active = False
        self._saved: Any = None
        self._handlers: dict[int, Any] = {}

    def enter(self) -> None:
        """Does nothing where ``fd`` is no terminal; in the background it waits for the job to come to the front."""
        if not os.isatty(self.fd):
            return
        import termios

        self._saved = termios.tcgetattr(self.fd)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        self._handlers[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._continue)
        self._continue()

    def _continue(self, *_: object) -> None:
        import termios

        if self.active or in_background(self.fd):
            return
        mode = list(self._saved)
        mode[0] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.IXON | termios.ISTRIP)
        mode[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        mode[6] = list(mode[6])
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        self.active = True
        termios.tcsetattr(self.fd, termios.TCSADRAIN, mode)

    def _restore(self) -> None:
        import termios

        if self.active:
            try:
                termios.tcsetattr(self.fd, termios.TCSADRAIN, self._saved)
            except termios.error:
                pass  # the terminal is gone
            self.active = False

    def leave(self) -> None:
        """The terminal as it was."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        self._restore()

    def _suspend(self, number: int, frame: object) -> None:
        self._restore()
        os.kill(os.getpid(), signal.SIGSTOP)  # SIGCONT ends it, and has its own handler
