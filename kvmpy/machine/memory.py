"""Guest memory as the host side sees it: bytes and numbers at guest physical addresses (GPA)."""

from __future__ import annotations

from bisect import bisect_right

from kvmpy.errors import GuestMemoryError
from kvmpy.machine.sizes import PAGE
from kvmpy.machine.slots import LOG_DIRTY, MAX_SLOTS, READONLY, Slot, Slots, access
from kvmpy.machine.watch import Views, Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Buffer

    from kvmpy.machine.backing import Backing
    from kvmpy.machine.slots import MapSlot

__all__ = ["LOG_DIRTY", "MAX_SLOTS", "READONLY", "GuestMemory", "Slot"]

_BLOCK = 1 << 20
_WORTH_ZAPPING = 16 * PAGE


class GuestMemory(Slots):
    """All memory of a machine. ``memory[gpa]`` is a byte, ``memory[a:b]`` a view of what is there, no copy.

    Addresses are guest physical, values little-endian as x86 has them. An access goes across slots that
    adjoin; one that leaves memory raises GuestMemoryError with the address and the nearest slot, and has no
    effect. Slots may come and go while other threads read and write. It is a context manager.
    """

    def __init__(self, listener: MapSlot | None = None, *, max_slots: int = MAX_SLOTS) -> None:
        """``listener(slot, flags, gpa, size, host_address)`` is told of each slot; removal: size 0."""
        super().__init__(listener, max_slots=max_slots)
        self.on_write: list[Callable[[int, int], object]] = []
        """Called with (gpa, length) after each host write, but not one through a view: watch() has both."""
        self.on_view: list[Callable[[int, int], object]] = []
        """Called with (gpa, length) of each writable view that is handed out."""
        self._views = Views()

    def close(self) -> None:
        """Remove all slots and unmap them, as far as no views are left: those stay good until they go."""
        self.on_write, self.on_view = [], []
        super().close()

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes at ``gpa``."""
        starts, regions = self._map
        end, delta, data, _ = regions[bisect_right(starts, gpa)]
        if 0 <= length <= end - gpa:
            copy: bytes = data[gpa - delta : gpa - delta + length]
            return copy
        pieces = self._pieces("read", gpa, length)
        return b"".join([data[at : at + n] for data, at, n, _ in pieces])

    def write(self, gpa: int, data: Buffer, *, force: bool = False) -> None:
        """Put the bytes of ``data`` (any contiguous buffer) at ``gpa``.

        ``force`` writes slots that are read-only for the guest too, as the loader of a ROM has to.
        """
        length = len(data) if type(data) is bytes else memoryview(data).nbytes
        starts, regions = self._map
        end, delta, mapping, locked = regions[bisect_right(starts, gpa)]
        if length <= end - gpa and not locked:
            mapping[gpa - delta : gpa - delta + length] = data
        else:
            self._write_pieces(gpa, length, data, force)
        if self.on_write:
            self._wrote(gpa, length)

    def fill(self, gpa: int, length: int, byte: int = 0, *, force: bool = False) -> None:
        """Set ``length`` bytes at ``gpa`` to ``byte``; many zeros give whole pages back to the host."""
        if not 0 <= byte <= 255:
            raise GuestMemoryError(f"fill at {gpa:#x}: {byte} is not a byte (0-255)")
        pieces = self._pieces("fill", gpa, length)
        for _, _, _, slot in pieces:
            self._check_writable("fill", gpa, length, slot, force)
        for _, at, n, slot in pieces:
            _fill(slot.backing, at, n, byte)
        if self.on_write:
            self._wrote(gpa, length)

    def view(self, gpa: int, length: int, *, force: bool = False) -> memoryview:
        """``length`` bytes at ``gpa`` as they are, no copy: guest and holder see each other's writes.

        They must lie in one slot. Of a read-only slot the view is read-only too, except with ``force``.
        It stays good after its slot is removed and after close(): the memory is unmapped with its last view.
        """
        if not length:
            return memoryview(b"")
        slot = self._one_slot("view", gpa, length)
        view = slot.backing.slice(gpa - slot.gpa, length)
        if slot.readonly and not force:
            return view.toreadonly()
        if view.readonly:
            return view
        view = self._views.hand_out(gpa, view)
        for hook in tuple(self.on_view):
            hook(gpa, length)
        return view

    def find(self, pattern: bytes, start: int = 0, stop: int | None = None) -> int:
        """The first guest physical address in ``start`` to ``stop`` where ``pattern`` lies whole, or -1."""
        stop = self.end if stop is None else stop
        best = -1
        slots = self._slots
        for index, slot in enumerate(slots):
            low, high = max(start, slot.gpa), min(stop, slot.end)
            if low < high:
                delta = slot.gpa - slot.backing.offset
                at = slot.backing.map.find(pattern, low - delta, high - delta)
                best = at + delta if at >= 0 else self._find_over_edge(pattern, index, low, stop)
            if best >= 0:
                break
        return best

    def address(self, gpa: int, length: int = 1) -> int:
        """Host virtual address of ``length`` bytes at ``gpa``, which must lie in one slot, for native code.

        It is good until the slot is removed.
        """
        slot = self._one_slot("address", gpa, max(length, 1))
        return slot.address + gpa - slot.gpa

    def __contains__(self, gpa: int) -> bool:
        """Whether there is memory at ``gpa``."""
        starts, regions = self._map
        return gpa < regions[bisect_right(starts, gpa)][0]

    def __getitem__(self, key: int | slice) -> Any:
        """A byte as an int, or for a slice a memoryview; a copy (bytes) where it spans several slots."""
        if not isinstance(key, slice):
            return self.read(key, 1)[0]
        gpa, length = self._range(key)
        starts, regions = self._map
        if length <= regions[bisect_right(starts, gpa)][0] - gpa:
            return self.view(gpa, length)
        return self.read(gpa, length)

    def __setitem__(self, key: int | slice, value: int | Buffer) -> None:
        """Write a byte, or for a slice exactly as many bytes as it is long."""
        if not isinstance(key, slice):
            self._write_int(key, value, 1)
            return
        gpa, length = self._range(key)
        if isinstance(value, int):
            raise GuestMemoryError(f"memory[{gpa:#x}:{gpa + length:#x}] takes bytes, not the int {value}")
        given = memoryview(value).nbytes
        if given != length:
            raise GuestMemoryError(f"memory[{gpa:#x}:{gpa + length:#x}] takes {length} bytes, not {given}")
        self.write(gpa, value)

    __iter__ = None  # Without it, Python would count addresses up from 0 in search of an IndexError.

    # Numbers

    def read_u8(self, gpa: int) -> int:
        """The byte at ``gpa``."""
        return self.read(gpa, 1)[0]

    def read_u16(self, gpa: int) -> int:
        """The little-endian 16-bit number at ``gpa``."""
        return int.from_bytes(self.read(gpa, 2), "little")

    def read_u32(self, gpa: int) -> int:
        """The little-endian 32-bit number at ``gpa``."""
        return int.from_bytes(self.read(gpa, 4), "little")

    def read_u64(self, gpa: int) -> int:
        """The little-endian 64-bit number at ``gpa``."""
        return int.from_bytes(self.read(gpa, 8), "little")

    def write_u8(self, gpa: int, value: int) -> None:
        """Put a byte (0-255) at ``gpa``."""
        self._write_int(gpa, value, 1)

    def write_u16(self, gpa: int, value: int) -> None:
        """Put an unsigned little-endian 16-bit number at ``gpa``."""
        self._write_int(gpa, value, 2)

    def write_u32(self, gpa: int, value: int) -> None:
        """Put an unsigned little-endian 32-bit number at ``gpa``."""
        self._write_int(gpa, value, 4)

    def write_u64(self, gpa: int, value: int) -> None:
        """Put an unsigned little-endian 64-bit number at ``gpa``."""
        self._write_int(gpa, value, 8)

    # Watching

    def watch(self) -> Watch:
        """A record of what host code writes from now on, until unwatch()."""
        self._check_open()
        watch = self._views.watch()
        self.on_write.append(watch.wrote)
        return watch

    def living_views(self) -> list[tuple[int, int]]:
        """(gpa, length) of what writable views show that still are in somebody's hands: sorted, no two touch."""
        return self._views.living()

    def unwatch(self, watch: Watch) -> None:
        """End a watch: writes cost nothing more. Twice is fine."""
        self._views.unwatch(watch)
        if watch.wrote in self.on_write:
            self.on_write.remove(watch.wrote)

    def _wrote(self, gpa: int, length: int) -> None:
        if length:
            for hook in tuple(self.on_write):
                hook(gpa, length)

    def _one_slot(self, verb: str, gpa: int, length: int) -> Slot:
        starts, _ = self._map
        index = bisect_right(starts, gpa) - 1
        slots = self._slots
        if 0 <= index < len(slots):
            slot = slots[index]
            if slot.gpa <= gpa and 0 < length <= slot.end - gpa:
                return slot
        pieces = self._pieces(verb, gpa, length)
        if len(pieces) == 1:
            return pieces[0][3]
        first, last = pieces[0][3], pieces[-1][3]
        raise GuestMemoryError(
            f"{access(verb, gpa, length)} spans {first} and {last}; read() and write() can do that"
        )

    def _range(self, key: slice) -> tuple[int, int]:
        start = 0 if key.start is None else key.start
        stop = self.end if key.stop is None else key.stop
        if key.step not in (None, 1) or stop < start:
            step = "" if key.step is None else f" step {key.step}"
            raise GuestMemoryError(f"memory[{start:#x}:{stop:#x}]{step}: a range goes up from its start by 1")
        return start, stop - start

    def _write_int(self, gpa: int, value: Any, size: int) -> None:
        if not 0 <= value < 1 << 8 * size:
            raise GuestMemoryError(
                f"write at {gpa:#x}: {value} is not in 0-{(1 << 8 * size) - 1:#x}, what {8 * size} bits hold"
            )
        self.write(gpa, int(value).to_bytes(size, "little"))

    def _write_pieces(self, gpa: int, length: int, data: Buffer, force: bool) -> None:
        pieces = self._pieces("write", gpa, length)
        for _, _, _, slot in pieces:
            self._check_writable("write", gpa, length, slot, force)
        if not pieces:
            return
        source = memoryview(data).cast("B")
        done = 0
        for mapping, at, n, _ in pieces:
            mapping[at : at + n] = source[done : done + n]
            done += n

    def _check_writable(self, verb: str, gpa: int, length: int, slot: Slot, force: bool) -> None:
        if not slot.backing.writable:
            raise GuestMemoryError(f"{access(verb, gpa, length)}: the file behind {slot} is mapped read-only")
        if slot.readonly and not force:
            raise GuestMemoryError(f"{access(verb, gpa, length)}: {slot} is read-only; force=True writes it")

    def _find_over_edge(self, pattern: bytes, index: int, low: int, stop: int) -> int:
        """Where ``pattern`` starts in slot ``index`` (from ``low``) and ends in slots that adjoin, or -1."""
        slots = self._slots
        edge = end = slots[index].end
        while index + 1 < len(slots) and slots[index + 1].gpa == end and end < edge + len(pattern):
            index += 1
            end = slots[index].end
        start = max(low, edge - len(pattern) + 1)
        window = self.read(start, max(0, min(end, stop, edge + len(pattern) - 1) - start))
        at = window.find(pattern)
        return start + at if at >= 0 else -1


def _fill(backing: Backing, at: int, length: int, byte: int) -> None:
    data, stop = backing.map, at + length
    if byte == 0 and backing.zap is not None and length >= _WORTH_ZAPPING:
        first, last = -(-at // PAGE) * PAGE, stop // PAGE * PAGE
        try:
            data.madvise(backing.zap, first, last - first)
        except OSError:
            pass  # Locked memory, for one, can't be given back.
        else:
            data[at:first] = bytes(first - at)
            at = last
    block = bytes([byte]) * min(_BLOCK, stop - at)
    while at < stop:
        n = min(_BLOCK, stop - at)
        data[at : at + n] = block if n == len(block) else block[:n]
        at += n
