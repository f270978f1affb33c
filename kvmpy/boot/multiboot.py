"""Multiboot 1 kernels: what GRUB and QEMU start with ``multiboot`` and ``-kernel``.

The header says how to load: from the ELF file around it, or (flag 16) from the addresses it holds itself.
The kernel starts in 32-bit protected mode without paging, EAX 0x2BADB002 and EBX the address of the
information structure. An ELF64 file is fine as long as it lies below 4 GiB. Multiboot Specification 0.6.96.
"""

from __future__ import annotations

import struct

from kvmpy.boot import bios_data, start
from kvmpy.boot.layout import FOUR_GIB, PAGE, Layout
from kvmpy.boot.memory_map import lower_kib, memory_map, upper_kib
from kvmpy.boot.multiboot_info import Info
from kvmpy.boot.payload import BootOptions, Chunk, Payload
from kvmpy.boot.signature import MULTIBOOT_MAGIC, MULTIBOOT_SEARCH, multiboot_magics, multiboot_sum
from kvmpy.errors import ImageError, UsageError

SUMMARY = "Multiboot 1 kernel, ELF or with load addresses in its header"

BOOT_MAGIC = 0x2BADB002

ALIGN_MODULES = 1 << 0  # always done
WANT_MEMORY = 1 << 1  # always given
WANT_VIDEO = 1 << 2
LOAD_ADDRESSES = 1 << 16
REQUIRED = 0xFFFF  # a loader that doesn't know one of these must refuse the kernel
KNOWN = ALIGN_MODULES | WANT_MEMORY | WANT_VIDEO

LINEAR_GRAPHICS, EGA_TEXT = 0, 1


def load(data: bytes, options: BootOptions) -> Payload:
    """Payload of a Multiboot kernel: its memory, the modules above it, and the information structure."""
    options.refuse("multiboot", "load_address")
    if options.mode not in (None, "protected"):
        raise UsageError(
            f"{options.name}: a Multiboot kernel starts in protected mode, not in {options.mode} mode"
        )
    at = find_header(data, options.name)
    flags = struct.unpack_from("<I", data, at + 4)[0]
    layout = Layout(options.ram, options.name)
    info = Info(_command_line(options), lower_kib(layout.ram), upper_kib(layout.ram))
    notes = _video(data, at, flags, options.name)
    if flags & LOAD_ADDRESSES:
        chunks, entry = _from_header(data, at, layout)
    else:
        chunks, entry = _from_elf(data, layout, info, notes)
    if options.entry is not None:
        entry = options.entry
    start.check_entry(entry, FOUR_GIB, layout)
    chunks += _modules(options, layout, info)
    info.areas = memory_map(layout.ram)
    address = layout.find(info.size, "the Multiboot information", low=0x9000)
    chunks.append(Chunk(address, info.build(address)))
    chunks += bios_data.chunks(layout, layout.ram)
    state = start.protected(entry, layout)
    state.regs.update(rax=BOOT_MAGIC, rbx=address)
    return Payload("multiboot", chunks, state, notes)


def find_header(data: bytes, name: str) -> int:
    """Offset of the header. ImageError if none is whole, sums up to 0 and asks only for what is known."""
    candidates = multiboot_magics(data)
    if not candidates:
        raise ImageError(
            f"{name}: no Multiboot header: no word {MULTIBOOT_MAGIC:#x} on a 4-byte boundary "
            f"within the first {min(len(data), MULTIBOOT_SEARCH)} bytes"
        )
    valid = [at for at in candidates if multiboot_sum(data, at) == 0]
    if not valid:
        flags, checksum = struct.unpack_from("<2I", data, candidates[0] + 4)
        raise ImageError(
            f"{name}: the Multiboot header at {candidates[0]:#x} has a bad checksum: {checksum:#x} instead "
            f"of {-(MULTIBOOT_MAGIC + flags) & 0xFFFFFFFF:#x} (another format can be forced with --format)"
        )
    at = valid[0]
    flags = struct.unpack_from("<I", data, at + 4)[0]
    if flags & REQUIRED & ~KNOWN:
        raise ImageError(
            f"{name}: the Multiboot header requires unknown features: flags {flags:#x}, "
            f"of the low 16 bits only {KNOWN:#x} are known"
        )
    size = 48 if flags & WANT_VIDEO else 32 if flags & LOAD_ADDRESSES else 12
    limit = min(len(data), MULTIBOOT_SEARCH)
    if at + size > limit:
        raise ImageError(
            f"{name}: truncated Multiboot header: at {at:#x}, {size} bytes long, it must end by {limit:#x}"
        )
    return at


