"""One guest on several engines in step: they must do the same, exit by exit.

Each engine runs the guest on a machine of its own, from one exit to the next. After each the exits are compared, what
the guest has printed, and (after every Nth) its registers and memory. The first difference ends it.

What is compared: port and memory accesses with their sizes and values, element by element (whether ``rep outs`` was one
exit or many is the engine's own business), other exits by reason; general registers, RIP, RFLAGS, segments,
descriptor tables, CR0-CR8 and EFER; all of RAM; the output; how it ended. All machines have the same CPUID.

What isn't, because processors may differ in it: RFLAGS.AF, undefined after logical instructions and of no use but to
BCD arithmetic, and RFLAGS.RF, neither in the register nor where an exception has saved it in memory; the accessed and
dirty bits in page tables; of a segment that can't be used all but that, in 64-bit code all of DS, ES, FS and GS but
the bases of the latter two, and in real mode whether CS is of a code or a data type. Nor MSRs but EFER, the FPU, and
the registers of a guest that crashed. Registers and memory wait for the next exit where engines stop at different
places: within ``rep outs`` and its like, and behind an access to memory, which the translate engine leaves at the end
of a block.

``tolerate={"time"}`` is for guests that look at clocks or wait for interrupts. Then accesses to the PIT, port 0x61, the
RTC, the ACPI timer, the worker's status, the interrupt controllers and halts are left out of the sequence, and neither
registers nor memory are compared: what is left is all else the guest does to its devices, its output and its end.
"""

from __future__ import annotations

import time
from functools import cache

from kvmpy.errors import KvmpyError, UsageError
from kvmpy.machine import exits
from kvmpy.machine.machine import check_limits
from kvmpy.machine.ring import NOT_AN_ACCESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from kvmpy.machine.machine import Machine
    from kvmpy.machine.result import Result
    from kvmpy.machine.ring import Record

    Event = tuple[int, int, int, bool, int]  # space, address, size, is it a write, value

PAGE = 4096
RING = 1 << 16
PAGES_SHOWN = 8
SPACES = ("port", "MMIO", "MSR", "hypercall")
TOLERANCES = ("time",)
TIME_PORTS = (
    (0x20, 0x21), (0x40, 0x43), (0x61, 0x61), (0x70, 0x71), (0xA0, 0xA1), (0x4D0, 0x4D1), (0x5CC, 0x5CF),
    (0x608, 0x60B),
)  # fmt: skip
TIME_MEMORY = ((0xFEC00000, 0xFEC00FFF), (0xFEE00000, 0xFEE00FFF))
TIME_EXITS = (5, 7, 10)  # HLT, IRQ_WINDOW_OPEN, INTR
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
SEGMENT_FIELDS = ("selector", "base", "limit", "type", "s", "dpl", "present", "avl", "l", "db", "g")
CONTROLS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
PROTECTION = 1 << 0  # of CR0
ACCESSED_DIRTY = 0x60
FLAGS_LEFT_OUT = 1 << 4 | 1 << 16  # AF, RF
FLAGS_ALWAYS = 1 << 1
FLAGS_FIXED = FLAGS_ALWAYS | 1 << 3 | 1 << 5 | 1 << 15 | 0xFFC00000
"""What saved flags look like: bit 1 is set, the others of these are clear (SDM vol. 1, 3.4.3)."""
STRING = frozenset((*range(0x6C, 0x70), *range(0xA4, 0xA8), *range(0xAA, 0xB0)))
PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3, *range(0x40, 0x50)))
MMIO = 1


class NotComparable(KvmpyError):
    """There is nothing to compare: only one engine can run the guest."""


