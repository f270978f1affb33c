"""As much of ELF64 as kernels and modules need: segments, notes, sections (System V ABI, 4 and 5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4


class Segment(NamedTuple):
    """A program header: ``size`` bytes of the file at ``offset`` go to the address ``physical``."""

    type: int
    offset: int
    physical: int
    size: int


class Note(NamedTuple):
    owner: bytes
    type: int
    data: bytes


def segments(elf: bytes) -> list[Segment]:
    """The program headers. ValueError if it isn't a 64-bit ELF file."""
    start, size, count = _table(elf, at=32, counts_at=54)
    found = []
    for number in range(count):
        kind, _, offset, _, physical, length = struct.unpack_from("<IIQQQQ", elf, start + number * size)
        found.append(Segment(kind, offset, physical, length))
    return found


def notes(elf: bytes) -> Iterator[Note]:
    """All notes of all PT_NOTE segments."""
    for segment in segments(elf):
        at, end = segment.offset, segment.offset + segment.size
        while segment.type == PT_NOTE and at + 12 <= end:
            name_size, data_size, kind = struct.unpack_from("<III", elf, at)
            data_at = at + 12 + _aligned(name_size)
            yield Note(
                elf[at + 12 : at + 12 + name_size].rstrip(b"\0"), kind, elf[data_at : data_at + data_size]
            )
            at = data_at + _aligned(data_size)


def section(elf: bytes, name: bytes) -> bytes:
    """Contents of the section ``name``; empty if there is none. ValueError if it isn't a 64-bit ELF file."""
    start, size, count = _table(elf, at=40, counts_at=58)
    (names_index,) = struct.unpack_from("<H", elf, 62)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + number * size) for number in range(count)]
    if names_index >= count:
        return b""
    names_at = headers[names_index][4]
    for name_at, _, _, _, offset, length in headers:
        first = names_at + name_at
        if elf[first : first + len(name) + 1] == name + b"\0":
            return elf[offset : offset + length]
    return b""


def _table(elf: bytes, at: int, counts_at: int) -> tuple[int, int, int]:
    """Where a header table starts, the size of an entry, and how many there are."""
    if len(elf) < 64 or elf[:5] != b"\x7fELF\x02":
        raise ValueError(f"not a 64-bit ELF file: it begins with {elf[:5].hex(' ') or 'nothing'}")
    (start,) = struct.unpack_from("<Q", elf, at)
    size, count = struct.unpack_from("<HH", elf, counts_at)
    if start + size * count > len(elf):
        raise ValueError(
            f"truncated ELF file: its headers end at {start + size * count}, the file at {len(elf)}"
        )
    return start, size, count


def _aligned(size: int) -> int:
    return (size + 3) & ~3
