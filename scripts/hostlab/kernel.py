"""From a distribution's compressed kernel to what an emulator starts at once: the ELF inside, and its PVH
entry.

Unpacking the kernel takes an emulator up to a minute; here it is done once. bzImage:
Documentation/arch/x86/boot.rst of the kernel. PVH: docs/misc/pvh.pandoc of Xen, and
xen/include/public/arch-x86/hvm/start_info.h for the start info.
"""

from __future__ import annotations

import gzip
import lzma
import struct
from typing import NamedTuple

from . import elf
from .errors import HostsError

_XEN_ELFNOTE_PHYS32_ENTRY = 18
_HEADER_MAGIC = 0x202  # "HdrS"
_SETUP_SECTORS = 0x1F1
_PAYLOAD = 0x248  # offset and length, 32 bits each, since boot protocol 2.08


class Image(NamedTuple):
    """A kernel as memory has it: ``data`` at the physical address ``base``, PVH entry at ``entry``."""

    base: int
    data: bytes
    entry: int


def unpack(bzimage: bytes) -> bytes:
    """The ELF file in a bzImage. HostsError if it isn't one, or is packed in a way this can't undo."""
    if bzimage[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise HostsError(
            "the kernel is no bzImage: it has no HdrS at 0x202; give the vmlinuz of a distribution"
        )
    setup_sectors = bzimage[_SETUP_SECTORS] or 4
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if payload[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(
            payload
        )  # the size in bytes follows the stream: no plain decompress()
    if payload[:2] == b"\x1f\x8b":
        return gzip.decompress(payload[:-4])
    raise HostsError(
        f"the kernel's payload begins with {payload[:6].hex(' ')}: only xz and gzip are known; use another"
    )


def flatten(vmlinux: bytes) -> Image:
    """Lay the loadable segments out as memory has them. HostsError if the kernel has no PVH entry."""
    loads = [segment for segment in elf.segments(vmlinux) if segment.type == elf.PT_LOAD and segment.size]
    entry = pvh_entry(vmlinux)
    base = min(segment.physical for segment in loads)
    memory = bytearray(max(segment.physical + segment.size for segment in loads) - base)
    for segment in loads:
        at = segment.physical - base
        memory[at : at + segment.size] = vmlinux[segment.offset : segment.offset + segment.size]
    return Image(base, bytes(memory), entry)


def pvh_entry(vmlinux: bytes) -> int:
    """Physical address of the 32-bit PVH entry. HostsError if there is none."""
    for note in elf.notes(vmlinux):
        if note.owner == b"Xen" and note.type == _XEN_ELFNOTE_PHYS32_ENTRY:
            return int.from_bytes(note.data[:8], "little")
    raise HostsError("the kernel has no PVH entry (Xen note 18): it must be built with CONFIG_PVH")