class Side:
    """One engine's run. ``machine`` is loaded and hasn't run; ``output`` is a bytearray that its devices fill."""

    def __init__(self, name: str, machine: Machine, output: bytearray) -> None:
        if len(machine.cpus) != 1:
            raise NotComparable(
                f"{name}: {len(machine.cpus)} vCPUs: no two runs of them are alike, give the guest one"
            )
        self.name = name
        self.machine = machine
        self.output = output
        self.events: list[Event] = []
        self.result: Result | None = None
        self.rip_before = 0
        machine.log(RING, "counted")

    @property
    def ended(self) -> bool:
        """Whether the guest has come to its end."""
        return self.result is not None

    def step(self, deadline: float) -> None:
        """On to the next exit; its events are added to ``events``."""
        left = deadline - time.monotonic()
        result = self.machine.run(timeout=max(left, 0.001), max_exits=1)
        for record in self.machine.rings[0].records():
            self.events.append(_event(record))
        if result.reason != "max-exits":
            self.result = result

    def registers(self) -> dict[str, int]:
        """What is compared of the registers, by name."""
        cpu = self.machine.cpus[0]
        found = dict(cpu.regs.items())
        found["rflags"] &= ~FLAGS_LEFT_OUT
        sregs = cpu.sregs
        long = sregs.efer & 1 << 10 and sregs.cs.l
        found.update({name: getattr(sregs, name) for name in CONTROLS})
        for table in ("gdt", "idt"):
            found[f"{table}.base"] = getattr(sregs, table).base
            found[f"{table}.limit"] = getattr(sregs, table).limit
        for name in SEGMENTS:
            segment = getattr(sregs, name)
            if long and name in ("ds", "es", "fs", "gs"):
                if name in ("fs", "gs"):
                    found[f"{name}.base"] = segment.base
                continue
            found[f"{name}.unusable"] = int(bool(segment.unusable) or not segment.present)
            if not found[f"{name}.unusable"]:
                found.update({f"{name}.{field}": getattr(segment, field) for field in SEGMENT_FIELDS})
        if not sregs.cr0 & PROTECTION:
            found.pop("cs.type", None)
        return found

    def amid(self) -> bool:
        """Whether it stands within a repeated string instruction."""
        from kvmpy.machine.crash import code_at, linear_rip

        cpu = self.machine.cpus[0]
        code = code_at(cpu, linear_rip(cpu))
        prefixes = code[: len(code) - len(code.lstrip(bytes(PREFIXES)))]
        rest = code[len(prefixes) :]
        return bool({0xF2, 0xF3} & set(prefixes)) and rest[:1] != b"" and rest[0] in STRING

    def code(self) -> list[str]:
        """The instructions at RIP."""
        from kvmpy.machine.crash import code_at, linear_rip, mode_of
        from kvmpy.machine.disassembly import disassemble

        cpu = self.machine.cpus[0]
        return disassemble(code_at(cpu, linear_rip(cpu)), linear_rip(cpu), mode_of(cpu))


class Difference:
    """Where the engines part: ``what`` ("exit", "registers", "memory", "output", "end"), after how many ``events`` in
    common, the last of which is ``before``; ``sides`` (two names), ``values`` (what each says), ``registers`` (name to
    both values), ``pages`` ((address of the first bytes that differ, 16 bytes of each)), ``page_count``, ``code`` (each
    one's next instructions)."""

    def __init__(self, what: str, first: Side, second: Side, events: int, before: str) -> None:
        self.what = what
        self.events = events
        self.before = before
        self.sides = (first.name, second.name)
        self.values: tuple[str, str] = ("", "")
        self.registers: dict[str, tuple[int, int]] = {}
        self.pages: list[tuple[int, bytes, bytes]] = []
        self.page_count = 0
        self.code = (first.code(), second.code())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "what": self.what,
            "after_events": self.events,
            "last_in_common": self.before,
            "sides": list(self.sides),
            "values": list(self.values),
            "registers": {name: list(pair) for name, pair in self.registers.items()},
            "pages": [[gpa, mine.hex(), theirs.hex()] for gpa, mine, theirs in self.pages],
            "page_count": self.page_count,
            "code": [list(lines) for lines in self.code],
        }


