"""Code that host code changes while it runs, in every way there is to write to guest memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvmpy.machine.machine import Machine

pytestmark = pytest.mark.kvmpy(memory="1M", mode="real", trace=False)

PORT = 0x10
CODE = 0x1100
# l: call f; out %al, $0x10; jmp l -- f, in another page's middle: mov $1, %al; ret
LOOP = bytes.fromhex("e8fd00e610ebf9").ljust(0x100, b"\x90") + bytes.fromhex("b001c3")
ROUNDS = 40

Writer = Callable[[Machine, int], object]


def through_write(machine: Machine, value: int) -> None:
    machine.memory.write(CODE + 1, bytes([value]))


def through_a_slice(machine: Machine, value: int) -> None:
    machine.memory[CODE : CODE + 4][1] = value


def through_a_view_of_a_view(machine: Machine, value: int) -> None:
    machine.memory.view(0x1000, 0x1000)[CODE - 0x1000 :][1:2][0] = value


class Kept:
    """A view that was made before the guest ran at all, or at its first exit."""

    def __init__(
        self, first: int, length: int, make: Callable[[memoryview], Any] = lambda view: view
    ) -> None:
        self.first, self.length, self.make = first, length, make
        self.view: Any = None

    def take(self, machine: Machine) -> None:
        self.view = self.make(machine.memory.view(self.first, self.length))

    def __call__(self, machine: Machine, value: int) -> None:
        if self.view is None:
            self.take(machine)
        self.view[CODE + 1 - self.first] = value


def array(view: memoryview) -> Any:
    numpy = pytest.importorskip("numpy")
    return numpy.frombuffer(view, numpy.uint8)


WRITERS: dict[str, Callable[[], Writer]] = {
    "write": lambda: through_write,
    "slice": lambda: through_a_slice,
    "slice of a view": lambda: through_a_view_of_a_view,
    "kept view": lambda: Kept(CODE, 2),
    "kept view of all": lambda: Kept(0, 0x100000),
    "kept array": lambda: Kept(0x1000, 0x1000, array),
}


class Modifier:
    """A port whose every write has the code write the next number."""

    def __init__(self, machine: Machine, writer: Writer) -> None:
        self.machine, self.writer = machine, writer
        self.seen: list[int] = []

    def write(self, offset: int, value: int, size: int) -> None:
        self.seen.append(value)
        if len(self.seen) % ROUNDS:
            self.writer(self.machine, value + 1)
        else:
            self.machine.stop()


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> Iterator[Writer]:
    yield WRITERS[request.param]()


def test_between_two_exits_of_one_run(machines: Callable[..., Machine], writer: Writer) -> None:
    machine = machines(LOOP)
    device = Modifier(machine, writer)
    machine.ports.attach(PORT, 1, device)
    machine.run(timeout=10)
    assert device.seen == list(range(1, ROUNDS + 1))


def test_with_a_view_from_before_the_run(machines: Callable[..., Machine], writer: Writer) -> None:
    machine = machines(LOOP)
    if isinstance(writer, Kept):
        writer.take(machine)
    device = Modifier(machine, writer)
    machine.ports.attach(PORT, 1, device)
    machine.run(timeout=10)
    writer(machine, 100)  # between two runs
    if isinstance(writer, Kept):
        writer.view = None  # and then the view is gone
    machine.run(timeout=10)
    expected = [*range(1, ROUNDS + 1), *range(100, 100 + ROUNDS)]
    assert device.seen == expected


def test_code_that_modifies_itself_in_a_page_that_is_viewed(machines: Callable[..., Machine]) -> None:
    """The guest changes it, and data beside it, and so does the host."""
    code = bytes.fromhex("e8fd00e610fe062011fe060111ebf1").ljust(0x100, b"\x90") + bytes.fromhex("b001c3")
    machine = machines(code)  # incb 0x1120 and incb CODE + 1 behind the OUT
    view = machine.memory.view(0x1000, 0x1000)
    seen: list[int] = []

    @machine.ports.on_write(PORT)
    def out(offset: int, value: int, size: int) -> None:
        seen.append(value)
        if len(seen) == 10:
            view[0x101] = 50
        elif len(seen) == 20:
            machine.stop()

    machine.run(timeout=10)
    assert seen == [*range(1, 11), *range(51, 61)]
    assert view[0x120] == 19
