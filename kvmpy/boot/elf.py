"""ELF: static executables, 32 and 64 bit, for x86.

Segments go to their physical addresses (``p_paddr``). Code for x86-64 starts in long mode with the host's
page tables (all memory mapped to itself, and segments linked elsewhere also at their virtual addresses);
i386 code starts in protected mode without paging. The mode can be forced: small ELF files are a handy
container for code of any mode.

System V ABI, chapters 4 and 5 (ELF), and its i386 and x86-64 supplements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kvmpy.boot import start
from kvmpy.boot.layout import FOUR_GIB, PAGE, Layout, span
from kvmpy.boot.payload import BootOptions, Chunk, Payload
from kvmpy.errors import ImageError

if TYPE_CHECKING:
    from kvmpy.x86 import EntryState
    from kvmpy.x86.paging import Mapping

SUMMARY = "ELF32 or ELF64 static executable"

EM_386 = 3
EM_X86_64 = 62

# The linkers make about ten; a hostile header can claim 65535.
MOST_SEGMENTS = 512

_SIZES = {32: (52, 32), 64: (64, 56)}  # of the file header and of a program header, by class
_TYPES = {
    "ET_REL": "an object file: link it (ld -static)",
    "ET_DYN": "position independent or a shared library: link it at a fixed address (-static -no-pie)",
    "ET_CORE": "a core dump",
}


class Segment(NamedTuple):
    """A PT_LOAD program header: ``file_size`` bytes at ``offset``, cleared up to ``size`` bytes."""

    number: int
    offset: int
    file_size: int
    size: int
    physical: int
    virtual: int
    writable: bool
    executable: bool


class Elf(NamedTuple):
    """What loading needs of an ELF file. ``bits`` is the file's class, ``code_bits`` its machine's."""

    bits: int
    code_bits: int
    entry: int
    segments: list[Segment]
    sections: tuple[int, int, int]
    """Section header table: count, offset in the file, index of the name table."""


def load(data: bytes, options: BootOptions) -> Payload:
    """Payload of an ELF executable; see the module for where it goes and how it starts."""
    options.refuse("elf", "load_address", "modules", "initrd")
    elf = parse(data, options.name)
    mode = options.mode or ("long" if elf.code_bits == 64 else "protected")
    layout = Layout(options.ram, options.name)
    chunks = place(data, elf, layout)
    notes: list[str] = []
    return Payload("elf", chunks, _entry_state(elf, mode, layout, options, notes), notes)


def parse(data: bytes, name: str) -> Elf:
    """Read the headers. ImageError unless it's a complete static executable for x86."""
    from elftools.elf.structs import ELFStructs

    bits = _check_ident(data, name)
    structs = ELFStructs(little_endian=True, elfclass=bits)
    structs.create_basic_structs()
    header = structs.Elf_Ehdr.parse(data[: _SIZES[bits][0]])
    code_bits = _check_header(header, bits, name)
    structs.create_advanced_structs(header.e_type, header.e_machine, header.e_ident.EI_OSABI)
    segments = _segments(data, header, structs.Elf_Phdr, _SIZES[bits][1], name)
    sections = (header.e_shnum, header.e_shoff, header.e_shstrndx)
    return Elf(bits, code_bits, header.e_entry, segments, sections)


def place(data: bytes, elf: Elf, layout: Layout) -> list[Chunk]:
    """A chunk for each segment, at its physical address. ImageError if outside memory or overlapping."""
    view = memoryview(data)
    chunks = []
    for segment in elf.segments:
        layout.claim(segment.physical, segment.size, f"ELF segment {segment.number}")
        contents = view[segment.offset : segment.offset + segment.file_size]
        chunks.append(Chunk(segment.physical, contents, segment.size - segment.file_size))
    return chunks


def physical_entry(elf: Elf, name: str) -> int:
    """Guest physical address of the entry point. ImageError if no segment holds it.

    ``e_entry`` is a virtual address; where a segment was linked at another one than it is loaded at, it
    moves along.
    """
    for segment in elf.segments:
        if segment.virtual <= elf.entry < segment.virtual + segment.size:
            return elf.entry - segment.virtual + segment.physical
    for segment in elf.segments:  # linked for a start with paging off: already physical
        if segment.physical <= elf.entry < segment.physical + segment.size:
            return elf.entry
    places = ", ".join(span(segment.virtual, segment.size) for segment in elf.segments[:8])
    raise ImageError(f"{name}: the ELF entry point {elf.entry:#x} lies in none of its segments ({places})")


def _entry_state(elf: Elf, mode: str, layout: Layout, options: BootOptions, notes: list[str]) -> EntryState:
    if mode != "long":
        entry = physical_entry(elf, options.name) if options.entry is None else options.entry
        return start.enter(mode, entry, layout)
    mappings = _mappings(elf, layout, notes)
    entry = elf.entry if options.entry is None else options.entry
    if options.entry is None and not any(mapping.virtual <= entry < mapping.end for mapping in mappings):
        entry = physical_entry(elf, options.name)
    return start.long(entry, layout, mappings)


