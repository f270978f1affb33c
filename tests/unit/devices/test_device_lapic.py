"""The local APIC: what the SDM's chapter on it pins, and interrupts in any order against a small model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices.lapic import (
    CURRENT_COUNT,
    DFR,
    DIVIDE,
    EOI,
    ESR,
    ICR_HIGH,
    ICR_LOW,
    ID,
    INITIAL_COUNT,
    IRR,
    ISR,
    LDR,
    LEVEL_TRIGGERED,
    LOWEST,
    LVT_ERROR,
    LVT_LINT0,
    LVT_LINT1,
    LVT_MASKED,
    LVT_TIMER,
    NMI,
    PPR,
    SVR,
    TMR,
    TPR,
    VERSION,
    Lapic,
    Message,
    deliver,
)

ON = 0x1FF


class Rig:
    """A local APIC that is switched on, and what it has said."""

    def __init__(self, number: int = 0, on: bool = True) -> None:
        self.now = 1000
        self.attentions = self.nmis = self.changes = 0
        self.sent: list[tuple[Message, int]] = []
        self.ended: list[int] = []
        self.lapic = Lapic(
            number,
            lambda: self.now,
            self._attention,
            nmi=self._nmi,
            send=lambda message, shorthand: self.sent.append((message, shorthand)),
            ended=self.ended.append,
            changed=self._changed,
            tsc=lambda: self.now * 2,
            tsc_khz=2_000_000,
        )
        if on:
            self.write(SVR, ON)

    def _attention(self) -> None:
        self.attentions += 1

    def _nmi(self) -> None:
        self.nmis += 1

    def _changed(self) -> None:
        self.changes += 1

    def read(self, register: int) -> int:
        return self.lapic.read(register, 4)

    def write(self, register: int, value: int) -> None:
        self.lapic.write(register, value, 4)

    def send(self, vector: int, flags: int = 0) -> bool:
        return self.lapic.accept(Message(vector, 0, 0, False, flags))

    def bits(self, first: int) -> set[int]:
        """The vectors whose bits are set in ISR, TMR or IRR."""
        words = [self.read(first + 0x10 * n) for n in range(8)]
        return {32 * n + bit for n, word in enumerate(words) for bit in range(32) if word >> bit & 1}


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_after_reset() -> None:
    rig = Rig(3, on=False)
    assert rig.read(ID) == 3 << 24
    assert rig.read(VERSION) == 0x0005_0014
    assert (rig.read(SVR), rig.read(DFR), rig.read(TPR)) == (0xFF, 0xFFFF_FFFF, 0)
    assert rig.read(LVT_TIMER) == LVT_MASKED and rig.read(LVT_LINT1) == LVT_MASKED
    assert rig.lapic.accepts_extint
    assert not rig.send(0x40) and rig.attentions == 0


def test_an_interrupt_goes_through_irr_and_isr(rig: Rig) -> None:
    assert rig.send(0x51)
    assert rig.attentions == 1 and rig.lapic.pending == 0x51
    assert rig.bits(IRR) == {0x51} and rig.bits(ISR) == set()
    assert rig.lapic.acknowledge() == 0x51
    assert rig.bits(IRR) == set() and rig.bits(ISR) == {0x51}
    assert rig.read(PPR) == 0x50
    rig.write(EOI, 0)
    assert rig.bits(ISR) == set() and rig.ended == []


def test_priority_classes(rig: Rig) -> None:
    rig.send(0x61)
    rig.lapic.acknowledge()
    rig.send(0x6F)  # the same class waits
    assert rig.lapic.pending == 0
    rig.send(0x70)
    assert rig.lapic.acknowledge() == 0x70
    rig.write(EOI, 0)
    assert rig.bits(ISR) == {0x61}
    rig.write(EOI, 0)
    assert rig.lapic.pending == 0x6F


def test_the_task_priority_holds_back(rig: Rig) -> None:
    rig.write(TPR, 0x5F)
    rig.send(0x5A)
    assert rig.lapic.pending == 0 and rig.lapic.held_back
    assert rig.read(PPR) == 0x5F
    before = rig.attentions
    rig.write(TPR, 0x4F)
    assert rig.lapic.pending == 0x5A and not rig.lapic.held_back and rig.attentions == before + 1


def test_what_is_in_service_holds_back_too_but_not_by_the_task_priority(rig: Rig) -> None:
    rig.send(0x55)
    rig.lapic.acknowledge()
    rig.send(0x51)
    assert rig.lapic.pending == 0 and not rig.lapic.held_back
    rig.write(TPR, 0x60)
    assert not rig.lapic.held_back
    rig.write(EOI, 0)
    assert rig.lapic.held_back


def test_the_spurious_vector(rig: Rig) -> None:
    rig.write(SVR, 0x1EF)
    rig.send(0x30)
    rig.write(TPR, 0xF0)
    assert rig.lapic.acknowledge() == 0xEF
    assert rig.bits(ISR) == set()


def test_level_triggered_interrupts_end_outside(rig: Rig) -> None:
    rig.send(0x31, LEVEL_TRIGGERED)
    rig.send(0x32)
    assert rig.bits(TMR) == {0x31}
    rig.lapic.acknowledge()
    rig.write(EOI, 0)
    rig.lapic.acknowledge()
    rig.write(EOI, 0)
    assert rig.ended == [0x31]
    rig.send(0x31)
    assert rig.bits(TMR) == set()


def test_eoi_with_nothing_in_service(rig: Rig) -> None:
    rig.write(EOI, 0)
    assert rig.ended == [] and rig.attentions == 0


def test_illegal_vectors_are_errors(rig: Rig) -> None:
    rig.write(LVT_ERROR, 0xFE)
    assert not rig.send(5)
    assert rig.read(ESR) == 0
    rig.write(ESR, 0)
    assert rig.read(ESR) == 0x40
    assert rig.lapic.acknowledge() == 0xFE
    rig.write(ICR_LOW, 0x0005)
    rig.write(ESR, 0)
    assert rig.read(ESR) == 0x20 and rig.sent == []
    assert rig.lapic.pending == 0  # the same class is in service
    rig.write(EOI, 0)
    assert rig.lapic.acknowledge() == 0xFE


def test_an_illegal_error_vector_does_not_go_round_for_ever(rig: Rig) -> None:
    rig.write(LVT_ERROR, 3)
    rig.write(0x40, 1)
    rig.write(ESR, 0)
    assert rig.read(ESR) == 0xC0


def test_reserved_registers_are_errors(rig: Rig) -> None:
    assert rig.read(0x40) == 0
    rig.write(ESR, 0)
    assert rig.read(ESR) == 0x80
    rig.write(VERSION, 0)  # read-only ones are not
    rig.write(ISR, 0)
    rig.write(ESR, 0)
    assert rig.read(ESR) == 0


def test_switching_it_off_masks_every_lvt(rig: Rig) -> None:
    rig.write(LVT_LINT0, 0x700)
    rig.write(LVT_TIMER, 0x40)
    assert rig.lapic.accepts_extint
    rig.write(SVR, 0xFF)
    assert rig.read(LVT_TIMER) == LVT_MASKED | 0x40
    assert not rig.lapic.accepts_extint
    rig.write(LVT_LINT0, 0x700)  # can't be undone while it is off
    assert rig.read(LVT_LINT0) == LVT_MASKED | 0x700
    rig.send(0x40)
    assert rig.lapic.pending == 0


def test_extint_asks_for_attention_and_takes_no_vector(rig: Rig) -> None:
    rig.lapic.set_lint(0, True)
    assert rig.attentions == 1 and rig.bits(IRR) == set()
    rig.lapic.set_lint(0, False)
    rig.write(LVT_LINT0, 0x700 | LVT_MASKED)
    assert not rig.lapic.accepts_extint
    rig.lapic.set_lint(0, True)
    before = rig.attentions
    rig.write(LVT_LINT0, 0x700)  # what waits at the pin is there now
    assert rig.attentions == before + 1


def test_lint_as_an_edge_a_level_and_an_nmi(rig: Rig) -> None:
    rig.write(LVT_LINT0, 0x44)
    rig.lapic.set_lint(0, True)
    rig.lapic.set_lint(0, True)
    assert rig.lapic.acknowledge() == 0x44
    rig.write(EOI, 0)
    assert rig.lapic.pending == 0
    rig.write(LVT_LINT1, 0x45 | 1 << 15)
    rig.lapic.set_lint(1, True)
    assert rig.read(LVT_LINT1) & 1 << 14  # remote IRR
    assert rig.lapic.acknowledge() == 0x45
    rig.write(EOI, 0)
    assert rig.lapic.acknowledge() == 0x45  # still there
    rig.lapic.set_lint(1, False)
    rig.write(EOI, 0)
    assert rig.lapic.pending == 0 and not rig.read(LVT_LINT1) & 1 << 14
    rig.write(LVT_LINT1, 0x400)
    rig.lapic.set_lint(1, True)
    assert rig.nmis == 1


@pytest.mark.parametrize(
    ("divide", "by"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)]
)
def test_the_timer_divides(rig: Rig, divide: int, by: int) -> None:
    rig.write(LVT_TIMER, 0x60)
    rig.write(DIVIDE, divide)
    assert rig.read(DIVIDE) == divide
    rig.write(INITIAL_COUNT, 1000)
    assert rig.lapic.next_event() == rig.now + 1000 * by
    rig.now += 400 * by
    assert rig.read(CURRENT_COUNT) == 600
    rig.now += 600 * by - 1
    assert rig.lapic.poll() is not None and rig.lapic.pending == 0
    rig.now += 1
    assert rig.lapic.poll() is None
    assert rig.lapic.acknowledge() == 0x60 and rig.read(CURRENT_COUNT) == 0


def test_the_periodic_timer_goes_on(rig: Rig) -> None:
    rig.write(LVT_TIMER, 0x60 | 1 << 17)
    rig.write(DIVIDE, 11)
    rig.write(INITIAL_COUNT, 50_000)
    start = rig.now
    rig.now = start + 220_000  # four periods, told as one
    assert rig.lapic.poll() == start + 250_000
    assert rig.read(CURRENT_COUNT) == 30_000
    assert rig.lapic.acknowledge() == 0x60
    assert rig.lapic.pending == 0
    rig.write(INITIAL_COUNT, 0)
    assert rig.lapic.next_event() is None and rig.read(CURRENT_COUNT) == 0


def test_a_period_is_never_too_short(rig: Rig) -> None:
    rig.write(LVT_TIMER, 0x60 | 1 << 17)
    rig.write(INITIAL_COUNT, 1)
    first = rig.lapic.next_event()
    assert first is not None and first - rig.now >= 10_000


def test_a_masked_timer_counts_and_says_nothing(rig: Rig) -> None:
    rig.write(DIVIDE, 11)
    rig.write(INITIAL_COUNT, 100_000)
    assert rig.lapic.next_event() is None
    rig.now += 40_000
    assert rig.read(CURRENT_COUNT) == 60_000
    changes = rig.changes
    rig.write(LVT_TIMER, 0x60)
    assert rig.changes > changes
    assert rig.lapic.next_event() == rig.now + 60_000
    rig.write(LVT_TIMER, 0x60 | LVT_MASKED)
    rig.now += 70_000
    rig.write(LVT_TIMER, 0x60)
    assert rig.lapic.poll() is None and rig.lapic.pending == 0  # it went off while it was masked


def test_the_divider_changes_the_speed_of_what_is_left(rig: Rig) -> None:
    rig.write(LVT_TIMER, 0x60)
    rig.write(DIVIDE, 11)
    rig.write(INITIAL_COUNT, 100_000)
    rig.now += 50_000
    rig.write(DIVIDE, 0)
    assert rig.lapic.next_event() == rig.now + 100_000
    assert rig.read(CURRENT_COUNT) == 50_000


def test_the_tsc_deadline(rig: Rig) -> None:
    rig.lapic.write_deadline(5000)  # not in that mode
    assert rig.lapic.read_deadline() == 0
    rig.write(LVT_TIMER, 0x61 | 2 << 17)
    rig.write(INITIAL_COUNT, 1000)  # has no meaning in this mode
    assert rig.lapic.next_event() is None
    rig.lapic.write_deadline(rig.now * 2 + 10_001)
    assert rig.lapic.next_event() == rig.now + 5001
    assert rig.lapic.read_deadline() == rig.now * 2 + 10_001
    rig.now += 5001
    rig.lapic.poll()
    assert rig.lapic.acknowledge() == 0x61 and rig.lapic.read_deadline() == 0
    rig.lapic.write_deadline(1)  # in the past
    assert rig.lapic.next_event() == rig.now
    rig.lapic.write_deadline(0)
    assert rig.lapic.next_event() is None
    rig.lapic.write_deadline(1 << 63)
    rig.write(LVT_TIMER, 0x61)  # leaving the mode disarms
    assert rig.lapic.next_event() is None and rig.lapic.read_deadline() == 0


def test_interprocessor_interrupts(rig: Rig) -> None:
    rig.write(ICR_HIGH, 0x0200_0000)
    rig.write(ICR_LOW, 0x0000_4055)
    rig.write(ICR_LOW, 0x000C_4456)
    rig.write(ICR_LOW, 0x0004_4057)
    assert [(m.vector, m.mode, m.destination, shorthand) for m, shorthand in rig.sent] == [
        (0x55, 0, 2, 0),
        (0x56, NMI, 2, 3),
    ]
    assert rig.lapic.acknowledge() == 0x57
    assert (rig.read(ICR_HIGH), rig.read(ICR_LOW)) == (0x0200_0000, 0x0004_4057)


def test_destinations() -> None:
    rig = Rig(2)

    def is_for(destination: int, logical: bool = False) -> bool:
        return rig.lapic.matches(Message(0x40, 0, destination, logical))

    assert is_for(2) and is_for(0xFF) and not is_for(3)
    rig.write(LDR, 0b0000_0100 << 24)
    assert is_for(0b110, True) and not is_for(0b011, True) and is_for(0xFF, True)
    rig.write(DFR, 0)
    rig.write(LDR, 0x12 << 24)
    assert is_for(0x13, True) and not is_for(0x11, True) and not is_for(0x22, True)
    rig.write(ID, 9 << 24)
    assert is_for(9) and not is_for(2)


def test_lowest_priority_takes_the_least_busy() -> None:
    rigs = [Rig(n) for n in range(3)]
    rigs[0].write(TPR, 0x80)
    rigs[1].write(TPR, 0x20)
    rigs[2].write(SVR, 0xFF)  # switched off
    lapics = [rig.lapic for rig in rigs]
    assert deliver(lapics, Message(0x90, LOWEST, 0xFF, False))
    assert [rig.bits(IRR) for rig in rigs] == [set(), {0x90}, set()]
    assert deliver(lapics, Message(0x91, 0, 0xFF, False))
    assert [rig.bits(IRR) for rig in rigs] == [{0x91}, {0x90, 0x91}, set()]
    assert not deliver(lapics, Message(0x91, 0, 7, False))


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [(TPR, 1, 0x5C), (TPR, 2, 0x5C), (TPR + 1, 1, 0), (TPR + 4, 4, 0), (TPR, 8, 0x5C)],
)
def test_parts_of_registers_can_be_read(rig: Rig, offset: int, size: int, value: int) -> None:
    rig.write(TPR, 0x5C)
    assert rig.lapic.read(offset, size) == value


@pytest.mark.parametrize(
    ("offset", "size"), [(TPR + 0x10000, 4), (TPR, 1), (TPR, 8), (TPR + 4, 4), (TPR + 1, 4), (0x1080, 4)]
)
def test_only_whole_registers_can_be_written(rig: Rig, offset: int, size: int) -> None:
    rig.lapic.write(offset, 0x10, size)
    assert rig.read(TPR) == 0


def test_state_carries_a_running_timer_to_another_time(rig: Rig) -> None:
    rig.write(LVT_TIMER, 0x60 | 1 << 17)
    rig.write(DIVIDE, 11)
    rig.write(INITIAL_COUNT, 100_000)
    rig.send(0x33, LEVEL_TRIGGERED)
    rig.now += 30_000
    other = Rig(0, on=False)
    other.now = 1 << 50
    other.lapic.restore(rig.lapic.state())
    assert other.lapic.next_event() == other.now + 70_000
    assert other.attentions >= 1 and other.changes >= 1
    assert other.lapic.acknowledge() == 0x33
    other.write(EOI, 0)
    assert other.ended == [0x33]


def test_reset_stops_the_timer(rig: Rig) -> None:
    rig.write(LVT_TIMER, 0x60)
    rig.write(INITIAL_COUNT, 100_000)
    rig.send(0x40)
    changes = rig.changes
    rig.lapic.reset()
    assert rig.lapic.next_event() is None and rig.bits(IRR) == set() and rig.changes == changes + 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(16, 255)),
        st.tuples(st.just("level"), st.integers(16, 255)),
        st.tuples(st.sampled_from(["ack", "eoi"]), st.just(0)),
        st.tuples(st.just("tpr"), st.integers(0, 255)),
    ),
    max_size=60,
)


@given(steps=STEPS)
@settings(max_examples=300, deadline=None)
def test_against_the_model(steps: list[tuple[str, int]]) -> None:
    """Sets of vectors; the SDM's rules of priority written out."""
    rig = Rig()
    requested: set[int] = set()
    serving: list[int] = []  # in order of their priority, as interrupts nest
    levels: set[int] = set()
    ended: list[int] = []
    tpr = 0

    def takes() -> int:
        floor = max([tpr // 16, *(vector // 16 for vector in serving)])
        best = max(requested, default=0)
        return best if best // 16 > floor else 0

    for kind, value in steps:
        if kind in ("send", "level"):
            rig.send(value, LEVEL_TRIGGERED if kind == "level" else 0)
            requested.add(value)
            (levels.add if kind == "level" else levels.discard)(value)
        elif kind == "ack":
            vector = takes()
            assert rig.lapic.acknowledge() == (vector or 0xFF)
            if vector:
                requested.discard(vector)
                serving.append(vector)
        elif kind == "eoi":
            rig.write(EOI, 0)
            if serving:
                vector = max(serving)
                serving.remove(vector)
                ended += [vector] if vector in levels else []
        else:
            rig.write(TPR, value)
            tpr = value
        assert rig.lapic.pending == takes()
        assert rig.bits(IRR) == requested and rig.bits(ISR) == set(serving)
        assert rig.ended == ended


def test_extint_only_is_accepted_by_its_mode(rig: Rig) -> None:
    rig.write(LVT_LINT0, 0x440)  # NMI
    assert not rig.lapic.accepts_extint
    rig.write(LVT_LINT0, 0x40)
    assert not rig.lapic.accepts_extint


def test_a_falling_edge_and_one_that_stays_are_nothing(rig: Rig) -> None:
    rig.write(LVT_LINT0, 0x44)
    rig.lapic.set_lint(0, True)
    assert rig.lapic.acknowledge() == 0x44
    rig.write(EOI, 0)
    rig.lapic.set_lint(0, False)
    rig.lapic.set_lint(0, False)
    assert rig.bits(IRR) == set()
    rig.write(LVT_LINT0, 0x44 | 1 << 15)
    rig.lapic.set_lint(0, False)
    assert rig.bits(IRR) == set()


def test_remote_irr_of_a_pin_ends_with_its_own_vector_only(rig: Rig) -> None:
    rig.write(LVT_LINT1, 0x45 | 1 << 15)
    rig.lapic.set_lint(1, True)
    assert rig.lapic.acknowledge() == 0x45
    rig.send(0x99, LEVEL_TRIGGERED)
    assert rig.lapic.acknowledge() == 0x99
    rig.write(EOI, 0)
    assert rig.read(LVT_LINT1) & 1 << 14 and rig.bits(IRR) == set()
    rig.write(LVT_LINT1, 0x45 | 1 << 15)  # read-only
    assert rig.read(LVT_LINT1) & 1 << 14
    rig.write(LVT_LINT1, 0x45)  # no level, no remote IRR
    assert not rig.read(LVT_LINT1) & 1 << 14


def test_an_edge_ended_with_a_pins_vector_does_not_raise_the_pin(rig: Rig) -> None:
    rig.write(LVT_LINT1, 0x45)
    rig.lapic.set_lint(1, True)
    rig.lapic.acknowledge()
    rig.write(EOI, 0)
    rig.send(0x45, LEVEL_TRIGGERED)
    rig.lapic.acknowledge()
    rig.write(EOI, 0)
    assert rig.bits(IRR) == set()


def test_vectors_from_16_on_can_be_sent(rig: Rig) -> None:
    rig.write(ICR_LOW, 0x4010)
    rig.write(ICR_LOW, 0x400F)
    assert [message.vector for message, _ in rig.sent] == [0x10]
    assert not rig.sent[0][0].flags
    rig.write(ICR_LOW, 0x8510)  # INIT level de-assert
    assert rig.sent[1][0].flags


def test_esr_is_no_reserved_register_and_what_is_behind_isr_is(rig: Rig) -> None:
    rig.write(0x270, 1)
    rig.write(ESR, 0)
    assert rig.read(ESR) == 0
    rig.write(0x290, 1)
    rig.write(ESR, 0)
    assert rig.read(ESR) == 0x80


def test_an_nmi_is_taken(rig: Rig) -> None:
    assert rig.lapic.accept(Message(0, NMI, 0, False))
    assert rig.nmis == 1
    rig.write(SVR, 0xFF)
    assert rig.lapic.accept(Message(0, NMI, 0, False))  # also when it is switched off


def test_arming_the_deadline_is_told(rig: Rig) -> None:
    rig.write(LVT_TIMER, 0x61 | 2 << 17)
    changes = rig.changes
    rig.lapic.write_deadline(1 << 40)
    assert rig.changes == changes + 1
