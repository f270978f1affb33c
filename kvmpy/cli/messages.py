"""What kvmpy says on stderr, and stdin, stdout and stderr that weren't open to begin with."""

from __future__ import annotations

import os
import sys


def say(message: str) -> None:
    """One line on stderr, marked as kvmpy's own; that nobody can read it is no error."""
    write(f"kvmpy: {' '.join(message.split())}\n")


def write(text: str) -> None:
    """Text on stderr, if it can be written."""
    data = text.encode(errors="backslashreplace")
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass


def open_standard_files() -> None:
    """Takes the place of standard files that were closed: the next file opened, such as /dev/kvm, mustn't get theirs.

    Reading finds the end of the file, stderr swallows what it gets, and writing to stdout fails as it should.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free number, which is this one
            os.set_inheritable(fd, True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
