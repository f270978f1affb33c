"""Memory slots: which host memory is at which guest physical address (GPA).

A slot is what KVM calls a memory slot (KVM API document, 4.35 KVM_SET_USER_MEMORY_REGION): whole pages at a
page aligned address. The engine is told of slots through a *listener*, so this module knows no engine.
"""

from __future__ import annotations

from bisect import bisect_right
from threading import Lock

from kvmpy.errors import GuestMemoryError
from kvmpy.machine.backing import HUGE_PAGE, Backing, anonymous
from kvmpy.machine.layout import ram_layout
from kvmpy.machine.sizes import MAX_ADDRESS, PAGE
from kvmpy.owned import Closing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    MapSlot = Callable[[int, int, int, int, int], object]
    Region = tuple[int, int, Any, bool]
    Piece = tuple[Any, int, int, "Slot"]

LOG_DIRTY = 1
"""KVM_MEM_LOG_DIRTY_PAGES: the kernel records which pages of the slot the guest writes."""
READONLY = 2
"""KVM_MEM_READONLY: guest writes to the slot become MMIO exits."""
MAX_SLOTS = 32764
"""What KVM_CAP_NR_MEMSLOTS says on x86 (32767, less three that KVM keeps)."""

_NO_REGION: Region = (-(1 << 200), 0, None, True)
"""Stands before the first slot, so that an address below it needs no case of its own."""


class Slot:
    """A memory slot: ``size`` bytes of a backing, from ``gpa`` up to, not including, ``end``."""

    __slots__ = ("backing", "end", "flags", "gpa", "name", "number", "size")

    def __init__(self, number: int, gpa: int, backing: Backing, flags: int, name: str) -> None:
        self.number = number
        self.gpa = gpa
        self.size = backing.size
        self.end = gpa + backing.size
        self.backing = backing
        self.flags = flags
        self.name = name

    @property
    def readonly(self) -> bool:
        """Whether the guest can't write it."""
        return bool(self.flags & READONLY)

    @property
    def log_dirty(self) -> bool:
        """Whether the kernel logs the pages that the guest dirties."""
        return bool(self.flags & LOG_DIRTY)

    @property
    def address(self) -> int:
        """Host virtual address of the first byte."""
        return self.backing.address

    def __str__(self) -> str:
        return f"slot {self.number} ({self.name}, {self.gpa:#x}-{self.end - 1:#x})"

    def __repr__(self) -> str:
        return f"<{self} {self.backing.kind} flags={self.flags}>"


