"""ACPI's timer and PM1 registers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.devices.acpi_pm1 import AcpiPm1
from kvmpy.devices.acpi_pm_timer import AcpiPmTimer

SECOND = 1_000_000_000


@pytest.mark.parametrize(("bits", "mask"), [(24, 0xFFFFFF), (32, 0xFFFFFFFF)])
@given(start=st.integers(0, 1 << 62), nanoseconds=st.integers(0, 10**13))
def test_timer_counts_and_wraps(bits: int, mask: int, start: int, nanoseconds: int) -> None:
    time = [start]
    timer = AcpiPmTimer(lambda: time[0], bits)
    assert timer.read(0, 4) == 0
    time[0] += nanoseconds
    assert timer.read(0, 4) == nanoseconds * 3_579_545 // SECOND & mask


def test_timer_after_a_second_and_in_parts() -> None:
    time = [0]
    timer = AcpiPmTimer(lambda: time[0])
    time[0] = SECOND
    assert timer.read(0, 4) == 3_579_545 == 0x369E99
    assert [timer.read(at, 1) for at in range(4)] == [0x99, 0x9E, 0x36, 0x00]
    assert timer.read(0, 2) == 0x9E99
    assert timer.read(2, 4) == 0xFFFF0036
    timer.write(0, 0, 4)
    assert timer.read(0, 4) == 3_579_545


def test_timer_goes_on_after_a_restore_from_where_it_was() -> None:
    first = AcpiPmTimer(lambda: 0)
    first.elapsed = SECOND
    second = AcpiPmTimer(lambda: 77 * SECOND)
    second.restore(first.state())
    assert second.count == 3_579_545


def test_sleep_type_is_told_when_sleep_is_enabled() -> None:
    sleeps: list[int] = []
    pm1 = AcpiPm1(sleeps.append)
    pm1.write(4, 5 << 10, 2)
    assert not sleeps
    pm1.write(4, 0x2000, 2)
    pm1.write(4, 0x2000 | 5 << 10, 2)
    assert sleeps == [0, 5]
    assert pm1.read(4, 2) == 5 << 10 | 1


def test_status_is_write_one_to_clear() -> None:
    pm1 = AcpiPm1()
    pm1.status = 0x8101
    pm1.write(0, 0x0001, 2)
    assert pm1.read(0, 2) == 0x8100
    pm1.write(1, 0x80, 1)
    pm1.write(2, 0x0120, 2)
    assert pm1.read(0, 4) == 0x01200100
