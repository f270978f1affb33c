"""The clock of the laboratory: how fast the TSC runs, and on which CPU it is read."""

from __future__ import annotations

import os
import time

from kvmpy._native import lib
from kvmpy.errors import KvmpyError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

AGREE = 0.01
"""Two frequencies that are this close are the same."""


def tsc_frequency(root: str = "/") -> dict[str, Any]:
    """``hz`` of the TSC and ``source``; ``measured_hz`` against CLOCK_MONOTONIC_RAW in any case.

    KVM's word counts where it has one and the measurement agrees.
    """
    measured = _measure()
    said = _ask_kvm()
    if said and abs(said - measured) <= AGREE * said:
        return {"hz": said, "source": "KVM_GET_TSC_KHZ", "measured_hz": round(measured)}
    source = "measured against CLOCK_MONOTONIC_RAW"
    if said:
        source += f"; KVM_GET_TSC_KHZ says {said}, which it isn't"
    return {"hz": round(measured), "source": source, "measured_hz": round(measured)}


def _measure() -> float:
    """The middle of five measurements of 10 ms: one of them may be interrupted between its two clocks."""
    found = []
    for _ in range(5):
        tsc, ns = lib.kvmpy_measure_tsc(), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        time.sleep(0.01)
        tsc, ns = lib.kvmpy_measure_tsc() - tsc, time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - ns
        found.append(tsc * 1e9 / ns)
    found.sort()
    return float(found[2])


def _ask_kvm() -> int:
    try:
        from kvmpy.kvm.system import System

        with System() as system, system.create_vm() as vm:
            return 1000 * vm.get_tsc_khz()
    except KvmpyError:
        return 0


def choose_cpus(wanted: int | None, allowed: Collection[int] | None = None) -> tuple[int, int | None]:
    """The CPU to measure on and another one: those that are least busy, or ``wanted`` and the least busy other.

    Raises UsageError for a CPU that doesn't exist or isn't allowed.
    """
    allowed = os.sched_getaffinity(0) if allowed is None else allowed
    if wanted is not None and wanted not in allowed:
        there = os.cpu_count() or 1
        ways = ", ".join(map(str, sorted(allowed)))
        why = "isn't allowed here" if 0 <= wanted < there else f"doesn't exist: there are {there}"
        raise UsageError(f"CPU {wanted} {why}; this process may use {ways}")
    busy = _busy()
    ordered = sorted(allowed, key=lambda cpu: (round(busy.get(cpu, 0.0), 1), -cpu))
    first = ordered[0] if wanted is None else wanted
    others = [cpu for cpu in ordered if cpu != first]
    return first, others[0] if others else None


def _busy() -> dict[int, float]:
    """The share of the last 50 ms that each CPU was busy."""
    before = _times()
    time.sleep(0.05)
    found = {}
    for cpu, (busy, total) in _times().items():
        busy_before, total_before = before.get(cpu, (0, 0))
        found[cpu] = (busy - busy_before) / max(total - total_before, 1)
    return found


def _times() -> dict[int, tuple[int, int]]:
    found = {}
    try:
        with open("/proc/stat", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in lines:
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdecimal():
            values = [int(number) for number in numbers[:8]]
            found[int(name[3:])] = (sum(values) - values[3] - values[4], sum(values))
    return found
