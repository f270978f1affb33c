"""The MC146818 and the RAM around it."""

from __future__ import annotations

import calendar
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.devices import cmos as rtc
from kvmpy.devices.cmos import Cmos

SECOND = 1_000_000_000
START = calendar.timegm((2024, 2, 29, 23, 59, 58)) * SECOND  # a Thursday


class Bench:
    def __init__(self, start: int = START) -> None:
        self.time = start
        self.edges: list[bool] = []
        self.masks: list[bool] = []
        self.cmos = Cmos(lambda: self.time, self.edges.append, self.masks.append)

    def __getitem__(self, index: int) -> int:
        self.cmos.write(0, index, 1)
        return self.cmos.read(1, 1)

    def __setitem__(self, index: int, value: int) -> None:
        self.cmos.write(0, index, 1)
        self.cmos.write(1, value, 1)

    def date(self) -> tuple[int, ...]:
        """Century, year, month, day, hour, minute, second, weekday, as in the registers."""
        registers = (rtc.CENTURY, rtc.YEAR, rtc.MONTH, rtc.DAY_OF_MONTH, rtc.HOURS, rtc.MINUTES)
        return tuple(self[index] for index in (*registers, rtc.SECONDS, rtc.DAY_OF_WEEK))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_time_in_bcd_and_binary(bench: Bench) -> None:
    assert bench.date() == (0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 5)
    bench[rtc.REG_B] = rtc.B_24H | rtc.B_BINARY
    assert bench.date() == (20, 24, 2, 29, 23, 59, 58, 5)
    bench.time += 2 * SECOND
    assert bench.date() == (20, 24, 3, 1, 0, 0, 0, 6)


@pytest.mark.parametrize(
    ("hour", "bcd"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)]
)
def test_twelve_hours(hour: int, bcd: int) -> None:
    bench = Bench(calendar.timegm((2024, 1, 1, hour, 0, 0)) * SECOND)
    bench[rtc.REG_B] = 0
    assert bench[rtc.HOURS] == bcd
    bench[rtc.HOURS] = bcd  # and back
    bench[rtc.REG_B] = rtc.B_24H | rtc.B_BINARY
    assert bench[rtc.HOURS] == hour


@given(moment=st.integers(-(10**10), 10**10), control=st.sampled_from([0, rtc.B_24H, rtc.B_BINARY, 6]))
def test_setting_the_time_that_is_shown_changes_nothing(moment: int, control: int) -> None:
    bench = Bench(moment * SECOND)
    bench[rtc.REG_B] = control
    before = bench.date()
    bench[rtc.REG_B] = control | rtc.B_SET
    for index, value in zip(
        (rtc.SECONDS, rtc.HOURS, rtc.MONTH), (before[6], before[4], before[2]), strict=True
    ):
        bench[index] = value
    bench[rtc.REG_B] = control
    assert bench.date() == before
    expected = time.gmtime(moment)
    bench[rtc.REG_B] = rtc.B_24H | rtc.B_BINARY
    assert bench.date() == (
        expected.tm_year // 100 % 100,
        expected.tm_year % 100,
        expected.tm_mon,
        expected.tm_mday,
        expected.tm_hour,
        expected.tm_min,
        expected.tm_sec,
        (expected.tm_wday + 1) % 7 + 1,
    )


def test_set_holds_the_time_and_a_new_one_goes_on_from_there(bench: Bench) -> None:
    bench[rtc.REG_B] = rtc.B_24H | rtc.B_SET
    bench.time += 100 * SECOND
    assert bench.date()[:7] == (0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58)
    for index, value in ((rtc.CENTURY, 0x19), (rtc.YEAR, 0x99), (rtc.MONTH, 0x12), (rtc.DAY_OF_MONTH, 0x31)):
        bench[index] = value
    bench.time += 7 * SECOND
    bench[rtc.REG_B] = rtc.B_24H
    assert bench.date() == (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58, 6)
    bench.time += 2 * SECOND
    assert bench.date() == (0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00, 7)


def test_a_time_set_while_running_goes_on_from_there(bench: Bench) -> None:
    bench[rtc.MINUTES] = 0x07
    bench.time += 3 * SECOND
    assert (bench[rtc.MINUTES], bench[rtc.SECONDS]) == (0x08, 0x01)


def test_the_ps2_century_is_the_same_byte(bench: Bench) -> None:
    bench[rtc.CENTURY_PS2] = 0x21
    assert bench[rtc.CENTURY] == bench[rtc.CENTURY_PS2] == 0x21


