"""Tells the program that started the host what happens: one JSON object a line (see ../protocol.py).

$KVMPY_HOSTS_REPORT names where the lines go: a serial port of its own, so that nothing the kernel prints
gets between, or a file.
"""

from __future__ import annotations

import json
import os
import termios

VARIABLE = "KVMPY_HOSTS_REPORT"
MOST_TEXT = 8000  # characters of a failure; a serial port is slow


class Reporter:
    """Writes the lines. A context manager; nothing is written if $KVMPY_HOSTS_REPORT isn't set."""

    def __init__(self, path: str | None = None) -> None:
        path = os.environ.get(VARIABLE) if path is None else path
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644) if path else -1

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, event: str, **values: object) -> None:
        """Write one line, whole."""
        if self._fd < 0:
            return
        line = json.dumps({"event": event, **values}).encode() + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]

    def close(self) -> None:
        """Wait until all has left. Closing twice is fine."""
        if self._fd >= 0:
            if os.isatty(self._fd):
                termios.tcdrain(self._fd)
            os.close(self._fd)
            self._fd = -1


def shorten(text: str) -> str:
    """``text`` with its middle left out if it is too long: a failure says most at its ends."""
    if len(text) <= MOST_TEXT:
        return text
    half = MOST_TEXT // 2
    return f"{text[:half]}\n... {len(text) - MOST_TEXT} characters left out ...\n{text[-half:]}"
