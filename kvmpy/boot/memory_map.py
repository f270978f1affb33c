"""The memory map of a PC, as BIOS call E820 gives it; Multiboot, fw_cfg and Linux hand it to the guest."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USABLE = 1
RESERVED = 2

LOW_END = 0x9FC00  # 639 KiB: the last KiB below video memory belongs to the BIOS (extended BIOS data area)
VIDEO = 0xA0000
BIOS = 0xF0000
HIGH = 0x100000
KVM_PAGES = 0xFEFFC000  # identity map and TSS of VT-x without unrestricted guest; ROM from 0xff000000
FOUR_GIB = 1 << 32


def memory_map(ram: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(start, length, type) of each area, ordered, without overlaps; ``ram`` is (start, length) pairs, bytes.

    Usable is all RAM but what lies from 639 KiB to 1 MiB, where a PC has its EBDA, video memory and BIOS.
    """
    areas = []
    for base, size in ram:
        for low, high in ((0, LOW_END), (HIGH, 1 << 64)):
            start, end = max(base, low), min(base + size, high)
            if start < end:
                areas.append((start, end - start, USABLE))
    for start, end in ((LOW_END, VIDEO), (BIOS, HIGH)):
        areas.append((start, end - start, RESERVED))
    if not any(base < FOUR_GIB and base + size > KVM_PAGES for base, size in ram):
        areas.append((KVM_PAGES, FOUR_GIB - KVM_PAGES, RESERVED))
    return sorted(areas)


def lower_kib(ram: Sequence[tuple[int, int]]) -> int:
    """KiB of conventional memory, from address 0: at most 639."""
    return min(_run(ram, 0), LOW_END) // 1024


def upper_kib(ram: Sequence[tuple[int, int]]) -> int:
    """KiB of memory from 1 MiB up to the first hole, or to 4 GiB."""
    return min(_run(ram, HIGH), FOUR_GIB - HIGH) // 1024


def _run(ram: Sequence[tuple[int, int]], start: int) -> int:
    """Bytes of RAM without a hole from ``start`` on."""
    end = start
    for base, size in sorted(ram):
        if base <= end < base + size:
            end = base + size
    return end - start
