"""pvclock: a guest that follows the ABI reads the host's time, and it never goes back."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.devices.pvclock import (
    ENTRY,
    GUEST_STOPPED,
    SYSTEM_TIME,
    TSC_STABLE,
    WALL_CLOCK,
    PvClock,
    elapsed,
    scale,
)
from kvmpy.errors import DeviceError, GuestMemoryError

HZ = 2_600_000_000
EPOCH = 1_700_000_000_123_456_789


class Ram:
    """Guest memory that notes every write."""

    def __init__(self, length: int = 4096) -> None:
        self.data = bytearray(length)
        self.writes: list[tuple[int, bytes]] = []

    def _check(self, gpa: int, length: int) -> None:
        if gpa + length > len(self.data):
            raise GuestMemoryError(f"{gpa:#x} is outside")

    def read(self, gpa: int, length: int) -> bytes:
        self._check(gpa, length)
        return bytes(self.data[gpa : gpa + length])

    def write(self, gpa: int, data: bytes) -> None:
        self._check(gpa, len(data))
        self.writes.append((gpa, bytes(data)))
        self.data[gpa : gpa + len(data)] = data


class Host:
    """A clock and a TSC that run as told."""

    def __init__(self, tsc: int = 1000, ns: int = 0, hz: int = HZ) -> None:
        self.tsc, self.ns, self.hz = tsc, ns, hz

    def now(self) -> tuple[int, int]:
        return self.tsc, self.ns

    def run(self, ns: int, tsc_error: int = 0) -> None:
        self.ns += ns
        self.tsc += ns * self.hz // 1_000_000_000 + tsc_error


def guest_reads(ram: Ram, gpa: int, tsc: int) -> int:
    """The algorithm of the kernel's document, in 64-bit arithmetic."""
    version, _, then, system, mul, shift, _ = ENTRY.unpack(ram.read(gpa, ENTRY.size))
    assert version % 2 == 0
    delta = (tsc - then) & (1 << 64) - 1
    delta = (delta << shift) & (1 << 64) - 1 if shift >= 0 else delta >> -shift
    return int((delta * mul >> 32) + system)


def make(host: Host, ram: Ram, **options: bool) -> PvClock:
    return PvClock(ram, host.now, lambda: EPOCH, host.hz, **options)


@given(st.integers(1, (1 << 63) - 1))
def test_the_multiplier_uses_all_its_bits(hz: int) -> None:
    multiplier, shift = scale(hz)
    assert 1 << 31 <= multiplier < 1 << 32
    assert -128 <= shift <= 127


@given(st.integers(1_000, 10_000_000_000), st.integers(0, 100))
def test_seconds_are_as_long_as_they_should_be(hz: int, seconds: int) -> None:
    multiplier, shift = scale(hz)
    error = elapsed(hz * seconds, multiplier, shift) - 1_000_000_000 * seconds
    assert -2 - seconds <= error <= 0  # a multiplier of 32 bits: half a nanosecond a second


@pytest.mark.parametrize("hz", [0, -1, 1 << 63])
def test_impossible_frequencies(hz: int) -> None:
    with pytest.raises(DeviceError, match="a TSC of"):
        scale(hz)


def test_the_layout_is_the_kernels() -> None:
    ram, host = Ram(), Host(tsc=0x1122334455667788, ns=0x0102030405060708)
    make(host, ram).write(SYSTEM_TIME, 0x101, 8)
    assert ram.data[0x100:0x120] == bytes.fromhex(
        "02000000 00000000 8877665544332211 0807060504030201 f1d8c4c4 ff 01 0000".replace(
            "f1d8c4c4", scale(HZ)[0].to_bytes(4, "little").hex()
        )
    )


def test_the_version_is_odd_while_fields_change() -> None:
    ram, host = Ram(), Host()
    clock = make(host, ram)
    clock.write(SYSTEM_TIME, 0x101, 8)
    host.run(1000)
    clock.update()
    versions = [struct.unpack("<I", data)[0] for gpa, data in ram.writes if (gpa, len(data)) == (0x100, 4)]
    assert versions == [1, 2, 3, 4]
    order = [gpa for gpa, _ in ram.writes]
    assert order == [0x100, 0x104, 0x100] * 2