def _mappings(elf: Elf, layout: Layout, notes: list[str]) -> list[Mapping]:
    """What the page tables must show besides physical memory: segments not linked where they are loaded."""
    from kvmpy.x86.paging import Mapping

    identity_end = max(layout.end, FOUR_GIB)
    mappings: list[Mapping] = []
    moved = sorted((s for s in elf.segments if s.virtual != s.physical), key=lambda segment: segment.virtual)
    for segment in moved:
        if segment.virtual < identity_end or (segment.virtual - segment.physical) % PAGE:
            notes.append(
                f"ELF segment {segment.number}, linked at {segment.virtual:#x}, is only mapped where it "
                f"is loaded, at {segment.physical:#x}"
            )
            continue
        delta = segment.virtual - segment.physical
        first = segment.virtual // PAGE * PAGE
        end = -(-(segment.virtual + segment.size) // PAGE) * PAGE
        last = mappings[-1] if mappings else None
        if last is not None and first <= last.end and last.virtual - last.physical == delta:
            first = last.virtual
            mappings.pop()
        mappings.append(Mapping(first, first - delta, end - first))
    return mappings


def _check_ident(data: bytes, name: str) -> int:
    """Class of the file in bits, from the 16 identification bytes."""
    if data[:4] != b"\x7fELF":
        raise ImageError(f"{name}: not an ELF file: it begins with {data[:4].hex(' ')}, not 7f 45 4c 46")
    if len(data) < 16:
        raise ImageError(f"{name}: truncated ELF file: {len(data)} bytes, the identification alone has 16")
    bits = {1: 32, 2: 64}.get(data[4])
    if bits is None:
        raise ImageError(f"{name}: ELF class {data[4]} is unknown: 1 (32 bit) or 2 (64 bit)")
    if data[5] != 1:
        raise ImageError(f"{name}: ELF byte order {data[5]} isn't x86's: 1 (little endian)")
    if len(data) < _SIZES[bits][0]:
        raise ImageError(
            f"{name}: truncated ELF file: {len(data)} bytes, the ELF{bits} header has {_SIZES[bits][0]}"
        )
    return bits


def _check_header(header: Any, bits: int, name: str) -> int:
    """Bits of the code, from the file header; ImageError if it's for another machine or no executable."""
    machine = header.e_machine
    if machine not in ("EM_386", "EM_X86_64"):
        raise ImageError(
            f"{name}: ELF file for another machine ({_plain(machine, 'EM_')}): x86 or x86-64 is needed"
        )
    if machine == "EM_386" and bits == 64:
        raise ImageError(f"{name}: ELF64 file with 32-bit x86 code: class and machine disagree")
    if header.e_type != "ET_EXEC":
        reason = _TYPES.get(header.e_type, f"of type {_plain(header.e_type, 'ET_')}")
        raise ImageError(f"{name}: the ELF file isn't a static executable but {reason}")
    if header.e_phnum and header.e_phentsize != _SIZES[bits][1]:
        raise ImageError(
            f"{name}: ELF program headers of {header.e_phentsize} bytes: "
            f"those of ELF{bits} have {_SIZES[bits][1]}"
        )
    if header.e_phnum > MOST_SEGMENTS:
        raise ImageError(
            f"{name}: {header.e_phnum} ELF program headers: no more than {MOST_SEGMENTS} are taken"
        )
    return 64 if machine == "EM_X86_64" else 32


def _segments(data: bytes, header: Any, structure: Any, size: int, name: str) -> list[Segment]:
    end = header.e_phoff + header.e_phnum * size
    if end > len(data):
        raise ImageError(
            f"{name}: truncated ELF file: program headers end at byte {end}, the file has {len(data)} bytes"
        )
    segments = []
    for number in range(header.e_phnum):
        at = header.e_phoff + number * size
        raw = structure.parse(data[at : at + size])
        if raw.p_type in ("PT_INTERP", "PT_DYNAMIC"):
            kind = _plain(raw.p_type, "")
            raise ImageError(
                f"{name}: dynamically linked ELF file (it has {kind}): link it with -static -no-pie"
            )
        if raw.p_type == "PT_LOAD" and raw.p_memsz:
            segments.append(_segment(data, number, raw, name))
    if not segments:
        raise ImageError(
            f"{name}: the ELF file has nothing to load ({header.e_phnum} program headers, no PT_LOAD)"
        )
    return segments


def _segment(data: bytes, number: int, raw: Any, name: str) -> Segment:
    what = f"{name}: ELF segment {number}"
    if raw.p_filesz > raw.p_memsz:
        raise ImageError(f"{what} has {raw.p_filesz} bytes in the file, but only {raw.p_memsz} in memory")
    if raw.p_offset + raw.p_filesz > len(data):
        raise ImageError(
            f"{what} is truncated: it ends at byte {raw.p_offset + raw.p_filesz}, "
            f"the file has {len(data)} bytes"
        )
    return Segment(
        number, raw.p_offset, raw.p_filesz, raw.p_memsz, raw.p_paddr, raw.p_vaddr,
        bool(raw.p_flags & 2), bool(raw.p_flags & 1),
    )  # fmt: skip


def _plain(value: object, prefix: str) -> str:
    """pyelftools gives known codes as names and unknown ones as numbers."""
    return value.removeprefix(prefix) if isinstance(value, str) else f"code {value}"