class Lockstep:
    """Runs ``sides`` (two or more) in step.

    ``every`` events registers and memory are compared (and at the end); ``timeout`` seconds and ``max_events`` for all
    of it; ``tolerate``: of TOLERANCES. After run() ``events`` says how many were compared, and ``unfinished`` why that
    wasn't all.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        every: int = 1,
        tolerate: Iterable[str] = (),
        timeout: float = 60.0,
        max_events: int = 1_000_000,
        progress: Callable[[int], object] = lambda events: None,
    ) -> None:
        if len(sides) < 2:
            raise NotComparable("lock step needs two engines: only one can run this guest here")
        if every < 1:
            raise UsageError(f"every {every} events: at least 1")
        check_limits(timeout, max_events)
        unknown = set(tolerate) - set(TOLERANCES)
        if unknown:
            raise UsageError(f"tolerate {', '.join(sorted(unknown))}: there is {', '.join(TOLERANCES)}")
        self.sides = list(sides)
        self.every = every
        self.time = "time" in set(tolerate)
        self.timeout = timeout
        self.max_events = max_events
        self.progress = progress
        self.events = 0
        self.states = 0
        """Times that registers and memory were compared."""
        self.unfinished = ""
        self._seen: dict[str, list[Event]] = {side.name: [] for side in sides}

    def run(self) -> Difference | None:
        """To the first difference, or to the end: None."""
        deadline = time.monotonic() + self.timeout
        compared_at = 0
        while True:
            target = self._advance(deadline)
            difference = self._compare_events(target)
            if difference is not None:
                return difference
            self.events = target
            self.progress(target)
            if self._out_of_time():
                return None
            over = any(side.ended for side in self.sides)
            if over or self.events - compared_at >= self.every:
                compared_at = self.events
                difference = self._compare_end() if over else self._compare_state()
                if over or difference is not None:
                    return difference

    def _out_of_time(self) -> bool:
        late = [
            side.name for side in self.sides if side.result is not None and side.result.reason == "timeout"
        ]
        if late:
            self.unfinished = (
                f"after {self.timeout:g} s, {self.events} events, {' and '.join(late)} hadn't ended"
            )
        elif self.events >= self.max_events:
            self.unfinished = f"after {self.events} events they hadn't ended"
        return bool(self.unfinished)

    def _advance(self, deadline: float) -> int:
        """Every side one exit on, and those behind until all have had as many events; how many that is."""
        for side in self.sides:
            self._step(side, deadline)
        while True:
            furthest = max(len(self._kept(side)) for side in self.sides)
            behind = [s for s in self.sides if len(self._kept(s)) < furthest and not s.ended]
            if not behind:
                # One that ended before the others' next event has no more to say.
                return min(furthest, min(len(self._kept(side)) for side in self.sides))
            for side in behind:
                self._step(side, deadline)

    def _step(self, side: Side, deadline: float) -> None:
        if side.ended:
            return
        side.rip_before = int(side.machine.cpus[0].regs.rip)
        kept = self._kept(side)
        already = len(kept)
        while not side.ended and len(kept) == already:
            side.step(deadline)
            kept += [event for event in side.events if not (self.time and _about_time(event))]
            side.events.clear()

    def _kept(self, side: Side) -> list[Event]:
        return self._seen[side.name]

    def _compare_events(self, target: int) -> Difference | None:
        first = self.sides[0]
        for second in self.sides[1:]:
            mine, theirs = self._kept(first), self._kept(second)
            for at in range(self.events, target):
                if mine[at] != theirs[at]:
                    return self._differs("exit", first, second, at, describe(mine[at]), describe(theirs[at]))
            short, long = sorted((first, second), key=lambda side: len(self._kept(side)))
            late = short.result is not None and short.result.reason == "timeout"
            if short.ended and not late and len(self._kept(long)) > len(self._kept(short)):
                texts = {short.name: _ending(short), long.name: describe(self._kept(long)[target])}
                return self._differs("end", first, second, target, texts[first.name], texts[second.name])
            if first.output != second.output:
                at = _first_difference(first.output, second.output)
                values = [f"…{bytes(side.output[max(at - 16, 0) : at + 16])!r}" for side in (first, second)]
                return self._differs("output", first, second, target, *values)
        return None

    def _compare_end(self) -> Difference | None:
        first = self.sides[0]
        for second in self.sides[1:]:
            mine, theirs = _ending(first), _ending(second)
            if mine != theirs:
                return self._differs("end", first, second, self.events, mine, theirs)
        if any(side.result is not None and side.result.reason == "crash" for side in self.sides):
            return None
        return self._compare_state()

    def _compare_state(self) -> Difference | None:
        if self.time or self._apart():
            return None
        self.states += 1
        first = self.sides[0]
        mine = first.registers()
        for second in self.sides[1:]:
            theirs = second.registers()
            wrong = {
                name: (mine.get(name, 0), theirs.get(name, 0))
                for name in {**mine, **theirs}
                if mine.get(name) != theirs.get(name)
            }
            if wrong:
                difference = self._differs("registers", first, second, self.events)
                difference.registers = wrong
                return difference
            pages = differing_pages(first.machine, second.machine)
            if pages:
                difference = self._differs("memory", first, second, self.events)
                difference.page_count = len(pages)
                difference.pages = [_page(first, second, gpa) for gpa in pages[:PAGES_SHOWN]]
                return difference
        return None

    def _apart(self) -> bool:
        """Whether the sides stand at different places and may: the next comparison will do."""
        if len({int(side.machine.cpus[0].regs.rip) for side in self.sides}) == 1:
            return False
        last = self._kept(self.sides[0])[self.events - 1] if self.events else None
        return (last is not None and last[0] == MMIO) or any(side.amid() for side in self.sides)

    def _differs(
        self, what: str, first: Side, second: Side, events: int, mine: str = "", theirs: str = ""
    ) -> Difference:
        before = describe(self._kept(first)[events - 1]) if events else "nothing yet"
        difference = Difference(what, first, second, events, before)
        difference.values = (mine, theirs)
        if what in ("exit", "end", "output"):
            left, right = first.registers(), second.registers()
            difference.registers = {
                name: (left.get(name, 0), right.get(name, 0))
                for name in {**left, **right}
                if left.get(name) != right.get(name)
            }
        return difference


def _event(record: Record) -> Event:
    if record.space == NOT_AN_ACCESS:
        return (NOT_AN_ACCESS, record.address, 0, False, 0)
    return (record.space, record.address, record.size, record.is_write, record.value)


def _about_time(event: Event) -> bool:
    space, address = event[:2]
    if space == NOT_AN_ACCESS:
        return address in TIME_EXITS
    ranges = TIME_PORTS if space == 0 else TIME_MEMORY if space == 1 else ()
    return any(first <= address <= last for first, last in ranges)


def describe(event: Event) -> str:
    """An event for people."""
    space, address, size, is_write, value = event
    if space == NOT_AN_ACCESS:
        return str(exits.name_of(address))
    what = "write of" if is_write else "read that gave"
    return f"{SPACES[space]} {address:#x}: {size} byte {what} {value:#x}"


def _ending(side: Side) -> str:
    result = side.result
    if result is None:
        return "it goes on"
    status = "" if result.status is None else f", status {result.status}"
    what = f": {result.crash.what}" if result.crash is not None else ""
    return f"{result.reason}{status}{what}"


def _first_difference(mine: bytes | bytearray, theirs: bytes | bytearray) -> int:
    for at, (left, right) in enumerate(zip(mine, theirs, strict=False)):
        if left != right:
            return at
    return min(len(mine), len(theirs))


# Memory


def differing_pages(first: Machine, second: Machine) -> list[int]:
    """Guest physical addresses of the pages whose contents differ; NotComparable if the memories aren't alike."""
    slots = [[(slot.gpa, slot.size) for slot in machine.memory.slots] for machine in (first, second)]
    if slots[0] != slots[1]:
        raise NotComparable("the machines' memories don't lie at the same addresses")
    found = []
    for gpa, size in slots[0]:
        mine, theirs = first.memory.address(gpa, size), second.memory.address(gpa, size)
        if _same(mine, theirs, size):
            continue
        pages = [at for at in range(0, size, PAGE) if not _same(mine + at, theirs + at, PAGE)]
        found += [gpa + at for at in pages if not _harmless(first, second, gpa + at)]
    return found


