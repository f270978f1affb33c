"""A pvclock for guests of engines that have none: KVM's MSRs, served here (:mod:`kvmpy.devices.pvclock`)."""

from __future__ import annotations

import time

from kvmpy.devices.pvclock import PvClock
from kvmpy.errors import KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.machine import Machine

MSRS = (0x11, 0x4B564D00)
"""MSR_KVM_WALL_CLOCK and _NEW; MSR_KVM_SYSTEM_TIME and _NEW are the next ones."""
TSC = 0x10
TRIES = 5
CALIBRATION = 20_000_000  # ns
SECOND = 1_000_000_000


class Clocks:
    """Gives each vCPU of a machine a pvclock, and says so in CPUID. Before the first run.

    Time begins at 0 with this object and runs as the host's CLOCK_MONOTONIC_RAW; where the engine can't say how fast
    its TSC runs it is measured, and better the longer the machine lives.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._zero = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        self._hz = 0
        self._first = self._moment(machine.cpus[0])
        self.clocks = [PvClock(machine.memory, self._now_of(cpu), self._wall, SECOND) for cpu in machine.cpus]
        for first in MSRS:
            machine.msrs.attach(first, 2, self, "pvclock")
        self._announce()

    def _announce(self) -> None:
        from kvmpy.x86.persona import provide
        from kvmpy.x86.pv_features import CLOCKSOURCE, CLOCKSOURCE2, CLOCKSOURCE_STABLE

        for cpu in self.machine.cpus:
            if not cpu.has_run:
                provide(cpu.cpuid, CLOCKSOURCE | CLOCKSOURCE2 | CLOCKSOURCE_STABLE)

    def _moment(self, cpu: Cpu) -> tuple[int, int]:
        """(TSC, ns since time began), read as closely together as can be."""
        best, tightest = (0, 0), 1 << 63
        for _ in range(TRIES):
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            tsc: int = cpu.vcpu.get_msrs([TSC])[TSC]
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            if after - before < tightest:
                tightest = after - before
                best = (tsc, (before + after) // 2 - self._zero)
        return best

    def _now_of(self, cpu: Cpu) -> Callable[[], tuple[int, int]]:
        return lambda: self._moment(cpu)

    def _wall(self) -> int:
        since = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - self._zero
        return time.time_ns() - since

    @property
    def hz(self) -> int:
        """How fast the guests' TSC runs; found out when the first guest asks for a clock."""
        if not self._hz:
            self._hz = self._known() or self._measured()
        return self._hz

    def _known(self) -> int:
        try:
            return int(self.machine.cpus[0].vcpu.get_tsc_khz()) * 1000
        except (AttributeError, KvmpyError):
            return 0

    def _measured(self) -> int:
        while time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - self._zero - self._first[1] < CALIBRATION:
            time.sleep(CALIBRATION / SECOND / 4)
        tsc, ns = self._moment(self.machine.cpus[0])
        return max((tsc - self._first[0]) * SECOND // (ns - self._first[1]), 1)

    def refresh(self) -> None:
        """Brings all guests' clocks up to date; while the machine stands, or in a handler of its only vCPU."""
        if not self._known():
            self._hz = self._measured()
        for clock in self.clocks:
            clock.hz = self.hz
            clock.update()

    # The MSRs: an owner of the machine's bus.

    def read(self, offset: int, size: int) -> int:
        """RDMSR by the vCPU on whose thread this is."""
        return self.clocks[self.machine.current_cpu().index].read(offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        """WRMSR."""
        clock = self.clocks[self.machine.current_cpu().index]
        clock.hz = self.hz
        clock.write(offset, value, size)
