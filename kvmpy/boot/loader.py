"""From a file to a Payload: read it, recognise or force its format, hand it to the format's module."""

from __future__ import annotations

import sys

from kvmpy.boot.signature import recognise
from kvmpy.errors import ImageError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    from kvmpy.boot.payload import BootOptions, Payload

# More than any image for a bare PC; keeps a wrong file from filling the host's memory.
LARGEST = 1 << 30


class Format:
    """What a format's module offers; the modules themselves stand in for instances."""

    SUMMARY: str
    """One line for people."""

    load: Callable[[bytes, BootOptions], Payload]
    """Bytes and options in, Payload out. ImageError for a bad image, UsageError for options without use."""


class _Formats:
    """Format name -> its module, imported when it is first asked for: a start-up pays for one format only."""

    _names = ("multiboot", "elf", "linux", "bootsector", "rom", "flat")

    def __getitem__(self, name: str) -> Format:
        if name not in self._names:
            raise KeyError(name)
        module = f"kvmpy.boot.{name}"
        __import__(module)
        return sys.modules[module]  # type: ignore[return-value]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def keys(self) -> tuple[str, ...]:
        """The names, in the order in which formats are recognised."""
        return self._names


FORMATS = _Formats()
"""Image formats by name, in the order in which they are recognised."""


def load(data: bytes, options: BootOptions) -> Payload:
    """Make an image ready to start in the machine ``options`` describes.

    The format is ``options.format``, or recognised. Raises ImageError for an image that can't be loaded and
    UsageError for options that can't be right.
    """
    name = options.format
    if name is not None and name not in FORMATS:
        raise UsageError(f"image format {name!r} is unknown{_nearest(name)}: one of {', '.join(FORMATS)}")
    if not data:
        raise ImageError(f"{options.name}: the image is empty (0 bytes)")
    return FORMATS[name or recognise(data)].load(data, options)


def read(path: str | PathLike[str], largest: int = LARGEST) -> bytes:
    """The contents of an image file. ImageError if missing, unreadable, no plain file, empty or too large."""
    import os
    import stat
    from io import FileIO

    try:
        # A FIFO would block the open for ever without O_NONBLOCK; for plain files the flag means nothing.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{path}: an image must be a plain file, this is {_kind(status.st_mode)}")
            if status.st_size > largest:
                raise ImageError(
                    f"{path}: {status.st_size} bytes are more than the {largest} an image may have"
                )
            data = FileIO(fd, closefd=False).readall()
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: the image can't be read: {reason}") from error
    if not data:
        raise ImageError(f"{path}: the image is empty (0 bytes)")
    return data


def _kind(mode: int) -> str:
    import stat

    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _nearest(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, FORMATS.keys(), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
