"""Nothing that a vCPU writes at an exit which C serves shares a cache line with anything of another's."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from kvmpy._native import ffi
from kvmpy.devices.registers import Register, RegisterFile
from kvmpy.machine.engine_stub import StubEngine
from kvmpy.machine.machine import Machine
from kvmpy.machine.rules import Fifo, Latch, of_device

LINE = 64


class Timer(RegisterFile):
    name = "timer"
    control = Register(0, 4)


def lines(start: Any, size: int) -> set[int]:
    first = int(ffi.cast("uintptr_t", start))
    return set(range(first // LINE, (first + size - 1) // LINE + 1))


def written(machine: Machine, index: int) -> list[set[int]]:
    """What an exit of that vCPU, served by rules of its own, writes to."""
    native, ring = machine.cpus[index].native, machine.rings[index].native
    latch, fifo, timer = Latch(1), Fifo(16), Timer()
    machine.ports.attach(16 * index, 1, latch)
    machine.ports.attach(16 * index + 1, 1, fifo)
    machine.ports.attach(16 * index + 4, 4, timer)
    queues = [fifo.native.out, getattr(fifo.native, "in")]
    return [
        lines(native, ffi.sizeof("struct kvmpy_vcpu")),
        lines(native.counts, 4096 * 8),
        lines(native.run, 4096),
        lines(ring, ffi.sizeof("struct kvmpy_ring")),
        lines(latch.native.registers.memory, 1),
        lines(of_device(timer).native.registers.memory, Timer.LENGTH),
        *(lines(queue, ffi.sizeof("struct kvmpy_fifo") + 16) for queue in queues),
    ]


def test_no_line_is_shared() -> None:
    with Machine("64K", 8, engine=StubEngine([])) as machine:
        machine.log(1, "last")
        everything = [region for index in range(8) for region in written(machine, index)]
        everything.append(lines(machine.bus.native, ffi.sizeof("struct kvmpy_bus")))
        for one, other in combinations(everything, 2):
            assert not one & other
