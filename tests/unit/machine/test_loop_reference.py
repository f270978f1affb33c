"""The run loop against a second, plain description of what it should do: always equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from loop_reference import (
    ALL_ONES,
    MMIO,
    PIO,
    Access,
    Boom,
    Model,
    Plan,
    Spec,
    World,
    can_move,
    native_rule,
)

from kvmpy._native import ffi, lib
from kvmpy.errors import DeviceError
from kvmpy.machine.bus import Range
from kvmpy.machine.engine_stub import KVM_EXIT_IO, KVM_EXIT_MMIO, StubEngine, StubExit
from kvmpy.machine.machine import Machine
from kvmpy.machine.ring import NOT_AN_ACCESS
from kvmpy.machine.rules import Drop, Fifo, Native, Registers, Rule

if TYPE_CHECKING:
    from kvmpy.machine.cpu import Cpu

UNOWNED: int = lib.KVMPY_UNOWNED

SPAN = 48
"""Addresses of a neighbourhood, small enough for ranges and accesses to meet."""
BASES = {PIO: (0, 0x3E0, 0x10000 - SPAN), MMIO: (0x1000_0000, 0xFFFF_FFE0, (1 << 52) - SPAN)}
MASKS = ("readable", "writable", "clear_write", "clear_read")


@ffi.callback("kvmpy_handler")  # type: ignore[attr-defined, untyped-decorator]
def _handler(context: Any, access: Any) -> int:
    verdict, access.value = native_rule(access.offset, access.value, access.size, bool(access.is_write))
    return verdict


class Half:
    """A device of which only some methods exist."""

    def __init__(self, world: World, name: str, kind: str) -> None:
        if kind != "wo":
            self.read = lambda offset, size: world.read(name, offset, size)
        if kind != "ro":
            self.write = lambda offset, value, size: world.write(name, offset, value, size)
        if kind == "whole":
            self.read_string = lambda *what: world.read_string(name, *what)
            self.write_string = lambda *what: world.write_string(name, *what)


# Tables and accesses, drawn


def masks(draw: st.DrawFn, length: int) -> dict[str, bytes]:
    mask = st.lists(st.sampled_from([0x00, 0xFF, 0x0F, 0xA5]), min_size=length, max_size=length)
    found = {name: bytes(draw(mask)) for name in MASKS}
    effects = st.lists(st.sampled_from([0, 0, 0, 1, 2, 3]), min_size=length, max_size=length)
    return {**found, "to_python": bytes(draw(effects))}


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[Spec], list[Access]]:
    """Ranges in one neighbourhood of each space, and accesses there."""
    bases = {space: draw(st.sampled_from(choices)) for space, choices in BASES.items()}
    ranges = [spec for space, base in bases.items() for spec in draw(specs(space, base))]
    if bases[PIO]:  # a word at the last port must not come here
        ranges.append(draw(one_spec("first", PIO, 0, 4)))
    return ranges, draw(st.lists(accesses(bases, ranges), min_size=1, max_size=25))


@st.composite
def specs(draw: st.DrawFn, space: int, base: int) -> list[Spec]:
    found: list[Spec] = []
    at = base + draw(st.integers(0, 6))
    while at < base + SPAN:
        length = min(draw(st.integers(1, 12)), base + SPAN - at)
        found.append(draw(one_spec(f"{'pm'[space]}{len(found)}", space, at, length)))
        at += length + draw(st.sampled_from([0, 0, 1, 3, 20, 40]))
    return found


@st.composite
def one_spec(draw: st.DrawFn, name: str, space: int, first: int, length: int) -> Spec:
    kind = draw(st.sampled_from(["drop", "registers", "latch", "fifo", "native", "python"]))
    device = draw(st.sampled_from(["rw", "ro", "wo", "whole"]))
    rest: dict[str, Any] = {}
    if kind in ("registers", "latch"):
        rest["memory"] = draw(st.binary(min_size=length, max_size=length))
        zero, ones = bytes(length), b"\xff" * length
        rest["masks"] = (
            masks(draw, length)
            if kind == "registers"
            else {
                "readable": ones,
                "writable": ones,
                "clear_write": zero,
                "clear_read": zero,
                "to_python": zero,
            }
        )
        kind = "registers"
    elif kind == "fifo":
        rest["capacity"] = draw(st.sampled_from([1, 2, 8, 16]))
        rest["waiting"] = draw(st.binary(max_size=rest["capacity"]))
    if kind in ("drop", "fifo"):
        rest["value"] = draw(st.sampled_from([ALL_ONES, 0, 0x1122334455667788]))
    if kind == "python":
        place = draw(st.sampled_from(["python", "python", "ring"]))
    else:
        device = draw(st.sampled_from(["", device]))
        place = draw(st.sampled_from(["c", "c", "ring", "python" if device else "c"]))
    return Spec(name, space, first, length, kind, place, device, **rest)


@st.composite
def accesses(draw: st.DrawFn, bases: dict[int, int], ranges: list[Spec]) -> Access:
    space = draw(st.sampled_from([PIO, PIO, MMIO]))
    firsts = [spec.first for spec in ranges if spec.space == space and spec.first >= bases[space]]
    somewhere = st.integers(bases[space], bases[space] + SPAN - 1)
    address = draw(st.sampled_from(firsts) | somewhere if firsts else somewhere)
    if space == PIO:
        size = draw(st.sampled_from([1, 2, 4]))
        count = draw(st.sampled_from([1, 1, 2, 5]))
    else:
        size, count = draw(st.integers(1, 8)), 1
    length = size * count
    return Access(space, address, size, count, draw(st.none() | st.binary(min_size=length, max_size=length)))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    number = st.integers(0, 15)
    kind = st.sampled_from(["raise", "none", "negative", "large"])
    place = st.sampled_from(["python", "c", "ring"])
    return Plan(
        draw(st.dictionaries(number, kind, max_size=6)),
        frozenset(draw(st.sets(number, max_size=12))),
        draw(st.dictionaries(number, st.tuples(st.none() | number, place), max_size=8)),
    )


# Both ways


def rule_of(spec: Spec) -> Rule | None:
    if spec.kind == "drop":
        return Drop(spec.value)
    if spec.kind == "registers":
        memory = bytearray(spec.memory) + bytes(Registers.PAD)
        return Registers(spec.length, memory, **spec.masks)
    if spec.kind == "fifo":
        fifo = Fifo(spec.capacity, spec.value)
        assert fifo.put(spec.waiting) == len(spec.waiting)
        return fifo
    return Native(_handler) if spec.kind == "native" else None


def attach(machine: Machine, spec: Spec, world: World) -> Range:
    space = (machine.ports, machine.mmio)[spec.space]
    rule = rule_of(spec)
    if spec.device:
        made = space.attach(spec.first, spec.length, Half(world, spec.name, spec.device), spec.name, rule)
        made.place = spec.place
    else:
        made = space.attach(spec.first, spec.length, rule, spec.name)
        if spec.place == "ring":
            made.place = "ring"
    return made


def play_back(access: Access) -> StubExit:
    reason = (KVM_EXIT_IO, KVM_EXIT_MMIO)[access.space]
    return StubExit(reason, access.address, access.size, access.count, access.data)


class Real:
    """The same through the machine, and what there is to compare."""

    def __init__(
        self, specs: list[Spec], script: list[Access], plan: Plan, trace: bool, ring: tuple[int, str]
    ) -> None:
        self.world = World(plan)
        self.world.move = self._move
        self.engine = StubEngine([play_back(access) for access in script])
        self.machine = Machine("4K", engine=self.engine)
        self.records: list[tuple[int, int, int, bool, str | None]] = []
        self.machine.log(*ring, everything=trace, sink=self.drain)
        self.specs = specs
        self.ranges = [attach(self.machine, spec, self.world) for spec in specs]
        self.names = {range_.id: range_.name for range_ in self.ranges}

    def _move(self, which: int | str, place: str) -> None:
        names = [spec.name for spec in self.specs]
        number = names.index(which) if isinstance(which, str) else which % len(names)
        if can_move(self.specs[number], place):
            self.ranges[number].place = place

    def drain(self, cpu: Cpu) -> None:
        for record in self.machine.rings[cpu.index].records():
            if record.space != NOT_AN_ACCESS:
                name = self.names.get(record.range)
                self.records.append((record.address, record.value, record.size, record.is_write, name))

    def run(self, budget: int | None) -> None:
        """To the end, however many runs it takes."""
        while True:
            try:
                result = self.machine.run(max_exits=budget)
            except (Boom, DeviceError) as error:
                assert "on vCPU 0" in error.__notes__[0]
                if self.world.skipped:
                    self.machine.skip()
                continue
            if result.reason == "halt":
                return
            assert result.reason == "max-exits"

    def memory(self, range_: Range) -> bytes:
        return bytes(range_.rule.memory) if isinstance(range_.rule, Registers) else b""


def compare(real: Real, model: Model, script: list[Access]) -> None:
    answers = [model.run(access) for access in script]
    assert real.world.calls == model.world.calls
    assert real.engine.answers() == answers
    assert sum(real.machine.cpus[0].exits) == len(script) + 1
    for range_ in real.ranges:
        expected = model.ranges[range_.name]
        assert range_.count == expected.count, range_
        assert real.memory(range_) == bytes(expected.memory), range_
        assert range_.place == expected.place
        if isinstance(range_.rule, Fifo):
            assert (range_.rule.take(), range_.rule.dropped) == (bytes(expected.written), expected.dropped)
    assert real.machine.bus.count(UNOWNED) + real.machine.bus.count(UNOWNED + 1) == model.unowned
    real.drain(real.machine.cpus[0])
    assert real.records == model.records
    assert real.machine.rings[0].dropped == 0


@settings(max_examples=250, deadline=None)
@given(
    machines(),
    plans(),
    st.booleans(),
    st.sampled_from([(1, "lossless"), (4, "lossless"), (1 << 12, "counted")]),
    st.none() | st.integers(1, 8),
)
def test_the_loop_does_what_the_reference_does(
    machine: tuple[list[Spec], list[Access]],
    plan: Plan,
    trace: bool,
    ring: tuple[int, str],
    budget: int | None,
) -> None:
    specs, script = machine
    real = Real(specs, script, plan, trace, ring)
    with real.machine:
        real.run(budget)
        compare(real, Model(specs, World(plan), trace), script)
