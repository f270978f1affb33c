"""Images made by hand, byte for byte, so that the parsers are tested against the specifications' layouts."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

MIB = 1 << 20
EM_386, EM_X86_64, EM_AARCH64 = 3, 62, 183
ET_EXEC, ET_DYN, ET_REL = 2, 3, 1
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
MULTIBOOT_MAGIC = 0x1BADB002


class Piece(NamedTuple):
    """A program header and the bytes it loads."""

    data: bytes
    physical: int
    virtual: int | None = None
    size: int | None = None
    type: int = PT_LOAD
    flags: int = 7
    file_size: int | None = None
    offset: int | None = None


def elf(
    pieces: list[Piece],
    *,
    bits: int = 64,
    machine: int | None = None,
    entry: int | None = None,
    type: int = ET_EXEC,
    little: int = 1,
    phentsize: int | None = None,
    phnum: int | None = None,
    phoff: int | None = None,
    sections: bytes = b"",
    section_count: int = 0,
) -> bytes:
    """An ELF file: header, program headers, the pieces' bytes from 4096 on, then the section headers."""
    machine = (EM_X86_64 if bits == 64 else EM_386) if machine is None else machine
    header_size, size = (64, 56) if bits == 64 else (52, 32)
    entry = pieces[0].physical if entry is None else entry
    headers, contents = b"", b""
    for piece in pieces:
        offset = 4096 + len(contents) if piece.offset is None else piece.offset
        virtual = piece.physical if piece.virtual is None else piece.virtual
        file_size = len(piece.data) if piece.file_size is None else piece.file_size
        memory = len(piece.data) if piece.size is None else piece.size
        if bits == 64:
            headers += struct.pack(
                "<IIQQQQQQ", piece.type, piece.flags, offset, virtual, piece.physical, file_size, memory, 4096
            )
        else:
            headers += struct.pack(
                "<8I", piece.type, offset, virtual, piece.physical, file_size, memory, piece.flags, 4096
            )
        contents += piece.data
    section_at = 4096 + len(contents) if section_count else 0
    ident = b"\x7fELF" + bytes([bits // 32, little, 1]) + bytes(9)
    count = len(pieces) if phnum is None else phnum
    rest = struct.pack(
        "<HHI" + ("QQQ" if bits == 64 else "III") + "I6H",
        type, machine, 1, entry, header_size if phoff is None else phoff, section_at, 0,
        header_size, size if phentsize is None else phentsize, count, 64 if bits == 64 else 40,
        section_count, 0,
    )  # fmt: skip
    return (ident + rest + headers).ljust(4096, b"\0") + contents + sections


def multiboot_header(flags: int = 0, *fields: int, checksum: int | None = None) -> bytes:
    """The header, its checksum right unless told otherwise; ``fields`` follow (addresses, video mode)."""
    checksum = -(MULTIBOOT_MAGIC + flags) & 0xFFFFFFFF if checksum is None else checksum
    return struct.pack(f"<{3 + len(fields)}I", MULTIBOOT_MAGIC, flags, checksum, *fields)


def multiboot_elf(flags: int = 3, code: bytes = b"\xf4", **options: Any) -> bytes:
    """A 32-bit ELF at 1 MiB: the header, then ``code``, where it starts; 8 KiB of bss behind."""
    header = multiboot_header(flags)
    text = header + code
    return elf([Piece(text, MIB, size=len(text) + 8192)], bits=32, entry=MIB + len(header), **options)


def kludge(
    code: bytes = b"\xf4" * 16,
    *,
    before: bytes = b"",
    load: int = MIB,
    header: int | None = None,
    load_end: int = 0,
    bss_end: int = 0,
    entry: int | None = None,
    flags: int = 0x10003,
) -> bytes:
    """A kernel without ELF, loaded by the addresses in its Multiboot header, which follows ``before``."""
    header = load + len(before) if header is None else header
    entry = load + len(before) + 32 if entry is None else entry
    return before + multiboot_header(flags, header, load, load_end, bss_end, entry) + code
