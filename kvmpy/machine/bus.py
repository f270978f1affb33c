"""Who owns which port, address, MSR or hypercall, and where an access to it is handled.

Every change builds a new table for the C loop and publishes it with one pointer, so vCPUs read without a lock and a
change while the guest runs loses no exit: each is handled once, by the table it found.
"""

from __future__ import annotations

from bisect import bisect_right
from threading import RLock

from kvmpy._native import ffi, lib
from kvmpy.errors import BusError
from kvmpy.machine.kernel_places import Eventfd
from kvmpy.machine.rules import ALL_ONES, Count, Drop, Fifo, Latch, Native, Python, Rule, of_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from kvmpy.machine.kernel_places import KernelPlaces

    Reader = Callable[[int, int], int]
    Writer = Callable[[int, int, int], object]

FIRST_ID = lib.KVMPY_UNOWNED + lib.KVMPY_SPACES
PLACES = ("python", "c", "ring", "kernel")
_PYTHON = Python()
_DROP = Drop()


class Range:
    """Addresses with one owner: ``first`` to ``last``, both included. Attach and detach through the space.

    ``place`` says where accesses are handled and can be changed at any time, from any thread, while the guest runs:

    ``python``  synchronously, by the owner
    ``c``       by ``rule``, in the run loop
    ``ring``    as ``c``, and written down in the vCPU's ring (:mod:`kvmpy.machine.ring`); without a rule writes are
                dropped and reads give all ones
    ``kernel``  writes don't leave it: they are handed to the owner later, in order, or signal an
                :class:`~kvmpy.machine.kernel_places.Eventfd`; MSRs are KVM's own
    """

    __slots__ = (
        "_place",
        "_rule",
        "first",
        "id",
        "kernel_count",
        "last",
        "name",
        "owner",
        "read",
        "space",
        "whole",
        "write",
    )

    def __init__(self, space: Space, first: int, last: int, name: str, owner: object) -> None:
        self.space = space
        self.first = first
        self.last = last
        self.name = name
        self.owner = owner
        self.id = 0
        self.read: Reader | None = None
        self.write: Writer | None = None
        self.whole = _takes_whole(owner)
        self.kernel_count = 0
        self._place = "python"
        self._rule: Rule | None = None

    def __repr__(self) -> str:
        return f"<{self.space.name} {self} place={self.place}>"

    def __str__(self) -> str:
        return f"{self.first:#x}-{self.last:#x} ({self.name})"

    @property
    def length(self) -> int:
        """Addresses in the range."""
        return self.last - self.first + 1

    @property
    def place(self) -> str:
        """Where accesses are handled: "python", "c", "ring" or "kernel". Assign to move the range."""
        return self._place

    @place.setter
    def place(self, place: str) -> None:
        self.space.bus.move(self, place)

    @property
    def rule(self) -> Rule | None:
        """What C does with an access in the places "c" and "ring"; None: nothing was said."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        if not isinstance(rule, Rule):
            raise BusError(
                f"{self}: {rule!r} isn't a rule: take Drop(), Latch(), Fifo(), Native() or another Rule"
            )
        rule.check(self.first, self.last)
        with self.space.bus.lock:
            self.space.bus.check_attached(self)
            self._rule = rule
            self.space.bus.changed()

    @property
    def active_rule(self) -> Rule:
        """The rule for the C loop's table: what the range's place makes of it."""
        if self._place == "c" and self._rule is not None:
            return self._rule
        if self._place == "ring":
            return (self._rule or _DROP).logging()
        if self._place == "kernel" and self._rule is not None and not self.in_python:
            return self._rule
        return _PYTHON

    @property
    def in_python(self) -> bool:
        """Whether the owner has a method or function for reads or writes."""
        return self.read is not None or self.write is not None

    @property
    def count(self) -> int:
        """Accesses so far, wherever they were handled, over all vCPUs."""
        return self.space.bus.count(self.id)


class Space:
    """One address space of a machine: ``machine.ports``, ``machine.mmio``, ``machine.msr_exits``, …

    ``space[0x3f8:0x400] = device`` attaches, ``space[0x3f8]`` is the :class:`Range` that owns the address,
    ``del space[0x3f8]`` detaches it. Ranges never overlap.
    """

    def __init__(self, bus: Bus, number: int, name: str, limit: int) -> None:
        self.bus = bus
        self.number = number
        self.name = name
        self.limit = limit
        self._firsts: list[int] = []
        self._ranges: list[Range] = []

    def __iter__(self) -> Iterator[Range]:
        return iter(tuple(self._ranges))

    def __len__(self) -> int:
        return len(self._ranges)

    def attach(
        self, first: int, length: int, owner: object, name: str | None = None, rule: Rule | None = None
    ) -> Range:
        """Gives ``length`` addresses from ``first`` on to ``owner``; returns the new range.

        The owner is a device (an object with ``read(offset, size) -> int`` and ``write(offset, value, size)``; one of
        the two may be missing) or a :class:`~kvmpy.machine.rules.Rule`. Sizes are 1, 2, 4 or 8 bytes; an access
        that crosses the end of the range arrives byte by byte. A device that declares its registers
        (:mod:`kvmpy.devices.registers`) starts in the place "c": only side effects reach Python. ``rule`` is for a
        device that is to be moved to the places "c" or "ring" later.

        Raises BusError: addresses outside the space, overlap with another range, an owner that is neither.
        """
        last = first + length - 1
        if length <= 0 or first < 0 or last > self.limit:
            raise BusError(
                f"{self.name} range {first:#x}, length {length:#x}: the {self.name} space is 0x0-{self.limit:#x}"
            )
        new = Range(self, first, last, name or _name_of(owner), owner)
        if isinstance(owner, Rule):
            rule = owner
            new._place = "c"
        else:
            new.read, new.write = getattr(owner, "read", None), getattr(owner, "write", None)
            if not callable(new.read) and not callable(new.write):
                raise BusError(
                    f"{new}: the owner has neither read(offset, size) nor write(offset, value, size)"
                )
        if rule is None and hasattr(owner, "MASKS"):
            rule = of_device(owner)
            new._place = "c"
        if rule is not None:
            rule.check(first, last)
            new._rule = rule
        with self.bus.lock:
            self._insert(new)
        return new

    def _insert(self, new: Range) -> None:
        if self.bus.closed:
            raise BusError(f"{new}: the machine is closed: nothing can be attached to it")
        at = bisect_right(self._firsts, new.first)
        for other in self._ranges[max(at - 1, 0) : at + 1]:
            if new.first <= other.last and other.first <= new.last:
                raise BusError(f"new {self.name} range {new} overlaps {other}")
        self.bus.register(new)
        self._firsts.insert(at, new.first)
        self._ranges.insert(at, new)
        try:
            self.bus.changed()
        except BaseException:
            del self._firsts[at], self._ranges[at]
            raise

    def detach(self, range_: Range) -> None:
        """Nobody's from now on; its count stays readable. BusError if it isn't one of this space's ranges."""
        with self.bus.lock:
            self.bus.check_attached(range_)
            if range_.place == "kernel":
                self.bus.kernel_places().leave(range_)
            at = self._ranges.index(range_)
            del self._ranges[at], self._firsts[at]
            self.bus.changed()

    def find(self, address: int) -> Range | None:
        """The range that owns ``address``."""
        at = bisect_right(self._firsts, address) - 1
        if at >= 0 and address <= self._ranges[at].last:
            return self._ranges[at]
        return None

    def __getitem__(self, key: int | slice) -> Range:
        first, last = self._bounds(key)
        found = self.find(first)
        if found is None or last > found.last:
            raise BusError(f"no range of the {self.name} space owns {first:#x}-{last:#x}")
        return found

    def __setitem__(self, key: int | slice, owner: object) -> None:
        first, last = self._bounds(key)
        self.attach(first, last - first + 1, owner)

    def __delitem__(self, key: int | slice) -> None:
        self.detach(self[key])

    def _bounds(self, key: int | slice) -> tuple[int, int]:
        if isinstance(key, int):
            return key, key
        if key.start is None or key.stop is None or key.step is not None or key.stop <= key.start:
            raise BusError(
                f"{self.name}[{key.start}:{key.stop}]: give first:last+1, as in ports[0x3f8:0x400]"
            )
        return key.start, key.stop - 1

    def on_read(self, first: int, length: int = 1, name: str | None = None) -> Callable[[Reader], Reader]:
        """Decorator: ``function(offset, size) -> int`` answers reads of the range."""

        def attach(function: Reader) -> Reader:
            self._half(first, length, name or _name_of(function), read=function)
            return function

        return attach

    def on_write(self, first: int, length: int = 1, name: str | None = None) -> Callable[[Writer], Writer]:
        """Decorator: ``function(offset, value, size)`` takes writes to the range."""

        def attach(function: Writer) -> Writer:
            self._half(first, length, name or _name_of(function), write=function)
            return function

        return attach

    def _half(self, first: int, length: int, name: str, **half: Any) -> None:
        """One half of a pair of functions: the other half may be there already."""
        with self.bus.lock:
            there = self.find(first)
            pair = there.owner if there is not None else None
            if there is not None and isinstance(pair, _Pair) and pair.accepts(half, there, first, length):
                pair.add(half)
                there.read, there.write = pair.read, pair.write
                self.bus.register(there)
                return
            self.attach(first, length, _Pair(half), name)

    def drop(self, first: int, length: int = 1, value: int = ALL_ONES, name: str | None = None) -> Range:
        """C ignores writes and answers reads with ``value``."""
        return self.attach(first, length, Drop(value), name)

    def count(self, first: int, length: int = 1, value: int = ALL_ONES, name: str | None = None) -> Range:
        """As :meth:`drop`; the range's ``count`` says how often."""
        return self.attach(first, length, Count(value), name)

    def latch(self, first: int, length: int = 1, fill: int = 0, name: str | None = None) -> Range:
        """C answers reads with what was last written."""
        return self.attach(first, length, Latch(length, fill), name)

    def fifo(self, first: int, length: int = 1, capacity: int = 65536, name: str | None = None) -> Fifo:
        """C keeps what the guest writes in a queue, and answers its reads from another; returns the rule."""
        rule = Fifo(capacity)
        self.attach(first, length, rule, name)
        return rule

    def eventfd(
        self, address: int, length: int = 0, datamatch: int | None = None, name: str | None = None
    ) -> Eventfd:
        """Writes of ``length`` bytes (0: any) to ``address``, of the value ``datamatch`` if given, signal an eventfd
        in the kernel, and no vCPU waits. What doesn't match goes nowhere."""
        owner = Eventfd(length, datamatch)
        try:
            made = self.attach(address, length or 1, owner, name)
            try:
                made.place = "kernel"
            except BaseException:
                self.detach(made)
                raise
        except BaseException:
            owner.close()
            raise
        return owner

    def native(
        self, first: int, length: int, function: Any, context: Any = None, name: str | None = None
    ) -> Range:
        """A native handler (see :class:`~kvmpy.machine.rules.Native`) owns the range."""
        return self.attach(first, length, Native(function, context), name)