def _video(data: bytes, at: int, flags: int, name: str) -> list[str]:
    """What to say of a request for a video mode: there is no display, and a kernel must cope with that."""
    if not flags & WANT_VIDEO:
        return []
    kind, width, height, depth = struct.unpack_from("<4I", data, at + 32)
    if kind not in (LINEAR_GRAPHICS, EGA_TEXT):
        raise ImageError(f"{name}: Multiboot video mode type {kind} is unknown: 0 (graphics) or 1 (text)")
    mode = "text" if kind == EGA_TEXT else "graphics"
    return [
        f"the kernel prefers {mode} mode {width}x{height}x{depth}; there is no display, it isn't told of one"
    ]


def _command_line(options: BootOptions) -> str:
    """The first word is the kernel's name, as with QEMU: kernels skip it."""
    return f"{options.name} {options.append}" if options.append else options.name


def _from_header(data: bytes, at: int, layout: Layout) -> tuple[list[Chunk], int]:
    """Load by the addresses in the header ("a.out kludge")."""
    name = layout.name
    header, load, load_end, bss_end, entry = struct.unpack_from("<5I", data, at + 12)
    offset = at - (header - load)
    if header < load or offset < 0:
        raise ImageError(
            f"{name}: Multiboot load address {load:#x} doesn't fit header address {header:#x}: "
            f"the header is {at} bytes into the file"
        )
    end = load_end or load + len(data) - offset
    if end < load:
        raise ImageError(f"{name}: Multiboot load end {load_end:#x} lies before the load address {load:#x}")
    if end - load > len(data) - offset:
        raise ImageError(
            f"{name}: truncated Multiboot kernel: {end - load} bytes from offset {offset} wanted, "
            f"the file has {len(data)}"
        )
    if bss_end and bss_end < end:
        raise ImageError(f"{name}: Multiboot bss end {bss_end:#x} lies before the load end {end:#x}")
    last = bss_end or end
    if not load <= entry < last:
        raise ImageError(
            f"{name}: Multiboot entry {entry:#x} lies outside the kernel ({load:#x}-{last - 1:#x})"
        )
    layout.claim(load, last - load, "the kernel")
    return [Chunk(load, memoryview(data)[offset : offset + end - load], last - end)], entry


def _from_elf(data: bytes, layout: Layout, info: Info, notes: list[str]) -> tuple[list[Chunk], int]:
    from kvmpy.boot import elf, elf_sections

    if data[:4] != b"\x7fELF":
        raise ImageError(
            f"{layout.name}: the Multiboot kernel is no ELF file, and its header has no load addresses"
        )
    parsed = elf.parse(data, layout.name)
    chunks = elf.place(data, parsed, layout)
    for chunk, segment in zip(chunks, parsed.segments, strict=True):
        if chunk.end > FOUR_GIB:
            raise ImageError(
                f"{layout.name}: ELF segment {segment.number} ends at {chunk.end:#x}: "
                f"a Multiboot kernel must lie below {FOUR_GIB:#x}"
            )
    entry = elf.physical_entry(parsed, layout.name)
    info.sections, loaded = elf_sections.load(data, parsed, layout, notes)
    return chunks + loaded, entry


def _modules(options: BootOptions, layout: Layout, info: Info) -> list[Chunk]:
    """Modules go above the kernel, each on a page boundary; an initial RAM disk is the first of them."""
    modules = options.modules
    if options.initrd is not None:
        modules = [("initrd", options.initrd, ""), *modules]
    low = max([0x100000, *(base + size for base, size in layout.taken)])
    chunks = []
    for name, contents, arguments in modules:
        # An empty module takes a page too, so that no two have the same address.
        address = layout.find(max(len(contents), 1), f"module {name}", low=low, align=PAGE)
        info.modules.append((address, address + len(contents), f"{name} {arguments}" if arguments else name))
        chunks.append(Chunk(address, contents))
        low = address + len(contents)
    return chunks
