"""Where RAM lies in the guest physical address space of a PC."""

from __future__ import annotations

from kvmpy.machine.sizes import MAX_ADDRESS, check_pages

HOLE_START = 0xC000_0000
"""RAM below 4 GiB ends here (3 GiB) at the latest: above are PCI windows, IOAPIC, HPET, LAPIC and the ROM."""
HOLE_END = 0x1_0000_0000
"""RAM that doesn't fit below the hole goes on here (4 GiB)."""


def ram_layout(size: int) -> list[tuple[int, int]]:
    """(guest physical address, length) of each piece of ``size`` bytes of RAM; one, or two around the hole.

    Raises UsageError unless ``size`` is a positive number of whole pages that ends below 2**52.
    """
    check_pages(size)
    if size <= HOLE_START:
        return [(0, size)]
    check_pages(min(size + HOLE_END - HOLE_START, MAX_ADDRESS + 4096))
    return [(0, HOLE_START), (HOLE_END, size - HOLE_START)]