class _Pair:
    """A reader and a writer that were attached one after the other."""

    def __init__(self, half: dict[str, Any]) -> None:
        self.read: Reader | None = None
        self.write: Writer | None = None
        self.add(half)

    def accepts(self, half: dict[str, Any], mine: Range, first: int, length: int) -> bool:
        missing = all(getattr(self, name) is None for name in half)
        return missing and (mine.first, mine.length) == (first, length)

    def add(self, half: dict[str, Any]) -> None:
        for name, function in half.items():
            setattr(self, name, function)


def _takes_whole(owner: object) -> int:
    """Bits of struct kvmpy_range.whole."""
    reads, writes = getattr(owner, "read_string", None), getattr(owner, "write_string", None)
    undivided = 4 if getattr(owner, "undivided", False) else 0
    return (1 if callable(reads) else 0) | (2 if callable(writes) else 0) | undivided


def _name_of(owner: object) -> str:
    name = getattr(owner, "name", None) or getattr(owner, "kind", None) or getattr(owner, "__name__", None)
    return name if isinstance(name, str) else type(owner).__name__.lower()


def _absent_read(offset: int, size: int) -> int:
    return (1 << (8 * size)) - 1


def _absent_write(offset: int, value: int, size: int) -> None:
    pass


class Bus:
    """All address spaces of a machine, and the table the C loop reads.

    ``handlers[2 * id]`` reads and ``handlers[2 * id + 1]`` writes the range of that id. Ids are never used twice, so
    an exit that was on its way to Python while the range was changed still finds its handler.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.native: Any = lib.kvmpy_bus_new()
        self.handlers: list[Any] = [None] * (2 * FIRST_ID)
        self.by_id: dict[int, Range] = {}
        self.vcpus: list[Any] = []
        self.ports = Space(self, lib.KVMPY_PIO, "port", 0xFFFF)
        self.mmio = Space(self, lib.KVMPY_MMIO, "MMIO", (1 << 52) - 1)
        self.msrs = Space(self, lib.KVMPY_MSR, "MSR", 0xFFFFFFFF)
        self.hypercalls = Space(self, lib.KVMPY_HYPERCALL, "hypercall", (1 << 64) - 1)
        self.spaces = (self.ports, self.mmio, self.msrs, self.hypercalls)
        self.kernel: KernelPlaces | None = None
        self.need_rings: Callable[[], None] = lambda: None
        self.closed = False
        self._final: dict[int, int] = {}
        self._live = False
        self._dirty = True
        self._unowned: Rule = Drop()
        self._table: tuple[Any, list[Rule]] | None = None
        self._retired: list[tuple[Any, list[Rule]]] = []

    def register(self, range_: Range) -> None:
        """Makes the range's functions findable by the C loop's numbers. Raises BusError after 4096 ranges."""
        if not range_.id:
            range_.id = len(self.handlers) // 2
            if range_.id >= lib.KVMPY_RANGES:
                raise BusError(
                    f"{range_}: a machine can have had {lib.KVMPY_RANGES - FIRST_ID} ranges at most"
                )
            self.handlers += [None, None]
        self.by_id[range_.id] = range_
        self.handlers[2 * range_.id] = range_.read or _absent_read
        self.handlers[2 * range_.id + 1] = range_.write or _absent_write

    def strict(self, read: Reader, write: Writer) -> None:
        """Accesses nobody owns go to these functions instead of reading all ones."""
        with self.lock:
            for number in range(FIRST_ID - lib.KVMPY_UNOWNED):
                self.handlers[2 * (number + lib.KVMPY_UNOWNED)] = read
                self.handlers[2 * (number + lib.KVMPY_UNOWNED) + 1] = write
            self._unowned = _PYTHON
            self.changed()

    def move(self, range_: Range, place: str) -> None:
        """Changes where a range is handled; raises BusError, and nothing has changed, where it can't be there."""
        if place not in PLACES:
            raise BusError(f"{range_}: place {place!r}: one of {', '.join(PLACES)}")
        with self.lock:
            self.check_attached(range_)
            old = range_.place
            if place == old:
                return
            self._check_place(range_, place)
            if place == "kernel":
                self.kernel_places().enter(range_)
            range_._place = place
            try:
                self.changed()
            except BaseException:
                range_._place = old
                if place == "kernel":
                    self.kernel_places().leave(range_)
                raise
            if old == "kernel":
                self.kernel_places().leave(range_)

    def _check_place(self, range_: Range, place: str) -> None:
        if place == "c" and range_.rule is None:
            raise BusError(
                f"{range_}: C has no rule for it: set range.rule, for example to kvmpy.machine.rules.Drop()"
            )
        if range_.rule is not None and not range_.in_python:
            kind = range_.rule.kind
            if place == "python":
                raise BusError(f"{range_}: nobody in Python handles it: its owner is the rule {kind!r}")
            # MSRs are KVM's own there; for the rest the kernel can only do what a Drop does.
            if place == "kernel" and range_.space is not self.msrs and not isinstance(range_.rule, Drop):
                raise BusError(
                    f"{range_}: the kernel would keep its writes from the rule {kind!r}: leave it in place 'c'"
                )
        if place == "ring":
            self.need_rings()

    def check_attached(self, range_: Range) -> None:
        """BusError for a range that is detached, or whose machine is closed."""
        if self.closed:
            raise BusError(f"{range_}: its machine is closed: it can't be changed any more")
        if self.by_id.get(range_.id) is not range_ or range_.space.find(range_.first) is not range_:
            raise BusError(f"{range_}: the range is detached: it can't be changed any more")

    def kernel_places(self) -> KernelPlaces:
        """The kernel's side of the bus. BusError for an engine that isn't in the kernel."""
        if self.kernel is None:
            raise BusError("place kernel: this machine's engine doesn't run in the kernel")
        return self.kernel

    def count(self, id_: int) -> int:
        """Accesses to a range so far; for ids 1 to 4, those that nobody owns in each space."""
        exits = sum(int(vcpu.counts[id_]) for vcpu in self.vcpus) + self._final.get(id_, 0)
        range_ = self.by_id.get(id_)
        if range_ is None:
            return exits
        signals = range_.owner.from_kernel if isinstance(range_.owner, Eventfd) else 0
        return exits + range_.kernel_count + signals

    def changed(self) -> None:
        """The table is out of date: a running machine gets a new one now, another when it starts."""
        self._dirty = True
        if self._live:
            self.publish()

    def publish(self) -> None:
        """Brings the C loop's table up to date; from now on changes do so by themselves."""
        with self.lock:
            self._live = True
            if not self._dirty:
                return
            if self.kernel is not None:
                self.kernel.update_msr_filter()
            table, rules = self._build()
            lib.kvmpy_bus_publish(self.native, table)
            if self._table is not None:
                self._retired.append(self._table)
            self._table = (table, rules)
            self._dirty = False
            self._reclaim()

    def _build(self) -> tuple[Any, list[Rule]]:
        table = lib.kvmpy_table_new([len(space) for space in self.spaces])
        if table == ffi.NULL:
            raise MemoryError("no memory for the table of ranges")
        rules = [self._unowned]
        for space in self.spaces:
            table.unowned[space.number].rule = self._unowned.native
            entries = table.spaces[space.number].ranges
            for at, range_ in enumerate(space):
                entry = entries[at]
                entry.first, entry.last, entry.id = range_.first, range_.last, range_.id
                entry.whole = range_.whole
                rule = range_.active_rule
                entry.rule = rule.native
                rules.append(rule)
        error = lib.kvmpy_table_seal(table)
        assert error == 0, error
        return table, rules

    def _reclaim(self) -> None:
        in_use = {int(ffi.cast("uintptr_t", lib.kvmpy_table_in_use(vcpu))) for vcpu in self.vcpus}
        keep = []
        for table, rules in self._retired:
            if int(ffi.cast("uintptr_t", table)) in in_use:
                keep.append((table, rules))
            else:
                lib.kvmpy_table_free(table)
        self._retired = keep

    def close(self) -> None:
        """Frees the tables; no vCPU may run any more. Closing twice is fine."""
        with self.lock:
            if not self.closed:
                ids = (*range(lib.KVMPY_UNOWNED, FIRST_ID), *self.by_id)
                self._final = {id_: sum(int(vcpu.counts[id_]) for vcpu in self.vcpus) for id_ in ids}
            self.closed = True
            self.vcpus = []
            for range_ in self.by_id.values():
                if isinstance(range_.owner, Eventfd):
                    range_.owner.close()
            if self._table is not None:
                self._retired.append(self._table)
                self._table = None
            self._reclaim()
            if self.native != ffi.NULL:
                lib.kvmpy_bus_free(self.native)
                self.native = ffi.NULL
