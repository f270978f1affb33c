"""Kinds that are host loops: what a VMM does to a vCPU, a memory slot or a VM, without an exit of the guest.

Each function sets up and gives a function that does one chunk of samples and records it.
"""

from __future__ import annotations

import os

from kvmpy._native import ffi, lib
from kvmpy.errors import KvmError
from kvmpy.lab import guests
from kvmpy.machine.machine import Machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmpy.lab.trial import LoopTrial

    Chunk = Callable[[], None]

CHUNK = 32
KICKS = 4
CHANGES = 4
KICK_DELAY_NS = 100_000
"""The vCPU is in its guest by then."""
SLOT, SLOT_SIZE = 9, 2 << 20
SYNC_BOTH = 3  # KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS


def _machine(trial: LoopTrial, entry: str = "halt") -> Machine:
    """A machine at one of the guest's entries, that has been entered once."""
    bench = trial.bench
    machine = Machine("4M", engine=bench.engine, rescue=False)
    trial.closing.append(machine.close)
    _place(machine, trial, entry)
    return machine


def _place(machine: Machine, trial: LoopTrial, entry: str) -> None:
    image = trial.bench.image
    machine.memory.write(guests.IMAGE_AT, image.data)
    state = image.state(entry, machine.memory.size, CHUNK, 0, 0)
    for gpa, data in state.memory:
        machine.memory.write(gpa, data)
    machine.cpus[0].load(state)


def _check(error: int, what: str) -> None:
    if error:
        raise KvmError(f"{what}: {os.strerror(-error)}", -error)


def _timed(trial: LoopTrial, action: Callable[[], object], count: int = CHUNK) -> Chunk:
    """A chunk of an action in Python, each between two stamps."""
    stamp = lib.kvmpy_measure_tsc
    durations = ffi.new("uint64_t[]", count)
    collector = trial.collector

    def chunk() -> None:
        switches = lib.kvmpy_switches()
        for at in range(count):
            began = stamp()
            action()
            durations[at] = stamp() - began
        lib.kvmpy_measure_record(collector, durations, count, switches)

    return chunk


def immediate_exit(trial: LoopTrial) -> Chunk:
    """The engine's enter() with immediate_exit set."""
    native = _machine(trial).cpus[0].native
    return lambda: _check(lib.kvmpy_measure_immediate(trial.collector, native, CHUNK, 0), "entry")


def sync_regs(trial: LoopTrial) -> Chunk:
    """The same, and registers go both ways."""
    cpu = _machine(trial).cpus[0]
    if cpu.synced & SYNC_BOTH != SYNC_BOTH:
        raise KvmError(
            f"the {trial.bench.engine} engine here has no registers in the shared page (KVM_CAP_SYNC_REGS)"
        )
    cpu.regs.rax, cpu.sregs.cr2 = cpu.regs.rax, cpu.sregs.cr2  # fetched: what goes in is the vCPU's own
    return lambda: _check(lib.kvmpy_measure_immediate(trial.collector, cpu.native, CHUNK, SYNC_BOTH), "entry")


def kick(trial: LoopTrial) -> Chunk:
    """Another thread, on another CPU where there is one."""
    machine = _machine(trial, "spin")
    machine.bus.publish()
    cpu = machine.cpus[0]
    cpu.set_up()
    other = -1 if trial.bench.other_cpu is None else trial.bench.other_cpu

    def chunk() -> None:
        _check(lib.kvmpy_measure_kick(trial.collector, cpu.native, KICKS, KICK_DELAY_NS, other), "kick")

    return chunk


def get_regs(trial: LoopTrial) -> Chunk:
    """KVM_GET_REGS into a structure that is there."""
    vcpu = _machine(trial).cpus[0].vcpu
    into = vcpu.get_regs()
    return _timed(trial, lambda: vcpu.get_regs(into))


def set_regs(trial: LoopTrial) -> Chunk:
    """KVM_SET_REGS."""
    vcpu = _machine(trial).cpus[0].vcpu
    regs = vcpu.get_regs()
    return _timed(trial, lambda: vcpu.set_regs(regs))


def memslot(trial: LoopTrial) -> Chunk:
    """A slot of 2 MiB goes and comes back."""
    from kvmpy.machine.backing import anonymous

    machine = _machine(trial)
    backing = anonymous(SLOT_SIZE)
    trial.closing.insert(0, backing.close)
    gpa, map_memory = guests.REGION_AT, machine.vm.map_memory
    map_memory(SLOT, 0, gpa, SLOT_SIZE, backing.address)

    def change() -> None:
        map_memory(SLOT, 0, gpa, 0, backing.address)
        map_memory(SLOT, 0, gpa, SLOT_SIZE, backing.address)

    return _timed(trial, change, CHANGES)


# The life cycle: every sample is a VM of its own, of which one step is timed.


def _steps(trial: LoopTrial, wanted: str) -> Chunk:
    """One VM from nothing to nothing; the step ``wanted`` is recorded."""
    durations = ffi.new("uint64_t[]", 1)

    def chunk() -> None:
        switches = lib.kvmpy_switches()
        durations[0] = _live(trial, wanted)
        lib.kvmpy_measure_record(trial.collector, durations, 1, switches)

    return chunk


def _live(trial: LoopTrial, wanted: str) -> int:
    stamp = lib.kvmpy_measure_tsc
    if wanted == "first_run":
        return _first_run(trial)
    from kvmpy.machine.engine import open_engine

    engine = open_engine(trial.bench.engine)
    stamps = [stamp()]
    vm: Any = engine.create_vm("none")
    stamps.append(stamp())
    try:
        vcpu = vm.create_vcpu(0)
        stamps.append(stamp())
    finally:
        between = stamp()
        if len(stamps) == 3:
            vcpu.close()
        vm.close()
        stamps.append(stamp())
    steps = {
        "vm_create": stamps[1] - stamps[0],
        "vcpu_create": stamps[2] - stamps[1],
        "vm_destroy": stamps[3] - between,
    }
    return int(steps[wanted])


def _first_run(trial: LoopTrial) -> int:
    """The engine's enter() of a vCPU that has never run, up to the HLT."""
    with Machine("4M", engine=trial.bench.engine, rescue=False) as machine:
        _place(machine, trial, "halt")
        machine.bus.publish()
        cpu = machine.cpus[0]
        cpu.set_up()
        _check(lib.kvmpy_thread_enter(cpu.native, 0, 0), "entry")
        try:
            began = lib.kvmpy_measure_tsc()
            code = lib.kvmpy_run(cpu.native)
            ended = lib.kvmpy_measure_tsc()
        finally:
            lib.kvmpy_thread_leave(cpu.native)
        if code != lib.KVMPY_EXIT:
            raise KvmError(f"the first entry came back with {code} instead of HLT")
        return int(ended - began)


def vm_create(trial: LoopTrial) -> Chunk:
    """As the machine makes one."""
    return _steps(trial, "vm_create")


def vcpu_create(trial: LoopTrial) -> Chunk:
    """As the machine makes one, with the mapping of its shared page."""
    return _steps(trial, "vcpu_create")


def first_run(trial: LoopTrial) -> Chunk:
    """Page tables, descriptors and program are there; no memory has been touched by the guest."""
    return _steps(trial, "first_run")


def vm_destroy(trial: LoopTrial) -> Chunk:
    """vCPU first."""
    return _steps(trial, "vm_destroy")