@cache
def _memcmp() -> Any:
    import ctypes

    memcmp = ctypes.CDLL(None).memcmp
    memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return memcmp


def _same(mine: int, theirs: int, length: int) -> bool:
    return bool(_memcmp()(mine, theirs, length) == 0)


def _harmless(first: Machine, second: Machine, gpa: int) -> bool:
    """A page in which nothing differs but what processors may do differently."""
    mine, theirs = first.memory.read(gpa, PAGE), second.memory.read(gpa, PAGE)
    tables = gpa in table_pages(first)
    for at in range(0, PAGE, 4):
        left, right = (int.from_bytes(page[at : at + 4], "little") for page in (mine, theirs))
        changed = left ^ right
        if changed & ~(ACCESSED_DIRTY if tables else FLAGS_LEFT_OUT):
            return False
        if changed and not tables and left & FLAGS_FIXED != FLAGS_ALWAYS:
            return False
    return True


def table_pages(machine: Machine) -> set[int]:
    """The pages that hold the vCPU's page tables, by what CR3 leads to."""
    sregs = machine.cpus[0].sregs
    if not sregs.cr0 >> 31:
        return set()
    long, pae, five = sregs.efer & 1 << 10, sregs.cr4 & 1 << 5, sregs.cr4 & 1 << 12
    levels = 5 if long and five else 4 if long else 3 if pae else 2
    size = 4 if levels == 2 else 8
    pages: set[int] = set()
    waiting = [(sregs.cr3 & ~0xFFF, levels)]
    while waiting:
        gpa, level = waiting.pop()
        if gpa in pages or gpa not in machine.memory:
            continue
        pages.add(gpa)
        if level > 1:
            table = machine.memory.read(gpa, PAGE)
            for at in range(0, PAGE, size):
                entry = int.from_bytes(table[at : at + size], "little")
                if entry & 1 and not entry & 0x80:
                    waiting.append((entry & 0xFFFFFFFFFF000, level - 1))
    return pages


