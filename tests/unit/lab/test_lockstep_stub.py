"""kvmpy.lab.lockstep on guests that are only played: sequences of exits that agree and that don't."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from kvmpy.errors import UsageError
from kvmpy.lab.lockstep import Difference, Lockstep, NotComparable, Side, describe
from kvmpy.machine.engine_stub import StubEngine, StubExit, memory_write, port_read, port_write
from kvmpy.machine.machine import Machine


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


class Port:
    """Prints what is written to it, and reads as told."""

    def __init__(self, output: bytearray, answer: int) -> None:
        self.output, self.answer = output, answer

    def read(self, offset: int, size: int) -> int:
        return self.answer

    def write(self, offset: int, value: int, size: int) -> None:
        self.output.append(value & 0xFF)


def side(
    stack: ExitStack, name: str, script: Sequence[StubExit], answer: int = 0x60, memory: int = 0
) -> Side:
    machine = stack.enter_context(Machine("64K", engine=StubEngine(script)))
    output = bytearray()
    machine.ports.attach(0x3F8, 8, Port(output, answer))
    machine.memory.write_u8(0x2345, memory)
    return Side(name, machine, output)


def found(first: Side, second: Side, **options: object) -> tuple[Difference | None, Lockstep]:
    lockstep = Lockstep([first, second], **options)  # type: ignore[arg-type]
    return lockstep.run(), lockstep


SCRIPT = [
    port_write(0x3F8, b"h"),
    port_read(0x3FD),
    port_write(0x3F8, b"i"),
    memory_write(0xFE000000, b"abcd"),
]


def test_they_agree(stack: ExitStack) -> None:
    difference, lockstep = found(side(stack, "a", SCRIPT), side(stack, "b", SCRIPT))
    assert difference is None and lockstep.unfinished == ""
    assert lockstep.events == 5  # and the halt
    assert lockstep.states == 5


def test_every_so_many(stack: ExitStack) -> None:
    _, lockstep = found(side(stack, "a", SCRIPT), side(stack, "b", SCRIPT), every=2)
    assert lockstep.states == 3


def test_one_bit_of_a_device(stack: ExitStack) -> None:
    difference, _ = found(side(stack, "a", SCRIPT), side(stack, "b", SCRIPT, answer=0x61))
    assert difference is not None
    assert (difference.what, difference.events, difference.sides) == ("exit", 1, ("a", "b"))
    assert difference.before == "port 0x3f8: 1 byte write of 0x68"
    assert difference.values == (
        "port 0x3fd: 1 byte read that gave 0x60",
        "port 0x3fd: 1 byte read that gave 0x61",
    )
    assert difference.as_dict()["what"] == "exit"


@pytest.mark.parametrize(
    "other",
    [
        port_write(0x3F9, b"i"),
        port_write(0x3F8, b"j"),
        port_write(0x3F8, b"i\0"),
        port_read(0x3F8),
        memory_write(0x3F8, b"i"),
    ],
)
def test_another_access(stack: ExitStack, other: StubExit) -> None:
    script = [*SCRIPT[:2], other, *SCRIPT[3:]]
    difference, _ = found(side(stack, "a", SCRIPT), side(stack, "b", script))
    assert difference is not None
    assert (difference.what, difference.events) == ("exit", 2)


def test_strings_are_compared_by_the_element(stack: ExitStack) -> None:
    once = [port_write(0x3F8, b"hello", size=1), port_read(0x3FD)]
    single = [*(port_write(0x3F8, bytes([byte])) for byte in b"hello"), port_read(0x3FD)]
    difference, lockstep = found(side(stack, "a", once), side(stack, "b", single))
    assert difference is None
    assert lockstep.events == 7
    assert lockstep.states == 3
    wrong = [*single[:3], port_write(0x3F8, b"L"), *single[4:]]
    difference, _ = found(side(stack, "a", once), side(stack, "b", wrong))
    assert difference is not None and difference.events == 3


def test_one_ends_first(stack: ExitStack) -> None:
    difference, _ = found(side(stack, "a", SCRIPT), side(stack, "b", SCRIPT[:2]))
    assert difference is not None
    assert (difference.what, difference.events) == ("exit", 2)  # an access there, the halt here
    assert difference.values[1] == "HLT"


def test_it_ends_otherwise(stack: ExitStack) -> None:
    first, second = side(stack, "a", SCRIPT), side(stack, "b", SCRIPT)
    second.machine.on_exit("HLT")(lambda exit_: second.machine.stop(3, "exit"))
    difference, _ = found(first, second)
    assert difference is not None
    assert difference.what == "end"
    assert difference.values == ("halt, status 0", "exit, status 3")


def test_memory(stack: ExitStack) -> None:
    difference, _ = found(side(stack, "a", SCRIPT, memory=1), side(stack, "b", SCRIPT, memory=3))
    assert difference is not None
    assert (difference.what, difference.events, difference.page_count) == ("memory", 1, 1)
    gpa, mine, theirs = difference.pages[0]
    assert gpa == 0x2340 and mine[5] == 1 and theirs[5] == 3


def test_flags_that_an_exception_saved_may_differ_in_rf(stack: ExitStack) -> None:
    first, second = side(stack, "a", SCRIPT), side(stack, "b", SCRIPT)
    first.machine.memory.write_u64(0x3000, 0x10246)
    second.machine.memory.write_u64(0x3000, 0x00256)
    assert found(first, second)[0] is None
    for mine, theirs in ((0x10246, 0x00244), (0x10244, 0x00244), (0x1024A, 0x0024A)):
        first, second = side(stack, "a", SCRIPT), side(stack, "b", SCRIPT)
        first.machine.memory.write_u64(0x3000, mine)
        second.machine.memory.write_u64(0x3000, theirs)
        assert found(first, second)[0] is not None, (mine, theirs)


def test_output_beside_the_exits(stack: ExitStack) -> None:
    first, second = side(stack, "a", SCRIPT), side(stack, "b", SCRIPT)
    second.output += b"x"
    difference, _ = found(first, second)
    assert difference is not None and difference.what == "output"
    assert "h" in difference.values[0] and "xh" in difference.values[1]


def test_time(stack: ExitStack) -> None:
    clock = [port_read(0x40), port_write(0x3F8, b"a"), port_write(0x20, b" "), port_write(0x3F8, b"b")]
    polling = [port_read(0x61), *clock[:2], port_read(0x71), port_read(0x71), port_write(0x3F8, b"b")]
    assert found(side(stack, "a", clock), side(stack, "b", polling))[0] is not None
    difference, lockstep = found(
        side(stack, "a", clock), side(stack, "b", polling, memory=9), tolerate=["time"]
    )
    assert difference is None and lockstep.events == 2 and lockstep.states == 0
    wrong = [*polling[:-1], port_write(0x3F8, b"c")]
    difference, _ = found(side(stack, "a", clock), side(stack, "b", wrong), tolerate=["time"])
    assert difference is not None and difference.what == "exit"


def test_as_far_as_the_number_of_exits_goes(stack: ExitStack) -> None:
    difference, lockstep = found(side(stack, "a", SCRIPT), side(stack, "b", SCRIPT), max_events=2)
    assert difference is None
    assert lockstep.unfinished == "after 2 events they hadn't ended"


def test_what_can_not_be(stack: ExitStack) -> None:
    one = side(stack, "a", SCRIPT)
    with pytest.raises(NotComparable, match="lock step needs two engines"):
        Lockstep([one])
    with pytest.raises(UsageError, match="every 0 events: at least 1"):
        Lockstep([one, side(stack, "b", SCRIPT)], every=0)
    with pytest.raises(UsageError, match="tolerate luck: there is time"):
        Lockstep([one, side(stack, "b", SCRIPT)], tolerate=["luck"])
    two = stack.enter_context(Machine("64K", 2, engine=StubEngine(SCRIPT)))
    with pytest.raises(NotComparable, match="2 vCPUs"):
        Side("c", two, bytearray())
    small = Side("d", stack.enter_context(Machine("32K", engine=StubEngine(SCRIPT))), bytearray())
    small.machine.ports.attach(0x3F8, 8, Port(small.output, 0x60))
    with pytest.raises(NotComparable, match="don't lie at the same addresses"):
        found(one, small)


def test_three_are_compared_with_the_first(stack: ExitStack) -> None:
    sides = [side(stack, name, SCRIPT, answer=0x60 + (name == "c")) for name in "abc"]
    difference = Lockstep(sides).run()
    assert difference is not None and difference.sides == ("a", "c")


def test_descriptions() -> None:
    assert describe((1, 0xFEE00000, 4, True, 5)) == "MMIO 0xfee00000: 4 byte write of 0x5"
    assert describe((255, 5, 0, False, 0)) == "HLT"
