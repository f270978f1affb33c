"""The I/O APIC: what its data sheet pins, and lines, masks and EOIs in any order against a small model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices.ioapic import LEVEL, MASKED, PINS, REMOTE_IRR, IoApic
from kvmpy.devices.lapic import LEVEL_TRIGGERED, Message


class Rig:
    """An I/O APIC, and the messages it has sent."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.takes = True
        self.ioapic = IoApic(self._send)

    def _send(self, message: Message) -> bool:
        self.sent.append(message)
        return self.takes

    def read(self, register: int) -> int:
        self.ioapic.write(0, register, 4)
        return self.ioapic.read(0x10, 4)

    def write(self, register: int, value: int) -> None:
        self.ioapic.write(0, register, 4)
        self.ioapic.write(0x10, value, 4)

    def program(self, pin: int, entry: int) -> None:
        self.write(0x10 + 2 * pin + 1, entry >> 32)
        self.write(0x10 + 2 * pin, entry & 0xFFFF_FFFF)

    def vectors(self) -> list[int]:
        vectors = [message.vector for message in self.sent]
        self.sent.clear()
        return vectors


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_identity(rig: Rig) -> None:
    assert rig.read(1) == 0x0017_0011
    rig.write(0, 0xFFFF_FFFF)
    assert rig.read(0) == rig.read(2) == 0x0F00_0000
    rig.write(1, 0)
    assert rig.read(1) == 0x0017_0011
    assert rig.read(0x40) == rig.read(0xFF) == 0


def test_all_pins_start_masked(rig: Rig) -> None:
    for pin in range(PINS):
        assert rig.read(0x10 + 2 * pin) == MASKED and rig.read(0x11 + 2 * pin) == 0
        rig.ioapic.set_line(pin, True)
    assert rig.sent == []


def test_writable_bits_of_an_entry(rig: Rig) -> None:
    rig.program(23, (1 << 64) - 1)
    assert rig.read(0x10 + 46) == 0x1AFFF
    assert rig.read(0x11 + 46) == 0xFF00_0000


def test_an_edge_is_one_message(rig: Rig) -> None:
    rig.program(4, 0x02 << 56 | 1 << 11 | 1 << 8 | 0x44)
    rig.ioapic.set_line(4, True)
    rig.ioapic.set_line(4, True)
    (message,) = rig.sent
    assert (message.vector, message.mode, message.destination, message.logical) == (0x44, 1, 2, True)
    assert not message.flags
    rig.ioapic.set_line(4, False)
    rig.ioapic.set_line(4, True)
    assert rig.vectors() == [0x44, 0x44]


def test_an_edge_at_a_masked_pin_is_lost(rig: Rig) -> None:
    rig.program(4, 0x44 | MASKED)
    rig.ioapic.set_line(4, True)
    rig.program(4, 0x44)
    assert rig.vectors() == []


def test_a_level_comes_again_after_the_eoi(rig: Rig) -> None:
    rig.program(9, 0x49 | LEVEL)
    rig.ioapic.set_line(9, True)
    assert rig.sent[0].flags == LEVEL_TRIGGERED
    assert rig.read(0x10 + 18) & REMOTE_IRR
    rig.ioapic.set_line(9, True)
    assert rig.vectors() == [0x49]
    rig.ioapic.end_of_interrupt(0x48)
    assert rig.vectors() == []
    rig.ioapic.end_of_interrupt(0x49)
    assert rig.vectors() == [0x49]
    rig.ioapic.set_line(9, False)
    rig.ioapic.end_of_interrupt(0x49)
    assert rig.vectors() == [] and not rig.read(0x10 + 18) & REMOTE_IRR


def test_a_level_at_a_masked_pin_waits(rig: Rig) -> None:
    rig.program(9, 0x49 | LEVEL | MASKED)
    rig.ioapic.set_line(9, True)
    assert rig.vectors() == []
    rig.program(9, 0x49 | LEVEL)
    assert rig.vectors() == [0x49]


def test_a_level_nobody_took_isnt_remembered(rig: Rig) -> None:
    rig.takes = False
    rig.program(9, 0x49 | LEVEL)
    rig.ioapic.set_line(9, True)
    assert not rig.read(0x10 + 18) & REMOTE_IRR