def test_impossible_dates_are_counted_on_from(bench: Bench) -> None:
    bench[rtc.REG_B] = rtc.B_24H | rtc.B_SET
    for index in rtc.TIME:
        bench[index] = 0xFF
    bench[rtc.REG_B] = rtc.B_24H
    bench.date()
    bench[rtc.REG_B] = rtc.B_24H | rtc.B_BINARY | rtc.B_SET
    for index, value in ((rtc.CENTURY, 20), (rtc.YEAR, 23), (rtc.MONTH, 2), (rtc.DAY_OF_MONTH, 31)):
        bench[index] = value
    bench[rtc.HOURS] = bench[rtc.MINUTES] = bench[rtc.SECONDS] = 0
    bench[rtc.REG_B] = rtc.B_24H | rtc.B_BINARY
    assert bench.date()[:4] == (20, 23, 3, 3)


def test_update_in_progress_just_before_the_second(bench: Bench) -> None:
    assert bench[rtc.REG_A] == 0x26
    bench.time += SECOND - 244_000
    assert bench[rtc.REG_A] == 0xA6
    bench.time += 244_000
    assert bench[rtc.REG_A] == 0x26
    bench[rtc.REG_B] = rtc.B_SET
    bench.time += SECOND - 1000
    assert bench[rtc.REG_A] == 0x26


def test_divider_reset_holds_and_the_first_update_is_half_a_second_later(bench: Bench) -> None:
    bench.time += 300_000_000
    bench[rtc.REG_A] = 0x66
    bench.time += 10 * SECOND
    assert bench[rtc.SECONDS] == 0x58
    bench[rtc.REG_C]
    bench[rtc.REG_A] = 0x26
    bench.time += SECOND // 2 - 1000
    assert bench[rtc.SECONDS] == 0x58
    bench.time += 1000
    assert bench[rtc.SECONDS] == 0x59


def test_register_d_and_c_are_read_only(bench: Bench) -> None:
    bench[rtc.REG_D] = 0
    bench[rtc.REG_C] = 0xFF
    assert bench[rtc.REG_D] == 0x80
    assert bench[rtc.REG_C] == 0


def test_flags_come_without_interrupts_and_reading_clears_them(bench: Bench) -> None:
    bench.time += SECOND
    assert bench[rtc.REG_C] == rtc.C_PF | rtc.C_UF | rtc.C_AF  # the alarm's bytes are all "don't care"
    assert bench[rtc.REG_C] == 0
    assert not bench.edges


def test_update_interrupt(bench: Bench) -> None:
    bench.time += 250_000_000
    bench[rtc.REG_B] = rtc.B_24H | rtc.B_UIE
    assert bench.cmos.poll() == START + SECOND
    assert not bench.edges
    bench.time = START + SECOND
    assert bench.cmos.poll() is None
    assert bench.edges == [True]
    assert bench[rtc.REG_C] & 0x90 == rtc.C_IRQF | rtc.C_UF
    assert bench.edges == [True, False]
    assert bench.cmos.poll() == START + 2 * SECOND


