"""Where kvmpy puts things in guest physical memory when the caller doesn't say.

====================  ==========================================================================
0x00000 - 0x003ff     real-mode interrupt vector table (left to the guest)
0x00400 - 0x004ff     BIOS data area (left to the guest or to `kvmpy.boot`)
0x01000 - 0x7ffff     the image: flat binaries from 0x1000, a boot sector at 0x7c00
0x80000               initial stack pointer of protected and long mode; the stack grows down. Elsewhere
                      if the image or the tables take the 16 KiB below
0x80000 - 0x9efff     *tables*: GDT, TSS, IDT, ring-0 stack, page tables, packed against the top
0x9f000 - 0x9ffff     left free: EBDA and MP tables live here on a PC
0xa0000 - 0xfffff     no tables here: VGA window, option ROMs, BIOS shadow
0x100000 -            the image: ELF, Multiboot; tables too large for the low area, or in the way
                      of the image, are packed against the end of RAM
0xfeffc000            page for KVM_SET_IDENTITY_MAP_ADDR, then three for KVM_SET_TSS_ADDR (VT-x
                      without unrestricted guest); below the 16 MiB a ROM may take
====================  ==========================================================================

With less than 636 KiB of RAM the tables are packed against the end of RAM and the stack starts right
below them. One block of tables looks like this (offsets; parts that aren't asked for take no space)::

    0x000   GDT                      0x100   TSS, then its I/O permission bitmap
    page    IDT                      page    ring-0 stack of a ring-3 start
    pages   page tables, the root first
"""

from __future__ import annotations

from kvmpy.errors import GuestMemoryError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE = 0x1000
GIB = 1 << 30

BOOT_SECTOR = 0x7C00
FLAT_IMAGE = 0x1000
STACK_TOP = 0x80000
STACK_ROOM = 0x4000
TABLES_START = 0x80000
TABLES_END = 0x9F000
LEGACY_START = 0xA0000
HIGH_MEMORY = 0x100000
DEVICES_END = 4 * GIB
"""The default identity maps reach at least this far, so that APIC, ROM and device windows are mapped."""

KVM_IDENTITY_MAP = 0xFEFFC000
KVM_TSS = 0xFEFFD000

# The GDT of every entry state: same selectors in protected and long mode, chosen so that SYSCALL/SYSRET and
# SYSENTER/SYSEXIT find what they expect (STAR[47:32] = 0x08, STAR[63:48] = 0x18, SYSENTER_CS = 0x08).
CODE = 0x08
DATA = 0x10
USER_CODE = 0x18
USER_DATA = 0x20
USER_CODE_SYSRET = 0x28
USER_DATA_SYSEXIT = 0x30
CODE_NARROW = 0x38
"""Ring-0 code one step narrower: 16-bit in the protected-mode GDT, 32-bit in the long-mode one."""
TSS = 0x40
"""Two slots in long mode, where a TSS descriptor has 16 bytes."""
DATA_NARROW = 0x50
"""Ring-0 data, 64 KiB limit, for the way back to real mode."""

GDT_OFFSET = 0x000
TSS_OFFSET = 0x100


def page_up(value: int) -> int:
    """``value`` rounded up to a multiple of 4 KiB."""
    return (value + PAGE - 1) & ~(PAGE - 1)


def place_tables(size: int, memory_size: int, avoid: Iterable[tuple[int, int]] = ()) -> int:
    """Guest physical address for ``size`` bytes of tables in RAM of ``memory_size`` bytes from 0.

    ``avoid`` are (address, length) pairs already taken, by the image for example. GuestMemoryError when
    there is no room.
    """
    size = page_up(size)
    taken = sorted((start, start + length) for start, length in avoid if length > 0)
    end = memory_size & ~(PAGE - 1)
    low_end = min(end, TABLES_END)
    low_start = TABLES_START if end >= TABLES_END else PAGE
    for floor, ceiling in ((low_start, low_end), (HIGH_MEMORY, end), (PAGE, low_end)):
        address = _highest_gap(size, floor, ceiling, taken)
        if address is not None:
            return address
    raise GuestMemoryError(
        f"no room for {size:#x} bytes of descriptor and page tables in {memory_size:#x} bytes of memory"
        " beside the image: give the machine more memory, use larger pages or say where with tables_at"
    )


def _highest_gap(size: int, floor: int, ceiling: int, taken: list[tuple[int, int]]) -> int | None:
    for start, end in reversed(taken):
        if end <= ceiling - size:
            break
        if start < ceiling:
            ceiling = start & ~(PAGE - 1)
    # ceiling only ever drops to the start of an obstacle, so everything above it has been ruled out
    if ceiling - size < floor or any(s < ceiling and e > ceiling - size for s, e in taken):
        return None
    return ceiling - size


def check_tables(address: int, size: int, memory_size: int) -> None:
    """Raise UsageError or GuestMemoryError unless ``size`` bytes of tables can live at ``address``."""
    if address % PAGE:
        raise UsageError(f"tables_at={address:#x} must be a multiple of {PAGE:#x}")
    if address < 0 or address + size > memory_size:
        raise GuestMemoryError(
            f"tables at {address:#x}-{address + size - 1:#x} don't fit in {memory_size:#x} bytes of memory"
        )


def default_stack(memory_size: int, taken: Iterable[tuple[int, int]]) -> int:
    """Top of the default stack, clear of what is ``taken``: (address, length) of tables and image.

    0x80000 if the 16 KiB below it are free RAM, else the top of the highest gap of 16 KiB, or of a page.
    GuestMemoryError when there is none.
    """
    top = min(memory_size & ~15, STACK_TOP)
    blocks = sorted((start, start + length) for start, length in taken if length > 0)
    if top >= STACK_ROOM and not any(start < top and end > top - STACK_ROOM for start, end in blocks):
        return top
    low, high = min(memory_size, TABLES_END) & ~(PAGE - 1), memory_size & ~(PAGE - 1)
    for size in (STACK_ROOM, PAGE):
        # page 0 last: real mode's vectors and the BIOS data area may matter to the guest
        for floor, ceiling in ((PAGE, low), (HIGH_MEMORY, high), (0, low)):
            base = _highest_gap(size, floor, ceiling, blocks)
            if base is not None:
                return base + size
    raise GuestMemoryError(
        f"no room for a stack in {memory_size:#x} bytes of memory beside the image and the tables:"
        " give the machine more memory or say where with stack"
    )