def test_remote_irr_goes_with_edge_mode(rig: Rig) -> None:
    rig.program(9, 0x49 | LEVEL)
    rig.ioapic.set_line(9, True)
    rig.program(9, 0x49 | LEVEL | MASKED)
    assert rig.read(0x10 + 18) & REMOTE_IRR  # read-only
    rig.program(9, 0x49 | MASKED)
    assert not rig.read(0x10 + 18) & REMOTE_IRR


@pytest.mark.parametrize(("mode", "sent"), [(0, 1), (1, 1), (2, 0), (3, 0), (4, 1), (5, 1), (6, 0), (7, 0)])
def test_delivery_modes(rig: Rig, mode: int, sent: int) -> None:
    rig.program(1, mode << 8 | LEVEL | 0x50)
    rig.ioapic.set_line(1, True)
    assert len(rig.sent) == sent
    assert bool(rig.read(0x12) & REMOTE_IRR) is (mode in (0, 1))


def test_two_pins_of_one_vector_end_together(rig: Rig) -> None:
    for pin in (5, 6):
        rig.program(pin, 0x55 | LEVEL)
        rig.ioapic.set_line(pin, True)
    rig.vectors()
    rig.ioapic.end_of_interrupt(0x55)
    assert rig.vectors() == [0x55, 0x55]


def test_accesses_beside_the_registers(rig: Rig) -> None:
    rig.write(0, 0x0500_0000)
    rig.ioapic.write(0, 0x1234, 2)
    assert rig.ioapic.read(0, 4) == 0x34
    rig.ioapic.write(0, 0, 1)
    assert rig.ioapic.read(0x13, 1) == 5
    rig.ioapic.write(0x10, 0, 1)
    rig.ioapic.write(0x11, 0, 4)
    assert rig.read(0) == 0x0500_0000
    assert rig.ioapic.read(0x40, 4) == 0 and rig.ioapic.read(0x14, 4) == 0


def test_state(rig: Rig) -> None:
    rig.program(9, 0x49 | LEVEL)
    rig.ioapic.set_line(9, True)
    other = Rig()
    other.ioapic.restore(rig.ioapic.state())
    assert other.sent == []
    other.ioapic.end_of_interrupt(0x49)
    assert other.vectors() == [0x49]
    rig.ioapic.reset()
    assert rig.read(0x10 + 18) == MASKED and rig.ioapic.lines == 1 << 9


def test_restoring_what_no_entry_can_hold(rig: Rig) -> None:
    state = rig.ioapic.state()
    rig.ioapic.restore({**state, "table": (0x1_5044 | 1 << 40).to_bytes(8, "little") * PINS})
    assert rig.ioapic.entry(3) == 0x1_0044


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("line"), st.integers(0, 2), st.integers(0, 1)),
        st.tuples(st.just("program"), st.integers(0, 2), st.integers(0, 3)),
        st.tuples(st.just("eoi"), st.integers(0, 2), st.just(0)),
    ),
    max_size=50,
)


@given(steps=STEPS)
@settings(max_examples=300, deadline=None)
def test_against_the_model(steps: list[tuple[str, int, int]]) -> None:
    rig = Rig()
    up, level, masked, waiting = [False] * 3, [False] * 3, [True] * 3, [False] * 3
    for kind, pin, value in steps:
        expected = []
        if kind == "line":
            rises, up[pin] = bool(value) and not up[pin], bool(value)
            asks = rises if not level[pin] else up[pin] and not waiting[pin]
        elif kind == "program":
            level[pin], masked[pin] = bool(value & 1), bool(value & 2)
            waiting[pin] = waiting[pin] and level[pin]
            asks = level[pin] and up[pin] and not waiting[pin]
        else:
            asks = waiting[pin] and up[pin] and level[pin]
            waiting[pin] = False
        if asks and not masked[pin]:
            expected, waiting[pin] = [0x40 + pin], level[pin]
        if kind == "line":
            rig.ioapic.set_line(pin, bool(value))
        elif kind == "program":
            rig.program(pin, 0x40 + pin | (LEVEL if value & 1 else 0) | (MASKED if value & 2 else 0))
        else:
            rig.ioapic.end_of_interrupt(0x40 + pin)
        assert rig.vectors() == expected
        assert [bool(rig.ioapic.entry(n) & REMOTE_IRR) for n in range(3)] == waiting
