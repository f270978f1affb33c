"""How a loaded image starts: entry states that keep clear of everything the image occupies."""

from __future__ import annotations

from kvmpy.boot.layout import FOUR_GIB, PAGE, Layout
from kvmpy.errors import GuestMemoryError, ImageError, UsageError
from kvmpy.x86 import entry as x86
from kvmpy.x86.layout import STACK_TOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmpy.x86 import EntryState
    from kvmpy.x86.paging import Mapping

MIB = 1 << 20

REAL_STACK_TOP = 0x7C00  # where most boot code puts it
REAL_STACK = 4096
STACK = 16384


def check_entry(entry: int, limit: int, layout: Layout) -> None:
    """ImageError unless ``entry`` is RAM below ``limit``."""
    if entry >= limit:
        raise ImageError(
            f"{layout.name}: entry {entry:#x} is out of reach in this mode: it must be below {limit:#x}"
        )
    if not layout.holds(entry):
        raise ImageError(f"{layout.name}: entry {entry:#x} lies outside memory ({layout.describe()})")


def real(entry: int, layout: Layout, *, dl: int = 0) -> EntryState:
    """Real mode at a guest physical address below 1 MiB.

    CS is 0 for the first 64 KiB, else the multiple of 64 KiB below ``entry``; DS and ES are the same. The
    stack ends at 0x7c00, or is a free 4 KiB elsewhere below 639 KiB (none at all in a machine without such
    a place).
    """
    check_entry(entry, MIB, layout)
    segment = entry >> 16 << 12
    stack_segment, sp = 0, REAL_STACK_TOP
    if not layout.free(REAL_STACK_TOP - REAL_STACK, REAL_STACK):
        try:
            stack_segment = layout.find(REAL_STACK, "the stack", high=MIB) >> 4
            sp = REAL_STACK
        except ImageError:
            sp = 0
    return x86.real_mode(segment, entry & 0xFFFF, sp=sp, dl=dl, ds=segment, es=segment, ss=stack_segment)


def protected(entry: int, layout: Layout) -> EntryState:
    """32-bit protected mode, paging off, at a guest physical address below 4 GiB."""
    check_entry(entry, FOUR_GIB, layout)
    try:
        stack = _stack(layout)
        return x86.protected_mode(entry, memory_size=max(layout.low, 1), stack=stack, avoid=layout.taken)
    except (GuestMemoryError, UsageError) as error:
        raise ImageError(f"{layout.name}: {error}") from error


def long(entry: int, layout: Layout, mappings: Sequence[Mapping] = ()) -> EntryState:
    """64-bit mode at a virtual address; RAM and the first 4 GiB are identity-mapped, ``mappings`` on top."""
    from kvmpy.x86.paging import identity

    if not any(mapping.virtual <= entry < mapping.end for mapping in mappings):
        check_entry(entry, 1 << 64, layout)
    # Without a map of its own x86 makes the same one, for memory without a hole.
    own = [*identity(layout.end), *mappings] if mappings or layout.end != layout.low else None
    try:
        stack = _stack(layout)
        return x86.long_mode(entry, memory_size=max(layout.low, 1), map=own, stack=stack, avoid=layout.taken)
    except (GuestMemoryError, UsageError) as error:
        raise ImageError(f"{layout.name}: {error}") from error


def _stack(layout: Layout) -> int | None:
    """Top of a stack; None where x86's usual place will do, because the image doesn't lie there."""
    if layout.free(STACK_TOP - STACK, STACK):
        return None
    if layout.low < STACK_TOP:
        try:
            return layout.find(PAGE, "the stack") + PAGE
        except ImageError:
            return None  # a machine of a page or two: the guest must know what it does
    return layout.find(STACK, "the stack") + STACK


def enter(mode: str, entry: int, layout: Layout) -> EntryState:
    """``real``, ``protected`` or ``long``, by name."""
    if mode == "real":
        return real(entry, layout)
    return protected(entry, layout) if mode == "protected" else long(entry, layout)