def _page(first: Side, second: Side, gpa: int) -> tuple[int, bytes, bytes]:
    mine, theirs = first.machine.memory.read(gpa, PAGE), second.machine.memory.read(gpa, PAGE)
    at = _first_difference(mine, theirs) & ~0xF
    return gpa + at, mine[at : at + 16], theirs[at : at + 16]


# Machines that are alike


def same_cpuid(machines: Sequence[Machine]) -> None:
    """Gives all the processor that each of them can be: a plain 64-bit one, of the first's vendor, with no hypervisor
    but kvmpy's own, whose hypercalls are made by the doorbell everywhere."""
    from kvmpy.machine.hypercalls import DOORBELL
    from kvmpy.x86.cpuid import CpuidTable
    from kvmpy.x86.persona import announce

    table = CpuidTable.preset("minimal", machines[0].default_cpuid(0))
    for machine in machines[1:]:
        other = machine.default_cpuid(0)
        table.hide(*(name for name in table.features() if name != "hypervisor" and not other.has(name)))
    for machine in machines:
        mine = machine.cpus[0].cpuid
        for leaf in {leaf for leaf, _ in mine}:
            del mine[leaf]
        for key in table:
            mine[key] = table.get(*key)
        if machine.hypercall_registry is not None:
            announce(mine, DOORBELL, instruction=False)
