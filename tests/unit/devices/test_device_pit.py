"""The 8254: what its data sheet pins, and any programming against a model that counts tick by tick."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices.pit import HZ, SECOND, Pit


class Clock:
    """Time in ticks of the PIT."""

    def __init__(self) -> None:
        self.ticks = 0
        self.epoch = 123_456_789

    def __call__(self) -> int:
        return self.epoch - (-self.ticks * SECOND // HZ)


class Rig:
    """A PIT, its clock, and what it has said."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.levels: list[bool] = []
        self.changes = 0
        self.pit = Pit(self.clock, self.levels.append, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def program(self, channel: int, mode: int, count: int, access: int = 3, bcd: bool = False) -> None:
        self.pit.write(3, channel << 6 | access << 4 | mode << 1 | bcd, 1)
        if access & 1:
            self.pit.write(channel, count & 0xFF, 1)
        if access & 2:
            self.pit.write(channel, count >> 8, 1)

    def count(self, channel: int) -> int:
        self.pit.write(3, channel << 6, 1)
        return self.pit.read(channel, 1) | self.pit.read(channel, 1) << 8

    def edges(self) -> int:
        return self.levels.count(True)

    def next_ticks(self) -> int | None:
        """Ticks until the next event."""
        at = self.pit.next_event()
        return None if at is None else (at - self.clock.epoch) * HZ // SECOND - self.clock.ticks


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_nothing_happens_before_it_is_programmed(rig: Rig) -> None:
    rig.clock.ticks = 1 << 20
    assert rig.pit.poll() is None
    assert rig.levels == [] and rig.pit.out(0) is True


def test_mode_0_rises_once(rig: Rig) -> None:
    rig.program(0, 0, 1000)
    assert rig.changes and rig.pit.out(0) is False
    assert rig.next_ticks() == 1000
    rig.clock.ticks = 999
    assert rig.pit.poll() is not None and rig.levels == []
    assert rig.count(0) == 1
    rig.clock.ticks = 1000
    assert rig.pit.poll() is None
    assert rig.levels == [True]
    rig.clock.ticks = 1001
    assert rig.count(0) == 0xFFFF
    rig.program(0, 0, 5)
    assert rig.levels == [True, False]


def test_mode_0_first_byte_stops_the_count(rig: Rig) -> None:
    rig.program(0, 0, 100)
    rig.clock.ticks = 150
    rig.pit.write(0, 10, 1)
    assert rig.pit.out(0) is False and rig.next_ticks() is None
    rig.clock.ticks = 500
    rig.pit.write(0, 0, 1)
    assert rig.next_ticks() == 10


def test_mode_2_gives_a_pulse_a_period(rig: Rig) -> None:
    rig.program(0, 2, 100)
    assert rig.pit.out(0) is True
    assert [rig.count(0), rig.next_ticks()] == [100, 100]
    for tick, value, out in ((1, 99, True), (98, 2, True), (99, 1, False), (100, 100, True), (199, 1, False)):
        rig.clock.ticks = tick
        assert (rig.count(0), rig.pit.out(0)) == (value, out)
    rig.clock.ticks = 200
    rig.pit.poll()
    assert rig.edges() >= 1
    assert rig.next_ticks() == 100


def test_edges_nobody_saw_are_one(rig: Rig) -> None:
    rig.program(0, 2, 100)
    rig.clock.ticks = 1050
    rig.pit.poll()
    rig.pit.poll()
    assert rig.levels == [True]
    assert rig.next_ticks() == 50
    rig.clock.ticks = 1100
    rig.pit.poll()
    assert rig.levels == [True, False, True]


def test_mode_2_takes_a_new_count_at_the_end_of_the_period(rig: Rig) -> None:
    rig.program(0, 2, 100)
    rig.clock.ticks = 30
    rig.pit.write(0, 7, 1)
    rig.pit.write(0, 0, 1)
    assert rig.count(0) == 70 and rig.next_ticks() == 70
    rig.clock.ticks = 100
    rig.pit.poll()
    assert rig.count(0) == 7 and rig.next_ticks() == 7
    rig.clock.ticks = 115
    assert rig.count(0) == 6


@pytest.mark.parametrize(("count", "high"), [(10, 5), (11, 6), (2, 1), (3, 2)])
def test_mode_3_is_high_for_the_longer_half(rig: Rig, count: int, high: int) -> None:
    rig.program(0, 3, count)
    levels = []
    for tick in range(2 * count):
        rig.clock.ticks = tick
        levels.append(rig.pit.out(0))
    assert levels == ([True] * high + [False] * (count - high)) * 2
    rig.pit.poll()
    assert rig.next_ticks() == 1


def test_mode_3_counts_by_two(rig: Rig) -> None:
    rig.program(0, 3, 8)
    seen = []
    for tick in range(9):
        rig.clock.ticks = tick
        seen.append(rig.count(0))
    assert seen == [8, 6, 4, 2, 8, 6, 4, 2, 8]


def test_mode_4_strobes_once(rig: Rig) -> None:
    rig.program(0, 4, 5)
    levels = []
    for tick in range(8):
        rig.clock.ticks = tick
        levels.append(rig.pit.out(0))
        rig.pit.poll()
    assert levels == [True] * 5 + [False] + [True] * 2
    assert rig.levels == [True]
    assert rig.pit.next_event() is None


def test_modes_1_and_5_start_with_the_gate(rig: Rig) -> None:
    for mode, idle in ((1, True), (5, True)):
        rig.pit.set_gate(2, False)
        rig.program(2, mode, 10)
        rig.clock.ticks += 100
        assert rig.pit.out(2) is idle
        rig.pit.set_gate(2, True)
        assert rig.pit.out(2) is (mode == 5)
        rig.clock.ticks += 5
        rig.pit.set_gate(2, False)  # doesn't matter
        rig.pit.set_gate(2, True)  # but this starts anew
        rig.clock.ticks += 9
        assert rig.pit.out(2) is (mode == 5)
        rig.clock.ticks += 1
        assert rig.pit.out(2) is (mode == 1)
        rig.clock.ticks += 1
        assert rig.pit.out(2) is True


def test_the_gate_holds_modes_0_and_4(rig: Rig) -> None:
    for mode in (0, 4):
        rig.pit.set_gate(2, True)
        rig.program(2, mode, 100)
        rig.clock.ticks += 30
        rig.pit.set_gate(2, False)
        rig.clock.ticks += 1000
        assert rig.count(2) == 70
        rig.pit.set_gate(2, True)
        rig.clock.ticks += 10
        assert rig.count(2) == 60


def test_the_gate_starts_modes_2_and_3_anew(rig: Rig) -> None:
    for mode in (2, 3):
        rig.pit.set_gate(2, False)
        rig.program(2, mode, 100)
        rig.clock.ticks += 99
        assert rig.pit.out(2) is True and rig.count(2) == 100
        rig.pit.set_gate(2, True)
        rig.clock.ticks += 99
        assert rig.pit.out(2) is False
        rig.pit.set_gate(2, False)
        assert rig.pit.out(2) is True
        rig.clock.ticks += 7
        rig.pit.set_gate(2, True)
        assert rig.count(2) == 100


@pytest.mark.parametrize(
    ("access", "written", "count"),
    [(1, 0x1234, 0x34), (2, 0x1234, 0x1200), (3, 0x1234, 0x1234), (3, 0, 0x10000), (1, 0, 0x10000)],
)
def test_access_modes(rig: Rig, access: int, written: int, count: int) -> None:
    rig.program(0, 2, written, access)
    assert rig.next_ticks() == count
    low, high = rig.pit.read(0, 1), rig.pit.read(0, 1)
    value = count & 0xFFFF
    expected = {1: (value & 0xFF, value & 0xFF), 2: (value >> 8, value >> 8), 3: (value & 0xFF, value >> 8)}
    assert (low, high) == expected[access]


@pytest.mark.parametrize(("written", "count"), [(0x1234, 1234), (0, 10_000), (0x9999, 9999)])
def test_bcd(rig: Rig, written: int, count: int) -> None:
    rig.program(0, 2, written, bcd=True)
    assert rig.next_ticks() == count
    assert rig.count(0) == written
    rig.clock.ticks = 1
    assert rig.count(0) == int(str(count - 1), 16)


def test_bcd_counts_on_to_9999(rig: Rig) -> None:
    rig.program(0, 0, 0x0010, bcd=True)
    rig.clock.ticks = 11
    assert rig.count(0) == 0x9999


def test_a_latched_count_stays_until_it_is_read(rig: Rig) -> None:
    rig.program(0, 2, 0x1000)
    rig.pit.write(3, 0x00, 1)
    rig.clock.ticks = 16
    rig.pit.write(3, 0x00, 1)  # ignored
    assert (rig.pit.read(0, 1), rig.pit.read(0, 1)) == (0x00, 0x10)
    assert (rig.pit.read(0, 1), rig.pit.read(0, 1)) == (0xF0, 0x0F)
    rig.pit.write(3, 0x00, 1)
    rig.program(0, 2, 0x2000)  # a control word undoes the latch
    assert (rig.pit.read(0, 1), rig.pit.read(0, 1)) == (0x00, 0x20)


def test_read_back_of_status_and_count(rig: Rig) -> None:
    rig.program(0, 2, 0x0100)
    rig.pit.write(3, 0b10_11_101_0 | 0, 1)  # channel 2's access and mode; no count yet
    rig.clock.ticks = 0xFF
    rig.pit.write(3, 0b11_00_1010, 1)  # count and status of channels 0 and 2
    assert rig.pit.read(0, 1) == 0b0011_0100  # OUT low in the last tick, count loaded, both bytes, mode 2
    assert (rig.pit.read(0, 1), rig.pit.read(0, 1)) == (1, 0)
    assert rig.pit.read(2, 1) == 0b1111_1010  # OUT high, no count, mode 5
    rig.pit.write(3, 0b11_10_0010, 1)  # status of channel 0 alone
    rig.clock.ticks = 0x100
    assert rig.pit.read(0, 1) == 0b0011_0100
    assert rig.pit.read(0, 1) == 0x00 and rig.pit.read(0, 1) == 0x01
    rig.pit.write(3, 0b11_01_0010, 1)  # count alone
    assert rig.pit.read(0, 1) == 0x00


def test_null_count_while_a_new_one_waits(rig: Rig) -> None:
    def status() -> int:
        rig.pit.write(3, 0b11_10_0010, 1)
        return rig.pit.read(0, 1)

    rig.program(0, 2, 100)
    assert not status() & 0x40
    rig.pit.write(0, 50, 1)
    assert status() & 0x40
    rig.pit.write(0, 0, 1)
    assert status() & 0x40
    rig.clock.ticks = 100
    assert not status() & 0x40


def test_the_control_word_cannot_be_read(rig: Rig) -> None:
    assert rig.pit.read(3, 1) == 0xFF


def test_a_clock_that_goes_back_is_survived(rig: Rig) -> None:
    rig.program(0, 2, 100)
    rig.clock.epoch -= 10 * SECOND
    rig.pit.poll()
    assert rig.pit.read(0, 1) >= 0


def test_state_is_relative_to_now(rig: Rig) -> None:
    rig.program(0, 2, 1000)
    rig.pit.set_gate(2, True)
    rig.program(2, 0, 500)
    rig.clock.ticks = 400
    rig.pit.write(0, 77, 1)
    rig.pit.write(0, 0, 1)
    other = Rig()
    other.clock.ticks = 1 << 40
    other.pit.restore(rig.pit.state())
    assert other.next_ticks() == rig.next_ticks() == 600
    assert other.count(2) == 100
    other.clock.ticks += 600
    other.pit.poll()
    assert other.next_ticks() == 77
    assert other.changes == 1


def test_restoring_tells_the_level_and_makes_no_edge(rig: Rig) -> None:
    rig.program(0, 2, 100)
    rig.clock.ticks = 150
    rig.pit.poll()
    other = Rig()
    other.pit.restore(rig.pit.state())
    assert other.levels == [True]
    other.pit.poll()
    assert other.levels == [True]
    assert other.next_ticks() == 50


def test_reset_stops_all_and_tells(rig: Rig) -> None:
    rig.program(0, 2, 100)
    rig.clock.ticks = 100
    rig.pit.poll()
    changes = rig.changes
    rig.pit.reset()
    assert rig.pit.next_event() is None and rig.changes == changes + 1
    assert rig.pit.state() == {**Rig().pit.state(), "line": True}


def test_read_back_is_for_the_channels_named(rig: Rig) -> None:
    rig.program(0, 2, 0x1234)
    rig.program(1, 2, 0x5678)
    rig.pit.write(3, 0b11_01_0100, 1)  # count of channel 1
    rig.clock.ticks = 4
    assert (rig.pit.read(0, 1), rig.pit.read(0, 1)) == (0x30, 0x12)
    assert (rig.pit.read(1, 1), rig.pit.read(1, 1)) == (0x78, 0x56)


def test_channels_0_and_1_always_count(rig: Rig) -> None:
    for channel in (0, 1, 2):
        rig.program(channel, 2, 100)
    rig.clock.ticks = 10
    assert [rig.count(channel) for channel in (0, 1, 2)] == [90, 90, 100]


def test_a_new_count_of_a_one_shot_waits_for_the_gate(rig: Rig) -> None:
    rig.program(2, 1, 10)
    rig.pit.set_gate(2, True)
    rig.clock.ticks = 3
    rig.pit.write(2, 50, 1)
    rig.pit.write(2, 0, 1)
    rig.clock.ticks = 9
    assert rig.count(2) == 1 and rig.pit.out(2) is False
    rig.clock.ticks = 10
    assert rig.pit.out(2) is True
    rig.pit.set_gate(2, False)
    rig.pit.set_gate(2, True)
    assert rig.count(2) == 50
    rig.clock.ticks = 12
    rig.pit.write(2, 5, 1)
    rig.pit.write(2, 0, 1)
    rig.program(2, 2, 100)  # forgets the one that waited
    rig.clock.ticks = 110
    assert rig.count(2) == 2


class Model:
    """A counter that does one tick at a time, drawn after the data sheet's timing diagrams; binary."""

    def __init__(self) -> None:
        self.mode = 0
        self.loaded = False
        self.counting = False
        self.gate = False
        self.out = True
        self.initial = self.ce = 0
        self.waiting: int | None = None
        self.low: int | None = None
        self.edges = 0

    def _set(self, level: bool) -> None:
        self.edges += level and not self.out
        self.out = level

    def control(self, mode: int) -> None:
        self.mode = mode
        self.out = mode != 0
        self.loaded = self.counting = False
        self.waiting = self.low = None

    def write(self, count: int) -> None:
        count = count or 0x10000
        if self.mode in (2, 3) and self.loaded and self.counting:
            self.waiting = count
            return
        self.initial = self.ce = count
        self.waiting = None
        self.loaded = True
        self.counting = self.gate
        self.out = self.mode != 0

    def set_gate(self, level: bool) -> None:
        rises = level and not self.gate
        self.gate = level
        if not self.loaded:
            return
        if self.mode in (2, 3):
            if rises:
                self.initial, self.waiting = self.waiting or self.initial, None
                self.ce = self.initial
            elif not level:
                self.out = True
        self.counting = level

    def tick(self) -> None:
        if not self.counting:
            return
        self.ce -= 1
        getattr(self, f"_mode_{self.mode}")()

    def _mode_0(self) -> None:
        if self.ce == 0:
            self._set(True)

    def _mode_2(self) -> None:
        if self.ce == 0:
            self._reload()
        self._set(self.ce != 1 or self.initial == 1)

    def _mode_3(self) -> None:
        if self.ce == 0:
            self._reload()
        self._set(self.initial - self.ce < (self.initial + 1) // 2)

    def _mode_4(self) -> None:
        self._set(self.ce != 0)

    def _reload(self) -> None:
        self.initial, self.waiting = self.waiting or self.initial, None
        self.ce = self.initial

    def value(self) -> int:
        if self.mode != 3:
            return self.ce & 0xFFFF
        into = self.initial - self.ce
        half = (self.initial + 1) // 2
        return ((self.initial & ~1) - 2 * (into if into < half else into - half)) & 0xFFFF


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("program"), st.sampled_from([0, 2, 3, 4]), st.integers(2, 40)),
        st.tuples(st.just("count"), st.just(0), st.integers(2, 40)),
        st.tuples(st.just("gate"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("wait"), st.just(0), st.integers(1, 90)),
        st.tuples(st.just("wait"), st.just(0), st.integers(1, 9)),
    ),
    max_size=25,
)


