"""What kind of image is this? Decided from the bytes alone, cheaply, without loading any parser."""

from __future__ import annotations

import struct

MULTIBOOT_MAGIC = 0x1BADB002
MULTIBOOT_SEARCH = 8192  # Multiboot 0.6.96, 3.1: the header lies within the first 8192 bytes, 4-byte aligned

SECTOR = 512
BOOT_SIGNATURE = b"\x55\xaa"

ROM_UNIT = 65536
RESET_OFFSET = 16  # the CPU's first instruction is fetched 16 bytes below 4 GiB (SDM volume 3, 10.1.4)

_MAGIC_BYTES = struct.pack("<I", MULTIBOOT_MAGIC)
_THREE_WORDS = struct.Struct("<3I")

# What a reset vector begins with: a far, near or short jump, behind a no-op, cli or wbinvd in some
# firmware. Code that can be reached in 32-bit mode as well reads CR0 first.
_RESET_PREFIXES = (b"", b"\x90", b"\x90\x90", b"\xfa", b"\x0f\x09")
_RESET_JUMPS = (b"\xea", b"\x66\xea", b"\xe9", b"\xeb")
_RESET_CODE = (b"\x0f\x20\xc0", *(before + jump for before in _RESET_PREFIXES for jump in _RESET_JUMPS))


def recognise(data: bytes | memoryview) -> str:
    """Name of the format (a key of ``kvmpy.boot.FORMATS``) of an image; what nothing else claims is "flat".

    Multiboot comes before ELF, because Multiboot kernels usually are ELF files as well; a Multiboot magic
    with a wrong checksum still counts, so that it's reported and not started as something else. "linux"
    comes before "bootsector", because a kernel image starts with one.
    """
    if multiboot_magics(data):
        return "multiboot"
    if data[:4] == b"\x7fELF":
        return "elf"
    if data[510:512] == BOOT_SIGNATURE:
        if data[0x202:0x206] == b"HdrS":
            return "linux"
        if len(data) % SECTOR == 0:
            return "bootsector"
    if len(data) % ROM_UNIT == 0 and bytes(data[-RESET_OFFSET:]).startswith(_RESET_CODE):
        return "rom"
    return "flat"


def multiboot_magics(data: bytes | memoryview) -> list[int]:
    """Offsets of what may be Multiboot headers: the magic word, aligned, where a header may be."""
    head = bytes(data[:MULTIBOOT_SEARCH])
    found = []
    at = head.find(_MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0 and at + _THREE_WORDS.size <= len(head):
            found.append(at)
        at = head.find(_MAGIC_BYTES, at + 1)
    return found


def multiboot_sum(data: bytes | memoryview, at: int) -> int:
    """Sum of magic, flags and checksum of the header at ``at``, modulo 2**32: 0 in a valid one."""
    magic, flags, checksum = _THREE_WORDS.unpack_from(data, at)
    total: int = magic + flags + checksum
    return total & 0xFFFFFFFF
