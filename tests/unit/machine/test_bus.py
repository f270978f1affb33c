"""Who owns an address: the bus against a dictionary, and what it says of what can't be."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy._native import lib
from kvmpy.errors import BusError, UsageError
from kvmpy.machine.bus import FIRST_ID, Bus, Range, Space
from kvmpy.machine.engine_stub import StubEngine, memory_read, memory_write, port_read, port_write
from kvmpy.machine.machine import Machine
from kvmpy.machine.rules import Count, Drop, Fifo, Latch, Native, Registers


class Device:
    """Remembers what it was asked."""

    name = "device"

    def __init__(self, name: str = "device") -> None:
        self.name = name
        self.calls: list[tuple[Any, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append(("read", offset, size))
        return offset + 1

    def write(self, offset: int, value: int, size: int) -> None:
        self.calls.append(("write", offset, value, size))


def machine(*script: Any, **options: Any) -> Machine:
    return Machine("4K", engine=StubEngine(script), **options)


def answers(made: Machine) -> list[bytes]:
    engine = made.engine
    assert isinstance(engine, StubEngine)
    return engine.answers()


@pytest.fixture
def bus() -> Iterator[Bus]:
    made = Bus()
    yield made
    made.close()


def says(what: str, kind: type[Exception] = BusError) -> pytest.RaisesExc[Exception]:
    return pytest.raises(kind, match="^" + re.escape(what))


# Against a dictionary

STEPS = st.lists(
    st.tuples(st.sampled_from(["attach", "attach", "detach"]), st.integers(0, 40), st.integers(1, 9)),
    max_size=40,
)


@settings(deadline=None)
@given(STEPS)
def test_a_space_is_a_dictionary_of_addresses(steps: list[tuple[str, int, int]]) -> None:
    bus = Bus()
    space, model = bus.ports, dict[int, Range]()
    for what, first, length in steps:
        if what == "attach":
            wanted = range(first, first + length)
            if any(address in model for address in wanted):
                with pytest.raises(BusError, match="overlaps"):
                    space.attach(first, length, Device())
            else:
                made = space.attach(first, length, Device())
                model.update(dict.fromkeys(wanted, made))
        elif first in model:
            gone = model[first]
            del space[first]
            model = {address: range_ for address, range_ in model.items() if range_ is not gone}
        assert [space.find(address) for address in range(52)] == [model.get(address) for address in range(52)]
        assert list(space) == sorted(set(model.values()), key=lambda range_: range_.first)
        assert len(space) == len(set(model.values()))
    bus.close()


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_the_guest_meets_whom_the_dictionary_names(steps: list[tuple[str, int, int]]) -> None:
    """The same on both sides of a change: C looks where Python last attached."""
    script = [port_read(port) for port in range(50)]
    with machine(*script) as made:
        numbers: dict[int, int] = {}
        for step, (what, first, length) in enumerate(steps):
            there = made.ports.find(first)
            if what == "detach" and there is not None:
                made.ports.detach(there)
                numbers = {port: n for port, n in numbers.items() if not there.first <= port <= there.last}
            elif what == "attach" and not any(port in numbers for port in range(first, first + length)):
                made.ports.drop(first, length, value=step)
                numbers.update(dict.fromkeys(range(first, first + length), step))
        made.run()
        assert answers(made) == [bytes([numbers.get(port, 0xFF)]) for port in range(50)]


# What can't be


def test_an_overlap_names_both_ranges(bus: Bus) -> None:
    bus.ports.attach(0x3F0, 16, Device("floppy"))
    with says("new port range 0x3f8-0x3ff (serial) overlaps 0x3f0-0x3ff (floppy)"):
        bus.ports.attach(0x3F8, 8, Device("serial"))
    for first, length in ((0x3EF, 2), (0x3F0, 1), (0x3FF, 1), (0x3FF, 2), (0x300, 0x200), (0x3F0, 16)):
        with pytest.raises(BusError, match=r"overlaps 0x3f0-0x3ff \(floppy\)"):
            bus.ports.attach(first, length, Device())
    assert [str(range_) for range_ in bus.ports] == ["0x3f0-0x3ff (floppy)"]
    bus.ports.attach(0x3EF, 1, Device())
    bus.ports.attach(0x400, 1, Device())
    bus.mmio.attach(0x3F0, 16, Device())


@pytest.mark.parametrize(
    ("space", "first", "length", "limit"),
    [
        ("ports", -1, 1, "0xffff"),
        ("ports", 0, 0, "0xffff"),
        ("ports", 5, -1, "0xffff"),
        ("ports", 0xFFFF, 2, "0xffff"),
        ("ports", 0x10000, 1, "0xffff"),
        ("mmio", (1 << 52) - 1, 2, "0xfffffffffffff"),
        ("msrs", 1 << 32, 1, "0xffffffff"),
        ("hypercalls", 1 << 64, 1, "0xffffffffffffffff"),
    ],
)
def test_addresses_outside_the_space(bus: Bus, space: str, first: int, length: int, limit: str) -> None:
    with pytest.raises(BusError, match=f"space is 0x0-{limit}$"):
        getattr(bus, space).attach(first, length, Device())
    assert len(getattr(bus, space)) == 0


@pytest.mark.parametrize(
    "owner", [object(), None, 5, lambda offset, size: 0, type("Deaf", (), {"read": 3})()]
)
def test_an_owner_that_is_none(bus: Bus, owner: object) -> None:
    with pytest.raises(BusError, match=r"neither read\(offset, size\) nor write\(offset, value, size\)"):
        bus.ports.attach(0x80, 1, owner)
    assert bus.ports.find(0x80) is None


def test_a_rule_too_short_for_its_range(bus: Bus) -> None:
    with says("latch of 4 bytes can't serve 0x80-0x84, 5 bytes"):
        bus.ports.attach(0x80, 5, Latch(4))
    range_ = bus.ports.attach(0x80, 5, Device())
    with says("registers of 2 bytes can't serve 0x80-0x84, 5 bytes"):
        range_.rule = Registers(2)
    assert range_.rule is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Drop(1 << 64), "drop: value 0x10000000000000000 doesn't fit in 64 bits"),
        (lambda: Count(-1), "count: value -0x1 doesn't fit in 64 bits"),
        (lambda: Registers(0), "registers of 0 bytes: 1 to 16777216 are possible"),
        (lambda: Latch((1 << 24) + 1), "latch of 16777217 bytes: 1 to 16777216 are possible"),
        (lambda: Fifo(0), "fifo of 0 bytes: the capacity is a power of two from 1 to 1073741824"),
        (lambda: Fifo(3), "fifo of 3 bytes: the capacity is a power of two"),
        (lambda: Fifo(1 << 40), "fifo of 1099511627776 bytes: the capacity is a power of two"),
        (lambda: Native(None), "native handler: give 'library.so:symbol', a cffi function pointer"),
        (lambda: Native(True), "native handler: give"),
        (lambda: Native(0), "native handler: give"),
    ],
)
def test_rules_that_cant_be(make: Any, message: str) -> None:
    with says(message):
        make()


def test_so_many_ranges_and_no_more(bus: Bus) -> None:
    most = lib.KVMPY_RANGES - FIRST_ID
    for _ in range(most):
        bus.ports.detach(bus.ports.attach(1, 1, Drop()))
    with says(f"0x1-0x1 (drop): a machine can have had {most} ranges at most"):
        bus.ports.attach(1, 1, Drop())
    assert len(bus.ports) == 0


def test_detaching_what_isnt_there(bus: Bus) -> None:
    range_ = bus.ports.attach(0x80, 1, Device("post"))
    bus.ports.detach(range_)
    with says("0x80-0x80 (post): the range is detached"):
        bus.ports.detach(range_)
    with says("no range of the port space owns 0x80-0x80"):
        del bus.ports[0x80]
    other = Bus()
    stranger = other.ports.attach(0x80, 1, Device("stranger"))
    with says("0x80-0x80 (stranger): the range is detached"):
        bus.ports.detach(stranger)
    other.close()


# Places


@pytest.mark.parametrize(
    ("owner", "place", "message"),
    [
        (Device("post"), "c", "0x80-0x80 (post): C has no rule for it: set range.rule"),
        (Device("post"), "nowhere", "0x80-0x80 (post): place 'nowhere': one of python, c, ring, kernel"),
        (Device("post"), "kernel", "place kernel: this machine's engine doesn't run in the kernel"),
        (Drop(), "python", "0x80-0x80 (drop): nobody in Python handles it: its owner is the rule 'drop'"),
        (Latch(1), "kernel", "0x80-0x80 (latch): the kernel would keep its writes from the rule 'latch'"),
    ],
)
def test_a_place_a_range_cant_have(owner: Any, place: str, message: str) -> None:
    with machine(port_write(0x80, b"x")) as made:
        range_ = made.ports.attach(0x80, 1, owner)
        before = range_.place
        with says(message):
            range_.place = place
        assert range_.place == before
        made.run()
        assert range_.count == 1


def test_a_closed_machine_isnt_changed_any_more() -> None:
    made = machine(port_write(0x80, b"x"))
    range_ = made.ports.attach(0x80, 1, Device("post"), rule=Drop())
    made.run()
    made.close()
    closed = "0x80-0x80 (post): its machine is closed"
    with says(closed):
        range_.place = "c"
    with says(closed):
        range_.rule = Count()
    with says(closed):
        made.ports.detach(range_)
    with says("0x81-0x81 (device): the machine is closed"):
        made.ports.attach(0x81, 1, Device())
    assert (range_.place, len(made.ports)) == ("python", 1)
    assert isinstance(range_.rule, Drop) and not isinstance(range_.rule, Count)


def test_counts_stay_readable() -> None:
    made = machine(port_write(0x80, b"x"), port_write(0x81, b"x"), port_read(0x99))
    gone, stays = made.ports.count(0x80), made.ports.attach(0x81, 1, Device())
    with made:
        made.run()
        made.ports.detach(gone)
        assert (gone.count, stays.count) == (1, 1)
    assert (gone.count, stays.count) == (1, 1)
    made.close()
    assert (gone.count, stays.count, made.bus.count(lib.KVMPY_UNOWNED)) == (1, 1, 1)


def test_places_lists_every_range() -> None:
    with machine(port_write(0x80, b"xyz", 1), memory_read(0x1000)) as made:
        post = Device("post")
        made.ports.attach(0x80, 1, post)
        made.mmio.latch(0x1000, 16)
        made.msrs.attach(0x123, 1, Device("msr"))
        made.hypercalls.attach(5, 1, Device("call"), rule=Drop()).place = "ring"
        made.run()
        assert [(r.space.name, str(r), r.place, r.count) for r in made.places()] == [
            ("port", "0x80-0x80 (post)", "python", 3),
            ("MMIO", "0x1000-0x100f (latch)", "c", 1),
            ("MSR", "0x123-0x123 (msr)", "python", 0),
            ("hypercall", "0x5-0x5 (call)", "ring", 0),
        ]
        assert made.places()[0].owner is post
        assert repr(made.places()[0]) == "<port 0x80-0x80 (post) place=python>"


def test_a_rule_set_while_it_serves_counts_from_then_on() -> None:
    with machine(port_read(0x80), port_read(0x81), port_read(0x80)) as made:
        range_ = made.ports.drop(0x80, value=1)

        @made.ports.on_read(0x81)
        def change(offset: int, size: int) -> int:
            range_.rule = Drop(2)
            return 0

        made.run()
        assert answers(made) == [b"\x01", b"\x00", b"\x02"]


# The space as a mapping


def test_slices_and_single_addresses(bus: Bus) -> None:
    device = Device("serial")
    bus.ports[0x3F8:0x400] = device
    bus.ports[0x80] = Drop()
    range_ = bus.ports[0x3F8:0x400]
    assert (range_.first, range_.last, range_.length, range_.owner) == (0x3F8, 0x3FF, 8, device)
    assert bus.ports[0x3FF] is range_ and bus.ports[0x3F9:0x3FB] is range_
    assert bus.ports[0x80].length == 1
    with says("no range of the port space owns 0x3ff-0x400"):
        bus.ports[0x3FF:0x401]
    with says("no range of the port space owns 0x81-0x81"):
        bus.ports[0x81]
    del bus.ports[0x3FA]
    assert bus.ports.find(0x3F8) is None
    bus.mmio[0xFEE00000:0xFEE01000] = Drop()
    assert bus.mmio[0xFEE00FFF].length == 0x1000


@pytest.mark.parametrize("key", [slice(None, 5), slice(5, None), slice(5, 5), slice(6, 5), slice(0, 8, 2)])
def test_slices_that_are_none(bus: Bus, key: slice) -> None:
    for use in (lambda: bus.ports[key], lambda: bus.ports.__setitem__(key, Drop())):
        with pytest.raises(BusError, match=r"give first:last\+1, as in ports\[0x3f8:0x400\]$"):
            use()


def test_names(bus: Bus) -> None:
    class Floppy:
        def read(self, offset: int, size: int) -> int:
            return 0

    assert bus.ports.attach(0, 1, Floppy()).name == "floppy"
    assert bus.ports.attach(1, 1, Device("serial")).name == "serial"
    assert bus.ports.attach(2, 1, Device("serial"), "com2").name == "com2"
    assert bus.ports.latch(3).name == "latch"

    @bus.ports.on_write(4)
    def post_code(offset: int, value: int, size: int) -> None: ...

    assert bus.ports[4].name == "post_code"


# Functions


def test_a_reader_and_a_writer_make_a_pair() -> None:
    seen = []
    with machine(
        port_write(0x81, b"\x05"), port_read(0x80, 2), port_write(0x90, b"x"), port_read(0x91)
    ) as made:

        @made.ports.on_read(0x80, 2)
        def read(offset: int, size: int) -> int:
            seen.append(("read", offset, size))
            return 0x1234

        @made.ports.on_write(0x80, 2)
        def write(offset: int, value: int, size: int) -> None:
            seen.append(("write", offset, value, size))

        made.ports.on_write(0x90)(write)
        made.ports.on_read(0x91)(read_one := lambda offset, size: 7)
        made.run()
        assert len(made.ports) == 3
        assert seen == [("write", 1, 5, 1), ("read", 0, 2), ("write", 0, ord("x"), 1)]
        assert answers(made)[1] == b"\x34\x12"
        assert answers(made)[3] == b"\x07"
        assert read_one(0, 1) == 7


def test_the_missing_half_is_an_empty_bus() -> None:
    with machine(
        port_write(0x80, b"x"), port_read(0x80), port_read(0x81, 4), port_write(0x81, b"abcd")
    ) as made:
        made.ports.on_read(0x80)(lambda offset, size: 1)
        made.ports.on_write(0x81, 4)(lambda offset, value, size: None)
        made.run()
        assert answers(made)[1:3] == [b"\x01", b"\xff" * 4]


def test_a_pair_is_only_made_of_halves_of_the_same_range(bus: Bus) -> None:
    bus.ports.on_read(0x80, 4)(lambda offset, size: 0)
    for again in (bus.ports.on_read(0x80, 4), bus.ports.on_write(0x80, 2), bus.ports.on_write(0x82, 4)):
        with pytest.raises(BusError, match=r"overlaps 0x80-0x83"):
            again(lambda *what: 0)
    bus.ports.attach(0x90, 1, Device())
    with pytest.raises(BusError, match=r"overlaps 0x90-0x90"):
        bus.ports.on_write(0x90)(lambda offset, value, size: None)


def test_a_writer_may_come_while_the_guest_runs() -> None:
    seen = []
    with machine(port_read(0x80), port_write(0x80, b"\x02")) as made:

        @made.ports.on_read(0x80)
        def read(offset: int, size: int) -> int:
            made.ports.on_write(0x80)(lambda offset, value, size: seen.append(value))
            return 0

        made.run()
        assert seen == [2]


# What nobody owns


def test_unowned_accesses_read_all_ones_and_are_counted() -> None:
    script = [
        port_read(0x80),
        port_read(0x80, 4),
        port_write(0x81, b"x"),
        port_read(5, 2, 3),
        memory_read(0x9000, 8),
    ]
    with machine(*script, memory_write(0x9000, b"abc")) as made:
        made.ports.drop(0x99)
        result = made.run()
        assert (
            result.unowned == 1 + 1 + 1 + 3 + 1 + 3
        )  # the last comes in pieces: no register has three bytes
        assert answers(made)[:2] == [b"\xff", b"\xff" * 4]
        assert answers(made)[3:5] == [b"\xff" * 6, b"\xff" * 8]
        assert made.run().unowned == 0


def test_strict_names_the_address_and_rip() -> None:
    with machine(port_write(0x84, b"\x05\x06"), strict=True) as made:
        made.cpus[0].regs.rip = 0x7C12
        result = made.run()
        assert result.reason == "unowned"
        assert result.detail == "2 byte write of 0x605, port 0x84, at rip 0x7c12: nobody owns it (strict)"
        assert result.crash is not None and result.crash.registers["rip"] == 0x7C12
    for exit_, what in (
        (port_read(0x84, 1, 3), "1 byte read, port 0x84"),
        (memory_read(0xFE001000, 4), "4 byte read, MMIO address 0xfe001000"),
        (memory_write(0xFE001000, b"\x07"), "1 byte write of 0x7, MMIO address 0xfe001000"),
    ):
        with machine(exit_, strict=True) as made:
            assert made.run().detail.startswith(what + ", at rip 0x0")


def test_strict_leaves_owned_ranges_alone() -> None:
    device = Device()
    with machine(port_write(0x84, b"\x05"), port_read(0x85), strict=True) as made:
        made.ports.attach(0x84, 1, device)
        made.ports.drop(0x85)
        assert made.run().reason == "halt"
        assert device.calls == [("write", 0, 5, 1)]


# Rings are set up before, and a table that is replaced is freed


def test_old_tables_are_freed() -> None:
    with machine(*[port_read(0x80)] * 50) as made:
        spare = made.ports.drop(0x99)

        @made.ports.on_read(0x80)
        def change(offset: int, size: int) -> int:
            spare.rule = Drop(made.bus.count(spare.id))
            return 0

        made.run()
        gc.collect()
        assert len(made.bus._retired) <= 2


def test_rings_arent_changed_while_the_machine_runs() -> None:
    with machine(port_read(0x80)) as made:
        made.ports.on_read(0x80)(lambda offset, size: made.log(16) or 0)
        with says("rings are set up before the machine runs", UsageError):
            made.run()


def test_spaces_have_their_names(bus: Bus) -> None:
    names = [space.name for space in bus.spaces]
    assert names == ["port", "MMIO", "MSR", "hypercall"]
    assert all(isinstance(space, Space) for space in bus.spaces)
