"""pvclock: the time in memory that a guest shares with its hypervisor, read without leaving the guest.

A guest writes an address to an MSR; there the hypervisor puts a moment, as TSC and as nanoseconds, and how fast the TSC
runs; from these and its own RDTSC the guest computes the time. Kernel documentation, "KVM-specific MSRs":
MSR_KVM_SYSTEM_TIME_NEW and MSR_KVM_WALL_CLOCK_NEW.
"""

from __future__ import annotations

import struct

from kvmpy.devices.device import Device
from kvmpy.errors import DeviceError, GuestMemoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Memory(Protocol):
        """Guest memory; GuestMemoryError beyond it."""

        def read(self, gpa: int, length: int) -> bytes: ...
        def write(self, gpa: int, data: bytes) -> None: ...


WALL_CLOCK, SYSTEM_TIME = 0, 1  # offsets: the MSRs are neighbours, at 0x11 and, new, at 0x4b564d00
ENABLED = 1
TSC_STABLE, GUEST_STOPPED = 1, 2
ENTRY = struct.Struct("<IIQQIbBxx")
"""struct pvclock_vcpu_time_info: version, padding, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags."""
WALL = struct.Struct("<III")  # struct pvclock_wall_clock: version, sec, nsec
SECOND = 1_000_000_000
MASK32, MASK64 = 0xFFFFFFFF, (1 << 64) - 1


def scale(hz: int) -> tuple[int, int]:
    """(tsc_to_system_mul, tsc_shift) for a TSC of ``hz``: the largest multiplier that 32 bits hold.

    DeviceError for a frequency outside 1 Hz to 2**63 Hz.
    """
    if not 1 <= hz < 1 << 63:
        raise DeviceError(f"pvclock: a TSC of {hz} Hz: 1 to 2**63 - 1 are possible")
    shift = (SECOND // hz).bit_length() if hz <= SECOND else 1 - (hz // SECOND).bit_length()
    while (hz << 32 << shift if shift >= 0 else hz << 32 >> -shift) <= SECOND << 32:
        shift += 1
    multiplier = (SECOND << 32) // (hz << shift) if shift >= 0 else (SECOND << 32 << -shift) // hz
    return min(multiplier, MASK32), shift


def elapsed(cycles: int, multiplier: int, shift: int) -> int:
    """Nanoseconds of so many cycles, exactly as guests compute them."""
    cycles = cycles << shift if shift >= 0 else cycles >> -shift
    return (cycles & MASK64) * multiplier >> 32


class PvClock(Device):
    """One vCPU's pvclock, two MSRs of 8 bytes: offset 0 is the wall clock's, 1 the system time's.

    ``now()``   a moment: (the vCPU's TSC, nanoseconds since the machine's time began)
    ``wall()``  nanoseconds since 1970 when the machine's time began
    ``hz``      how fast the TSC runs
    ``stable``  all vCPUs' TSCs run as one: the guest is told that it may compare their times

    The time a guest computes never goes back: where a new moment lies before what the last one leads to, it is moved.
    As with KVM, an address that isn't memory is the guest's own loss and no fault.
    """

    name = "pvclock"
    LENGTH = 2
    FIELDS = {"wall_clock": MASK64, "system_time": MASK64, "version": MASK32, "stopped": bool}

    def __init__(
        self,
        memory: Memory,
        now: Callable[[], tuple[int, int]],
        wall: Callable[[], int],
        hz: int,
        stable: bool = True,
    ) -> None:
        self.hz = hz
        self.stable = stable
        self.wall_clock = 0
        self.system_time = 0
        self.version = 0
        self.stopped = False
        self._memory = memory
        self._now = now
        self._wall = wall
        self._last: tuple[int, int, int, int] | None = None

    def read(self, offset: int, size: int) -> int:
        """What was last written to the MSR."""
        value = self.system_time if offset == SYSTEM_TIME else self.wall_clock
        return value & ((1 << 8 * size) - 1)

    def write(self, offset: int, value: int, size: int) -> None:
        """The guest says where its clock lies (bit 0 of the system time's: it wants one), and finds it there."""
        if offset == SYSTEM_TIME:
            self.system_time = value & MASK64
            self._last = None
            self.update()
        else:
            self.wall_clock = value & MASK64
            self._write_wall_clock()

    @property
    def enabled(self) -> bool:
        """Whether the guest has a clock."""
        return bool(self.system_time & ENABLED)

    def update(self) -> None:
        """Brings the guest's moment up to date; at any time, on the vCPU's thread or while it stands."""
        if not self.enabled:
            return
        tsc, ns = self._now()
        if self._last is not None:
            ns = max(ns, self._time_at(tsc, *self._last))
        multiplier, shift = scale(self.hz)
        self._last = (tsc, ns, multiplier, shift)
        flags = (TSC_STABLE if self.stable else 0) | (GUEST_STOPPED if self.stopped else 0)
        address = self.system_time & ~ENABLED
        try:
            self._put(address, ENTRY.pack(0, 0, tsc & MASK64, ns, multiplier, shift, flags))
        except GuestMemoryError:
            return
        self.stopped = False

    def paused(self) -> None:
        """Tells the guest that it was kept from running (KVM_KVMCLOCK_CTRL): its watchdogs may forgive that once."""
        self.stopped = self.enabled
        self.update()

    def _put(self, address: int, entry: bytes) -> None:
        """An odd version while the fields change, an even one afterwards; each store is seen before the next (x86)."""
        self._memory.read(address, len(entry))  # all of it is memory, or nothing is written
        self._memory.write(address, struct.pack("<I", self.version + 1 & MASK32))
        self._memory.write(address + 4, entry[4:])
        self.version = self.version + 2 & MASK32
        self._memory.write(address, struct.pack("<I", self.version))

    @staticmethod
    def _time_at(tsc: int, then: int, ns: int, multiplier: int, shift: int) -> int:
        return ns + elapsed(max(tsc - then, 0), multiplier, shift)

    def _write_wall_clock(self) -> None:
        """Once for each write of the MSR; the guest's own version is gone on with."""
        if not self.wall_clock:
            return
        try:
            version = WALL.unpack(self._memory.read(self.wall_clock, WALL.size))[0]
            version = (version | 1) & MASK32
            seconds, ns = divmod(self._wall(), SECOND)
            self._memory.write(self.wall_clock, struct.pack("<I", version))
            self._memory.write(self.wall_clock + 4, struct.pack("<II", seconds & MASK32, ns))
            self._memory.write(self.wall_clock, struct.pack("<I", version + 1 & MASK32))
        except GuestMemoryError:
            pass

    def reset(self) -> None:
        """The guest has no clock any more."""
        self.wall_clock = self.system_time = self.version = 0
        self.stopped = False
        self._last = None

    def _restored(self) -> None:
        """The TSC may be another's now: what the guest computed before says nothing about it."""
        self._last = None
