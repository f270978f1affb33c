"""The guest's TSC and the paravirtual clock that is computed from it."""

from __future__ import annotations

import time

from guests import make, not_on_pvm, to_halt
from listing import ORIGIN, code
from suite import Host, needs, skip

from kvmpy.abi.capabilities import KVM_CAP_TSC_CONTROL
from kvmpy.devices.pvclock import ENTRY, GUEST_STOPPED, elapsed
from kvmpy.machine.machine import Machine

IGNORED = "the host's TSC is the guest's, offset and scale are ignored"
TSC = 0x10
CLOCK_AT = 0x6000
SYSTEM_TIME = 0x4B564D01  # MSR_KVM_SYSTEM_TIME_NEW
FAR = 1 << 44

READER = code(
    64,
    """
      0f 31                     rdtsc
      48 c1 e2 20               shl rdx, 32
      48 09 d0                  or rax, rdx
      48 89 04 25 00 50 00 00   mov [0x5000], rax
      f4                        hlt
    """,
)


def tsc(machine: Machine) -> int:
    """What the guest's RDTSC says now."""
    machine.cpus[0].regs.rip = ORIGIN
    to_halt(machine)
    return machine.memory.read_u64(0x5000)


def test_the_tsc_goes_on_while_the_guest_does_not(host: Host) -> None:
    machine = make(host, READER)
    first = tsc(machine)
    time.sleep(0.02)
    assert tsc(machine) - first > machine.cpus[0].vcpu.get_tsc_khz() * 10


def test_a_tsc_offset_is_added(host: Host) -> None:
    """On a host whose TSC KVM finds unstable it moves the offset itself, by the time the vCPU was off: a little."""
    not_on_pvm(host, IGNORED)
    machine = make(host, READER)
    vcpu = machine.cpus[0].vcpu
    first = tsc(machine)
    offset = vcpu.get_tsc_offset()
    vcpu.set_tsc_offset(offset + FAR)
    assert FAR >> 1 < (vcpu.get_tsc_offset() - offset) % (1 << 64) < FAR + (FAR >> 1)
    assert FAR >> 1 < tsc(machine) - first < FAR + (FAR >> 1)
    vcpu.set_tsc_offset(offset)
    assert -FAR >> 1 < tsc(machine) - first < FAR >> 1


def test_the_tsc_is_a_register_that_can_be_set(host: Host) -> None:
    not_on_pvm(host, IGNORED)
    machine = make(host, READER)
    tsc(machine)
    machine.cpus[0].msrs[TSC] = FAR
    assert FAR < tsc(machine) < FAR + (FAR >> 1)
    assert FAR <= machine.cpus[0].msrs[TSC] < FAR + (FAR >> 1)


@needs("flag tsc_scale or vmx_flag tsc_scaling")
def test_a_slower_tsc(host: Host) -> None:
    not_on_pvm(host, IGNORED)
    machine = make(host, READER)
    if not machine.vm.check_extension(KVM_CAP_TSC_CONTROL):
        skip("KVM_CAP_TSC_CONTROL: this KVM doesn't scale the TSC")
    vcpu = machine.cpus[0].vcpu
    whole = vcpu.get_tsc_khz()
    vcpu.set_tsc_khz(whole // 4)
    first, began = tsc(machine), time.monotonic_ns()
    time.sleep(0.05)
    cycles, ns = tsc(machine) - first, time.monotonic_ns() - began
    assert 0.1 < cycles / (ns * whole / 1e6) < 0.4


def now(machine: Machine) -> tuple[int, int]:
    """The guest's paravirtual clock, as a guest computes it, in ns; and its flags."""
    at = tsc(machine)
    version, _, then, ns, multiplier, shift, flags = ENTRY.unpack(machine.memory.read(CLOCK_AT, ENTRY.size))
    assert version and not version & 1
    return ns + elapsed(at - then, multiplier, shift), flags


def clocked(host: Host) -> Machine:
    """A machine whose vCPU has its clock at CLOCK_AT."""
    machine = make(host, READER)
    machine.cpus[0].set_up()
    machine.cpus[0].msrs[SYSTEM_TIME] = CLOCK_AT | 1
    return machine


def test_kvmclock_never_goes_back_across_pauses(host: Host) -> None:
    machine = clocked(host)
    last, _ = now(machine)
    for _ in range(5):
        time.sleep(0.01)
        this, _ = now(machine)
        assert this > last
        last = this


def test_kvmclock_keeps_the_hosts_time(host: Host) -> None:
    machine = clocked(host)
    (first, _), began = now(machine), time.monotonic_ns()
    time.sleep(0.2)
    (second, _), ended = now(machine), time.monotonic_ns()
    assert 0.5 < (second - first) / (ended - began) < 1.5


def test_kvmclock_goes_on_from_where_it_is_set(host: Host) -> None:
    machine = clocked(host)
    now(machine)
    clock = machine.vm.get_clock()
    before = clock.clock
    clock.clock, clock.flags = before + FAR, 0
    machine.vm.set_clock(clock)
    assert machine.vm.get_clock().clock >= before + FAR
    first, _ = now(machine)
    assert before + FAR < first < before + FAR + (FAR >> 1)
    clock.clock = before
    machine.vm.set_clock(clock)
    second, _ = now(machine)
    assert before < second < before + (FAR >> 1)


def test_a_paused_guest_is_told_so(host: Host) -> None:
    machine = clocked(host)
    assert not now(machine)[1] & GUEST_STOPPED
    machine.cpus[0].vcpu.kvmclock_ctrl()
    assert now(machine)[1] & GUEST_STOPPED
    assert now(machine)[1] & GUEST_STOPPED, "until the guest takes it away"