class Slots(Closing):
    """The slots of a machine: they may come and go while other threads look addresses up."""

    def __init__(self, listener: MapSlot | None = None, *, max_slots: int = MAX_SLOTS) -> None:
        """``listener(slot, flags, gpa, size, host_address)`` is told of each slot; removal: size 0."""
        self.max_slots = max_slots
        self._listener = listener
        self._others: tuple[MapSlot, ...] = ()
        self._lock = Lock()
        self._slots: tuple[Slot, ...] = ()
        self._map: tuple[list[int], list[Region]] = ([], [_NO_REGION])
        """Where slots start, and one further on what :meth:`_publish` says of each."""
        self._closed = False

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots, by address."""
        return self._slots

    @property
    def size(self) -> int:
        """Bytes in all slots together."""
        return sum(slot.size for slot in self._slots)

    @property
    def end(self) -> int:
        """The guest physical address after the last byte of the highest slot; 0 without slots."""
        return self._slots[-1].end if self._slots else 0

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def add(
        self,
        gpa: int,
        memory: int | Backing,
        *,
        readonly: bool = False,
        log_dirty: bool = False,
        name: str = "ram",
    ) -> Slot:
        """A new slot at ``gpa``: ``memory`` bytes of anonymous memory, or a backing, owned from now on.

        ``gpa`` and size are multiples of 4096. Raises GuestMemoryError if it overlaps a slot (names both),
        is misaligned or beyond 2**52, UsageError for a bad size; a backing passed in then stays the caller's.
        """
        flags = (READONLY if readonly else 0) | (LOG_DIRTY if log_dirty else 0)
        if isinstance(memory, Backing):
            return self._add(gpa, memory, flags, name)
        return self._add_or_close(gpa, anonymous(memory), flags, name)

    def add_ram(
        self, size: int, make: Callable[[int, int], Backing] | None = None, *, huge: str | None = None
    ) -> list[Slot]:
        """``size`` bytes of RAM from 0 on as on a PC: what doesn't fit below 3 GiB goes on at 4 GiB.

        ``make(length, offset)`` gives the backing of ``length`` bytes that are ``offset`` into the RAM, of a
        file for instance; without, the RAM is :func:`~kvmpy.machine.backing.anonymous`, ``huge`` as there.
        """
        slots: list[Slot] = []
        offset = 0
        try:
            for gpa, length in ram_layout(size):
                phase = gpa % HUGE_PAGE
                backing = make(length, offset) if make else anonymous(length, huge=huge, phase=phase)
                slots.append(self._add_or_close(gpa, backing, 0, "high ram" if gpa else "ram"))
                offset += length
        except BaseException:
            for slot in slots:
                self.remove(slot)
            raise
        return slots

    def remove(self, slot: Slot) -> None:
        """Take a slot away and close its backing. GuestMemoryError if it isn't one of this memory's."""
        with self._lock:
            self._check_own(slot)
            before = self._slots
            self._publish(tuple(other for other in before if other is not slot))
            try:
                self._tell(slot.number, 0, slot.gpa, 0, 0)
            except BaseException:
                self._publish(before)
                raise
        slot.backing.owned = False
        slot.backing.close()

    def set_log_dirty(self, slot: Slot, on: bool) -> None:
        """Have the kernel log what the guest dirties in a slot, or no longer; takes effect at once."""
        with self._lock:
            self._check_own(slot)
            flags = slot.flags & ~LOG_DIRTY | (LOG_DIRTY if on else 0)
            if flags != slot.flags:
                self._tell(slot.number, flags, slot.gpa, slot.size, slot.address)
            slot.flags = flags

    def connect(self, listener: MapSlot) -> None:
        """Tell ``listener`` of every slot there is, and of changes from now on, instead of the one before."""
        with self._lock:
            self._check_open()
            for slot in self._slots:
                listener(slot.number, slot.flags, slot.gpa, slot.size, slot.address)
            self._listener = listener

    def disconnect(self) -> None:
        """Tell nobody anything any more: for a machine that has closed its engine already."""
        self._listener = None
        self._others = ()

    def add_listener(self, listener: MapSlot) -> None:
        """Tell one more of changes from now on, after the one that is connected. It must not raise."""
        with self._lock:
            self._check_open()
            self._others = (*self._others, listener)

    def remove_listener(self, listener: MapSlot) -> None:
        """Tell it nothing any more. Twice is fine."""
        with self._lock:
            self._others = tuple(other for other in self._others if other != listener)

    def _tell(self, number: int, flags: int, gpa: int, size: int, address: int) -> None:
        if self._listener:
            self._listener(number, flags, gpa, size, address)
        for other in self._others:
            other(number, flags, gpa, size, address)

    def close(self) -> None:
        """Remove all slots and unmap them, as far as no views are left: those stay readable until they go."""
        with self._lock:
            slots = self._slots
            self._closed = True
            self._publish(())
            listener, self._listener = self._listener, None
        try:
            for slot in slots:
                if listener:
                    listener(slot.number, 0, slot.gpa, 0, 0)
        finally:
            for slot in slots:
                slot.backing.owned = False
                slot.backing.close()

    def __repr__(self) -> str:
        slots = ", ".join(str(slot) for slot in self._slots)
        return f"<GuestMemory {'closed' if self._closed else slots or 'empty'}>"

    def _add_or_close(self, gpa: int, backing: Backing, flags: int, name: str) -> Slot:
        try:
            return self._add(gpa, backing, flags, name)
        except BaseException:
            backing.close()
            raise

    def _add(self, gpa: int, backing: Backing, flags: int, name: str) -> Slot:
        with self._lock:
            self._check_open()
            numbers = {slot.number for slot in self._slots}
            number = next(n for n in range(len(numbers) + 1) if n not in numbers)
            slot = Slot(number, gpa, backing, flags, name)
            self._check_new(slot)
            self._tell(number, flags, gpa, slot.size, slot.address)
            backing.owned = True
            self._publish(tuple(sorted((*self._slots, slot), key=lambda each: each.gpa)))
        return slot

    def _publish(self, slots: tuple[Slot, ...]) -> None:
        # A region: the slot's end, its GPA less its offset in the mapping, the mapping, and whether it takes
        # no plain writes. One assignment changes the map, so that other threads see the old or the new.
        self._slots = slots
        regions = [_NO_REGION]
        for slot in slots:
            backing = slot.backing
            locked = slot.readonly or not backing.writable
            regions.append((slot.end, slot.gpa - backing.offset, backing.map, locked))
        self._map = ([slot.gpa for slot in slots], regions)

    def _check_open(self) -> None:
        if self._closed:
            raise GuestMemoryError("guest memory is closed")

    def _check_own(self, slot: Slot) -> None:
        if slot not in self._slots:
            raise GuestMemoryError(f"{slot} is not in this guest memory (any more)")

    def _check_new(self, slot: Slot) -> None:
        if slot.gpa < 0 or slot.gpa % PAGE:
            raise GuestMemoryError(
                f"{slot.name}: address {slot.gpa:#x} is not a multiple of the page size {PAGE}"
            )
        if slot.end > MAX_ADDRESS:
            raise GuestMemoryError(
                f"{slot.name}: {slot.gpa:#x}-{slot.end - 1:#x} ends beyond {MAX_ADDRESS - 1:#x}"
            )
        for other in self._slots:
            if slot.gpa < other.end and other.gpa < slot.end:
                raise GuestMemoryError(f"new {slot} overlaps {other}")
        if len(self._slots) >= self.max_slots:
            raise GuestMemoryError(f"new {slot}: all {self.max_slots} slots are in use; remove one")
        if slot.backing.closed or slot.backing.owned:
            why = "closed" if slot.backing.closed else "in guest memory already"
            raise GuestMemoryError(f"new {slot}: its backing is {why}")
        if not slot.backing.writable and not slot.readonly:
            raise GuestMemoryError(
                f"new {slot}: its backing is read-only, so the slot must be too (readonly=True)"
            )

    def _pieces(self, verb: str, gpa: int, length: int) -> list[Piece]:
        """The range as (mapping, offset in it, bytes, slot), all of it or GuestMemoryError."""
        self._check_open()
        if length < 0:
            raise GuestMemoryError(f"{verb} at {gpa:#x}: a length of {length} bytes; the least is 0")
        pieces: list[Piece] = []
        slots = self._slots
        index = bisect_right(slots, gpa, key=lambda slot: slot.gpa) - 1
        at, stop = gpa, gpa + length
        while at < stop:
            if not (0 <= index < len(slots) and slots[index].gpa <= at < slots[index].end):
                raise self._outside(verb, gpa, length, at)
            slot = slots[index]
            count = min(stop, slot.end) - at
            pieces.append((slot.backing.map, slot.backing.offset + at - slot.gpa, count, slot))
            at += count
            index += 1
        return pieces

    def _outside(self, verb: str, gpa: int, length: int, bad: int) -> GuestMemoryError:
        what = access(verb, gpa, length)
        if not self._slots:
            return GuestMemoryError(f"{what}: there is no guest memory at all; add a slot first")
        nearest = min(self._slots, key=lambda slot: slot.gpa - bad if slot.gpa > bad else bad - slot.end + 1)
        where = "is outside guest memory" if bad == gpa else f"leaves guest memory at {bad:#x}"
        return GuestMemoryError(f"{what} {where}; the nearest is {nearest}")


def access(verb: str, gpa: int, length: int) -> str:
    """An access in words, for messages: ``read of 4 bytes at 0x1000``."""
    return f"{verb} of {length} byte{'' if length == 1 else 's'} at {gpa:#x}"
