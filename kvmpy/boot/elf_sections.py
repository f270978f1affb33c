"""ELF section headers for Multiboot kernels: they lead a kernel to its own symbols (0.6.96, 3.3, "syms")."""

from __future__ import annotations

import struct

from kvmpy.boot.elf import Elf
from kvmpy.boot.layout import Layout
from kvmpy.boot.payload import Chunk
from kvmpy.errors import ImageError

SHT_NULL = 0
SHT_NOBITS = 8

Table = tuple[int, int, int, int]

ALIGN = 64  # more than symbol tables and strings ask for

# Of a section header: its struct, then the index of type, address, file offset and size.
_HEADERS = {32: struct.Struct("<10I"), 64: struct.Struct("<IIQQQQIIQQ")}
_TYPE, _ADDRESS, _OFFSET, _SIZE = 1, 3, 4, 5


def load(data: bytes, elf: Elf, layout: Layout, notes: list[str]) -> tuple[Table | None, list[Chunk]]:
    """The section header table and the sections that no segment brings, placed above the kernel.

    Returns what the information structure says of them (count, bytes each, address, index of the names),
    and the chunks. A kernel must live without: a damaged table, or one too large for memory, gives None and
    a note.
    """
    count, offset, _ = elf.sections
    header = _HEADERS[elf.bits]
    if count == 0 or offset == 0:
        return None, []
    if offset + count * header.size > len(data):
        notes.append("the ELF section headers are cut off; the kernel gets no symbols")
        return None, []
    try:
        return _place(data, header, elf.sections, layout)
    except ImageError:
        notes.append("no room for the ELF sections beside the kernel; it gets no symbols")
        return None, []


def _place(
    data: bytes, header: struct.Struct, table: tuple[int, int, int], layout: Layout
) -> tuple[Table, list[Chunk]]:
    count, offset, names = table
    headers = bytearray(data[offset : offset + count * header.size])
    block = len(headers)
    places: list[tuple[int, int, int, int]] = []  # number, where in the block, where in the file, bytes
    for number in range(count):
        fields = header.unpack_from(headers, number * header.size)
        start, size = fields[_OFFSET], fields[_SIZE]
        if fields[_TYPE] in (SHT_NULL, SHT_NOBITS) or fields[_ADDRESS] or not size:
            continue
        if start + size > len(data):
            raise ImageError(f"{layout.name}: ELF section {number} is cut off")
        block += -block % ALIGN
        places.append((number, block, start, size))
        block += size
    low = max([0x100000, *(base + size for base, size in layout.taken)])
    base = layout.find(block, "the ELF sections", low=low)
    view = memoryview(data)
    chunks = [Chunk(base + at, view[start : start + size]) for _, at, start, size in places]
    for number, at, _, _ in places:
        fields = header.unpack_from(headers, number * header.size)
        moved = (*fields[:_ADDRESS], base + at, *fields[_ADDRESS + 1 :])
        header.pack_into(headers, number * header.size, *moved)
    return (count, header.size, base, names), [Chunk(base, bytes(headers)), *chunks]