@given(st.lists(st.tuples(st.integers(0, 1 << 34), st.integers(-50_000, 50_000)), max_size=30))
def test_time_never_goes_back(steps: list[tuple[int, int]]) -> None:
    ram, host = Ram(), Host()
    clock = make(host, ram)
    clock.write(SYSTEM_TIME, 0x101, 8)
    last = 0
    for ns, tsc_error in steps:
        host.run(ns, max(tsc_error, -ns))
        before = guest_reads(ram, 0x100, host.tsc)
        clock.update()
        after = guest_reads(ram, 0x100, host.tsc)
        assert last <= before <= after
        assert after >= host.ns
        last = after


@given(st.lists(st.integers(0, 10_000_000_000), min_size=1, max_size=20))
def test_the_guest_has_the_hosts_time(steps: list[int]) -> None:
    ram, host = Ram(), Host(hz=2_000_000_000)  # a frequency without a rest
    make(host, ram).write(SYSTEM_TIME, 0x101, 8)
    for ns in steps:
        host.run(ns)
        assert guest_reads(ram, 0x100, host.tsc) == host.ns


def test_disabled_it_is_left_alone() -> None:
    ram, host = Ram(), Host()
    clock = make(host, ram)
    clock.write(SYSTEM_TIME, 0x100, 8)
    assert not clock.enabled and not ram.writes
    clock.write(SYSTEM_TIME, 0x101, 8)
    assert clock.enabled and clock.read(SYSTEM_TIME, 8) == 0x101
    clock.write(SYSTEM_TIME, 0, 8)
    ram.writes.clear()
    clock.update()
    clock.paused()
    assert not ram.writes


@pytest.mark.parametrize("value", [0x1001, 0xFF9, (1 << 64) - 1, 0xFFFF_FFFF_F001])
def test_an_address_that_is_no_memory_is_no_fault(value: int) -> None:
    ram, host = Ram(), Host()
    clock = make(host, ram)
    clock.write(SYSTEM_TIME, value, 8)
    clock.write(WALL_CLOCK, value, 8)
    assert not ram.writes
    assert clock.read(SYSTEM_TIME, 8) == value


def test_flags() -> None:
    ram, host = Ram(), Host()
    clock = make(host, ram)
    clock.write(SYSTEM_TIME, 0x101, 8)
    assert ram.data[0x100 + 29] == TSC_STABLE
    clock.paused()
    assert ram.data[0x100 + 29] == TSC_STABLE | GUEST_STOPPED
    clock.update()
    assert ram.data[0x100 + 29] == TSC_STABLE  # said once
    unstable = make(host, ram, stable=False)
    unstable.write(SYSTEM_TIME, 0x201, 8)
    assert ram.data[0x200 + 29] == 0


def test_the_wall_clock_is_written_once_for_each_write_of_its_msr() -> None:
    ram, host = Ram(), Host()
    clock = make(host, ram)
    clock.write(WALL_CLOCK, 0x200, 8)
    assert struct.unpack("<III", ram.read(0x200, 12)) == (2, 1_700_000_000, 123_456_789)
    clock.update()
    assert len(ram.writes) == 3
    ram.data[0x200:0x204] = struct.pack("<I", 7)  # the guest left something there
    clock.write(WALL_CLOCK, 0x200, 8)
    assert struct.unpack("<I", ram.read(0x200, 4)) == (8,)


def test_after_a_restore_the_moment_is_the_hosts() -> None:
    ram, host = Ram(), Host(tsc=1 << 50, ns=1 << 40)
    clock = make(host, ram)
    clock.write(SYSTEM_TIME, 0x101, 8)
    state = clock.state()
    other = Host(tsc=5, ns=7)
    restored = make(other, ram)
    restored.restore(state)
    restored.update()
    assert guest_reads(ram, 0x100, 5) == 7
    restored.reset()
    assert not restored.enabled