def apply(rig: Rig, model: Model, kind: str, first: int, second: int) -> None:
    if kind == "program":
        rig.program(2, first, second)
        model.control(first)
        model.write(second)
    elif kind == "count":
        if model.loaded:
            rig.pit.write(2, second, 1)
            rig.pit.write(2, 0, 1)
            model.write(second)
    elif kind == "gate":
        rig.pit.set_gate(2, bool(first))
        model.set_gate(bool(first))
    else:
        for _ in range(second):
            rig.clock.ticks += 1
            model.tick()


@given(steps=STEPS)
@settings(max_examples=300, deadline=None)
def test_against_the_model(steps: list[tuple[str, int, int]]) -> None:
    rig, model = Rig(), Model()
    for kind, first, second in steps:
        apply(rig, model, kind, first, second)
        if model.loaded:
            assert rig.pit.out(2) is model.out
            assert rig.count(2) == model.value()


@given(mode=st.sampled_from([0, 2, 3, 4]), count=st.integers(2, 60), pauses=st.lists(st.integers(1, 40)))
@settings(max_examples=200, deadline=None)
def test_edges_are_told_when_next_event_says(mode: int, count: int, pauses: list[int]) -> None:
    """Polled at each event and at any other time, every edge of the model is told, at its tick."""
    rig, model = Rig(), Model()
    model.gate = True
    rig.program(0, mode, count)
    model.control(mode)
    model.write(count)
    for pause in pauses:
        for _ in range(pause):
            rig.clock.ticks += 1
            model.tick()
            left = rig.next_ticks()
            if left == 0:
                rig.pit.poll()
            assert left is None or left >= 0
            assert rig.edges() == model.edges
        rig.pit.poll()
        assert rig.edges() == model.edges
