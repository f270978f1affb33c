"""Hypercalls from real guests, by the way each engine has for them."""

from __future__ import annotations

import os

import pytest

from kvmpy.machine.hypercalls import DOORBELL, KVM_ENOSYS, KVM_EPERM, PVM, Call
from kvmpy.machine.machine import Machine
from kvmpy.x86 import long_mode

LONG_ENOUGH = 60.0
ENTRY = 0x100000
RING = bytes([0xE6, DOORBELL])  # out %al, $DOORBELL
HALT = b"\xf4"
# mov $0x77, %eax; mov $1, %ebx; mov $2, %ecx; mov $3, %edx; mov $4, %esi
SET_UP = bytes.fromhex("b877000000 bb01000000 b902000000 ba03000000 be04000000")


pytestmark = pytest.mark.kvmpy(memory="2M", timeout=2 * LONG_ENOUGH)


def load(machine: Machine, code: bytes, mode: str = "long") -> None:
    machine.load(code, mode=mode, format="flat", load_address=ENTRY)


def test_the_doorbell_in_long_mode(machine: Machine) -> None:
    seen = []

    @machine.hypercall(0x77)
    def handler(call: Call) -> int:
        seen.append((call.args, call.long))
        return -5

    load(machine, SET_UP + RING + HALT)
    result = machine.run(timeout=LONG_ENOUGH)
    assert result.reason == "halt"
    assert seen == [((1, 2, 3, 4), True)]
    regs = machine.cpus[0].regs
    assert regs.rax == (1 << 64) - 5
    assert (regs.rbx, regs.rcx, regs.rdx, regs.rsi) == (1, 2, 3, 4)
    assert result.exits["IO"] == 1


def test_the_doorbell_in_protected_mode(machine: Machine) -> None:
    machine.hypercall(0x77)(lambda call: -1 if not call.long else 0)
    load(machine, SET_UP + RING + HALT, "protected")
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert machine.cpus[0].regs.rax == 0xFFFFFFFF


def test_an_unknown_number(machine: Machine) -> None:
    machine.hypercall(1)(lambda call: 0)
    load(machine, SET_UP + RING + HALT)
    machine.run(timeout=LONG_ENOUGH)
    assert machine.cpus[0].regs.rax == (1 << 64) - KVM_ENOSYS


def test_ring_3_may_not_even_where_it_may_use_the_port(machine: Machine) -> None:
    machine.hypercall(0x77)(lambda call: pytest.fail("it was called"))
    machine.memory.write(ENTRY, SET_UP + RING + b"\xe6\x80\xeb\xfe")  # then port 0x80, and for ever
    seen = []

    @machine.ports.on_write(0x80)
    def end(offset: int, value: int, size: int) -> None:
        seen.append(machine.cpus[0].regs.rax)
        machine.stop()

    entry = long_mode(
        ENTRY,
        memory_size=machine.memory.size,
        ring=3,
        ports=[range(DOORBELL, DOORBELL + 1), range(0x80, 0x81)],
        avoid=[(ENTRY, 4096)],
    )
    for gpa, data in entry.memory:
        machine.memory.write(gpa, data)
    machine.cpus[0].load(entry)
    machine.run(timeout=LONG_ENOUGH)
    assert seen == [(1 << 64) - KVM_EPERM]


def test_a_handler_that_raises_stops_the_vcpu_at_that_exit(machine: Machine) -> None:
    wrong = [True]

    @machine.hypercall(0x77)
    def handler(call: Call) -> int:
        if wrong[0]:
            raise ValueError("not today")
        return 9

    load(machine, SET_UP + RING + HALT)
    with pytest.raises(ValueError, match="not today") as caught:
        machine.run(timeout=LONG_ENOUGH)
    assert caught.value.__notes__ == [f"at 1 byte write of 0x77, port {DOORBELL:#x} on vCPU 0"]
    assert machine.cpus[0].regs.rax == 0x77
    wrong[0] = False
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert machine.cpus[0].regs.rax == 9


def test_skip_goes_past_it(machine: Machine) -> None:
    machine.hypercall(0x77)(lambda call: 1 // 0)
    load(machine, SET_UP + RING + HALT)
    with pytest.raises(ZeroDivisionError):
        machine.run(timeout=LONG_ENOUGH)
    machine.skip()
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert machine.cpus[0].regs.rax == 0x77


@pytest.mark.parametrize("opcode", ["0f01c1", "0f01d9"])
def test_the_instruction_where_cpuid_says_that_it_works(machine: Machine, opcode: str) -> None:
    seen = []

    @machine.hypercall(0x77)
    def handler(call: Call) -> int:
        seen.append(call.args)
        return 5

    table = machine.cpus[0].cpuid
    block = 0x40000100 if table.hypervisor != "kvmpykvmpyVM" else 0x40000000
    if not table.get(block + 1).ecx & 3:
        pytest.skip(f"engine {machine.engine.name}: CPUID says that neither VMCALL nor VMMCALL gets here")
    load(machine, SET_UP + bytes.fromhex(opcode) + HALT)
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert seen == [(1, 2, 3, 4)]
    assert machine.cpus[0].regs.rax == 5


def test_cpuid_says_where_the_doorbell_is(machine: Machine) -> None:
    """As a guest's library looks for it: mov $0x40000100, %eax; cpuid; then leaf + 1."""
    machine.hypercall(0x77)(lambda call: 0)
    store = "890425{}200000 891c25{}200000 890c25{}200000 891425{}200000 "  # the four registers to 0x20..
    code = "b800010040 0fa2" + store.format("00", "04", "08", "0c")
    code += "b801010040 0fa2" + store.format("10", "14", "18", "1c")
    load(machine, bytes.fromhex(code) + HALT)
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    read = machine.memory.read_u32
    assert machine.memory.read(0x2004, 12) == b"kvmpykvmpyVM"
    assert read(0x2000) == 0x40000101
    assert (read(0x2010), read(0x2014)) == (1, DOORBELL)
    assert bool(read(0x2018)) is not machine.engine.in_kernel


@pytest.mark.kvmpy(engine="kvm")
def test_a_vcpu_that_hangs_at_vmcall_is_told_from_a_slow_one(machine: Machine) -> None:
    if not os.path.exists(PVM):
        pytest.skip(f"{PVM} isn't there: on other hosts KVM answers VMCALL itself")
    load(machine, SET_UP + b"\x0f\x01\xc1" + HALT)
    result = machine.run(timeout=0.3)
    assert result.reason == "timeout"
    assert "VMCALL or VMMCALL, which never returns on this host" in result.detail
    assert "port 0xea" in result.detail
    load(machine, b"\xeb\xfe")
    assert machine.run(timeout=0.1).detail == ""
