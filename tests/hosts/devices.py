"""A device that keeps what it was asked, and answers what can be told apart."""

from __future__ import annotations

from typing import Any


def byte_at(offset: int) -> int:
    """What a :class:`Recorder` answers for each of its bytes."""
    return (0xA1 + 0x13 * offset) & 0xFF


def bytes_at(offset: int, size: int) -> bytes:
    """The same for several."""
    return bytes(byte_at(offset + n) for n in range(size))


class Recorder:
    """``seen``: ("read", offset, size) or ("write", offset, value, size) of every access, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append(("read", offset, size))
        return int.from_bytes(bytes_at(offset, size), "little")

    def write(self, offset: int, value: int, size: int) -> None:
        self.seen.append(("write", offset, value, size))

    def bytes_read(self) -> list[int]:
        """The offset of every byte that was read, in order, however large the pieces were."""
        return [n for kind, at, *rest in self.seen if kind == "read" for n in range(at, at + rest[-1])]

    def bytes_written(self) -> list[tuple[int, int]]:
        """(offset, byte) of all that was written, in order."""
        found: list[tuple[int, int]] = []
        for kind, at, *rest in self.seen:
            if kind == "write":
                found += enumerate(rest[0].to_bytes(rest[1], "little"), at)
        return found