@pytest.mark.parametrize(
    ("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (8, 256), (13, 8), (14, 4), (15, 2)]
)
def test_periodic_rates(bench: Bench, rate: int, hertz: int) -> None:
    bench[rtc.REG_A] = 0x20 | rate
    bench[rtc.REG_B] = rtc.B_24H | rtc.B_PIE
    fired = 0
    while (due := bench.cmos.poll()) is None or due < START + SECOND:
        if due is None:
            fired += 1
            assert bench[rtc.REG_C] & 0xC0 == rtc.C_IRQF | rtc.C_PF
        else:
            bench.time = due
    assert fired == hertz - 1  # the last is due at the end of the second
    assert due == START + SECOND


def test_no_periodic_interrupt_at_rate_0(bench: Bench) -> None:
    bench[rtc.REG_A] = 0x20
    bench[rtc.REG_B] = rtc.B_PIE
    assert bench.cmos.poll() is None
    bench.time += 10 * SECOND
    assert not bench[rtc.REG_C] & rtc.C_PF


@pytest.mark.parametrize(
    ("hour", "minute", "second", "after"),
    [
        (0x23, 0x59, 0x59, 1),
        (0x00, 0x00, 0x00, 2),
        (0x23, 0x59, 0x58, 86_400),
        (0xC0, 0xFF, 0x57, 59),
        (0xC0, 0x00, 0xC0, 2),
        (0x01, 0xC0, 0xC0, 3602),
        (0x12, 0x34, 0x56, 12 * 3600 + 34 * 60 + 58),
    ],
)
@pytest.mark.parametrize("control", [rtc.B_24H, 0])
def test_alarm(bench: Bench, hour: int, minute: int, second: int, after: int, control: int) -> None:
    if not control:
        hour = {0x23: 0x91, 0x00: 0x12, 0x01: 0x01, 0x12: 0x92}.get(hour, hour)
    bench[rtc.REG_B] = control | rtc.B_AIE
    bench[rtc.HOURS_ALARM], bench[rtc.MINUTES_ALARM], bench[rtc.SECONDS_ALARM] = hour, minute, second
    assert bench.cmos.poll() == START + after * SECOND
    bench.time = START + after * SECOND - 1
    assert not bench[rtc.REG_C] & rtc.C_AF
    bench.time += 1
    assert bench.cmos.poll() is None
    assert bench.edges == [True]
    assert bench[rtc.REG_C] & 0xA0 == rtc.C_IRQF | rtc.C_AF


def test_an_alarm_at_no_time_never_rings(bench: Bench) -> None:
    bench[rtc.SECONDS_ALARM] = 0x99
    bench[rtc.REG_B] = rtc.B_24H | rtc.B_AIE
    assert bench.cmos.poll() is None
    bench.time += 3 * 86_400 * SECOND
    assert not bench[rtc.REG_C] & rtc.C_AF


def test_setting_set_drops_the_update_interrupt(bench: Bench) -> None:
    bench[rtc.REG_B] = rtc.B_SET | rtc.B_UIE | rtc.B_PIE
    assert bench[rtc.REG_B] == rtc.B_SET | rtc.B_PIE


def test_a_clock_that_jumps_back_is_survived(bench: Bench) -> None:
    bench.time -= 3600 * SECOND
    assert bench[rtc.HOURS] == 0x22
    assert bench[rtc.REG_C] == 0


def test_nmi_mask_and_index(bench: Bench) -> None:
    bench.cmos.write(0, 0x8F, 1)
    assert bench.cmos.nmi_masked
    bench.cmos.write(0, 0x0F, 1)
    assert bench.masks == [True, False]
    assert bench.cmos.read(0, 1) == 0xFF


def test_an_access_of_two_bytes_is_index_and_data(bench: Bench) -> None:
    bench.cmos.write(0, 0x5A_40, 2)
    assert bench[0x40] == 0x5A


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        (64 << 20, 0, {0x15: 640, 0x17: 63 << 10, 0x30: 63 << 10, 0x34: 48 << 4}),
        (512 << 10, 0, {0x15: 512, 0x17: 0, 0x30: 0, 0x34: 0}),
        (3 << 30, 5 << 30, {0x15: 640, 0x17: 0xFFFF, 0x30: 0xFFFF, 0x34: (3 << 30) - (16 << 20) >> 16}),
        (16 << 20, 0, {0x17: 15 << 10, 0x34: 0}),
    ],
)
def test_memory_sizes(bench: Bench, below: int, above: int, expected: dict[int, int]) -> None:
    bench.cmos.set_memory(below, above)
    assert {at: bench[at] | bench[at + 1] << 8 for at in expected} == expected
    assert bench[0x5B] | bench[0x5C] << 8 | bench[0x5D] << 16 == above >> 16


def test_boot_order_and_cpus(bench: Bench) -> None:
    bench.cmos.set_boot_order("cdn")
    bench.cmos.set_cpus(4)
    assert (bench[0x3D], bench[0x38], bench[0x5F]) == (0x32, 0x40, 3)
    bench.cmos.set_boot_order("a")
    assert (bench[0x3D], bench[0x38]) == (0x01, 0x00)


def test_ram_and_time_outlive_a_reset_interrupts_do_not(bench: Bench) -> None:
    bench[0x40] = 0x77
    bench[rtc.REG_B] = rtc.B_24H | rtc.B_UIE
    bench.time += SECOND
    bench.cmos.poll()
    bench.cmos.reset()
    assert bench.edges == [True, False]
    assert (bench[0x40], bench[rtc.SECONDS], bench[rtc.REG_B]) == (0x77, 0x59, rtc.B_24H)


def test_restore_keeps_the_guests_own_time() -> None:
    first = Bench()
    first[rtc.YEAR] = 0x30
    later = Bench(START + 5 * SECOND)
    later.cmos.restore(first.cmos.state())
    assert later.date()[1] == 0x30
