"""Machines with a few instructions in them, ready to run, for the tests of this directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from listing import ORIGIN, Code
from suite import Host, skip

from kvmpy._native import ffi
from kvmpy.abi.constants import KVM_MP_STATE_HALTED
from kvmpy.machine import exits
from kvmpy.machine.cpu import Cpu
from kvmpy.machine.exits import Exit
from kvmpy.machine.machine import Machine
from kvmpy.machine.result import Result
from kvmpy.x86 import entry
from kvmpy.x86.entry import EntryState

PORT = 0xE9
"""Where these guests write what they have to say, in up to four bytes."""
STACK = 0x8000
PATIENCE = 20.0
"""Seconds: only a guest that hangs takes that long."""


def make(
    host: Host,
    code: Code,
    *,
    ring: int = 0,
    handlers: Mapping[int, str] | None = None,
    interrupts: bool = False,
    registers: Mapping[str, int] | None = None,
    memory: str = "1M",
    **settings: Any,
) -> Machine:
    """A machine of the kvm engine whose first vCPU stands at the first byte of ``code``.

    ``handlers`` maps vectors to labels: interrupt gates of protected and long mode. ``interrupts`` sets IF.
    ``settings`` are those of :meth:`Host.machine`, whose exits nobody writes down here unless asked to.
    """
    machine = host.machine(memory=memory, **{"trace": False, **settings})
    gates = {vector: code.at[label] for vector, label in (handlers or {}).items()}
    put(machine, code)
    start(machine, state(code, machine.memory.size, ring, gates, interrupts, registers))
    return machine


def put(machine: Machine, code: Code) -> None:
    """Writes the code to its place."""
    machine.memory.write(ORIGIN, code.data)


def state(
    code: Code,
    size: int,
    ring: int = 0,
    gates: Mapping[int, int] | None = None,
    interrupts: bool = False,
    registers: Mapping[str, int] | None = None,
) -> EntryState:
    """The entry state of a mode's code in memory of ``size`` bytes."""
    if code.bits == 16:
        return entry.real_mode(0, ORIGIN, sp=STACK, interrupts=interrupts, regs=registers)
    if code.bits == 32:
        return entry.protected_mode(
            ORIGIN, ring=ring, stack=STACK, idt=gates, interrupts=interrupts, regs=registers
        )
    return entry.long_mode(
        ORIGIN,
        memory_size=size,
        ring=ring,
        stack=STACK,
        ports=True,
        idt=gates,
        interrupts=interrupts,
        regs=registers,
    )


def start(machine: Machine, state: EntryState, index: int = 0) -> None:
    """Puts a vCPU at an entry state, and the state's tables into memory."""
    for gpa, data in state.memory:
        machine.memory.write(gpa, data)
    machine.cpus[index].load(state)


class Output:
    """A device that keeps what is written to it, each value as it came."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, value: int, size: int) -> None:
        self.values.append(value)


def listen(machine: Machine, port: int = PORT) -> list[int]:
    """What the guest is going to write to ``port``."""
    output = Output()
    machine.ports.attach(port, 4, output, name="output")
    return output.values


def to_halt(machine: Machine) -> Result:
    """Runs the guest until it halts; nothing else is all right."""
    result = machine.run(timeout=PATIENCE)
    assert result.reason == "halt", (result, machine.cpus[0].regs)
    return result


def to_exit(machine: Machine, reason: str) -> Exit:
    """Runs the guest until its next exit for ``reason``, which nobody has to take over."""
    result = machine.run(timeout=PATIENCE, until=[reason])
    seen = exits.view(machine.cpus[0])
    assert seen.name == reason, (result, seen)
    return seen


SPURIOUS, SOFTWARE_ENABLED = 0xF0, 1 << 8  # of the local APIC
MESSAGES = 0xFEE0_0000


def enable_lapic(cpu: Cpu) -> None:
    """Switches the local APIC on, as a guest does with its spurious vector register (SDM vol. 3 ch. 11.4.7.2)."""
    lapic = cpu.vcpu.get_lapic()
    ffi.cast("uint32_t *", lapic.regs)[SPURIOUS // 4] = SOFTWARE_ENABLED | 0xFF
    cpu.vcpu.set_lapic(lapic)


def msi(machine: Machine, vector: int, cpu: int = 0) -> int:
    """Sends a message-signalled interrupt, fixed and edge-triggered, to a vCPU; what KVM says became of it."""
    delivered: int = machine.vm.signal_msi(MESSAGES | cpu << 12, vector)
    return delivered


def asleep(machine: Machine) -> None:
    """Lets the vCPU sleep in the kernel, with interrupts on: amd-bochs doesn't deliver one that came before STI."""
    assert machine.run(timeout=0.05).reason == "timeout"
    assert machine.cpus[0].vcpu.get_mp_state() == KVM_MP_STATE_HALTED


def not_on_pvm(host: Host, because: str) -> None:
    """Skips the test where KVM works without hardware virtualization, for what that can't do."""
    if host.module == "kvm_pvm":
        skip(f"kvm_pvm: {because}")
