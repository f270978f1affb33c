"""Getting a vCPU out of its guest: immediate_exit, kicks, signals; nothing of the guest is lost by it."""

from __future__ import annotations

import errno
import signal
import threading
import time

from guests import enable_lapic, listen, make, msi, to_halt
from later import Later
from listing import code
from suite import Host, cases

from kvmpy.abi import constants as c

SPIN = code(
    64,
    """
    again:
      48 ff c0   inc rax
      eb fb      jmp again
    """,
)
ASKS = code(
    64,
    """
      e5 70   in eax, 0x70
      89 c3   mov ebx, eax
      f4      hlt
    """,
)


def test_immediate_exit_keeps_the_guest_out(host: Host) -> None:
    machine = make(host, SPIN)
    cpu = machine.cpus[0]
    assert cpu.regs.rax == 0
    cpu.native.run.immediate_exit = 1
    for _ in range(3):
        assert cpu.vcpu.enter() == errno.EINTR
    cpu.native.run.immediate_exit = 0
    regs = cpu.vcpu.get_regs()
    assert (regs.rip, regs.rax) == (SPIN.at["again"], 0)


def test_immediate_exit_completes_the_access_first(host: Host) -> None:
    machine = make(host, ASKS)
    machine.ports.on_read(0x70, 4)(lambda offset, size: 0x12345678)
    cpu = machine.cpus[0]
    result = machine.run(timeout=20, max_exits=1)
    assert result.reason == "max-exits"
    assert (cpu.regs.rip, cpu.regs.rax, cpu.regs.rbx) == (0x1002, 0x12345678, 0)
    to_halt(machine)
    assert cpu.regs.rbx == 0x12345678


def test_a_stop_from_another_thread_ends_the_run(host: Host) -> None:
    machine = make(host, SPIN)
    Later(host, 0.02, lambda: machine.stop(7))
    result = machine.run(timeout=20)
    assert (result.reason, result.status) == ("stopped", 7)
    first = machine.cpus[0].regs.rax
    assert first > 0
    assert machine.run(timeout=0.02).reason == "timeout"
    assert machine.cpus[0].regs.rax > first


SLEEPER = code(
    64,
    """
      fb      sti
      f4      hlt
      b0 03   mov al, 3
      e6 e9   out 0xe9, al
      fa      cli
      f4      hlt
    handler:
      48 cf   iretq
    """,
)


@cases("kernel", "split")
def test_a_stop_wakes_a_vcpu_that_sleeps_in_the_kernel(host: Host, case: str) -> None:
    machine = make(host, SLEEPER, handlers={0x40: "handler"}, irqchip=case)
    said = listen(machine)
    enable_lapic(machine.cpus[0])
    Later(host, 0.02, machine.stop)
    assert machine.run(timeout=20).reason == "stopped"
    assert machine.cpus[0].vcpu.get_mp_state() == c.KVM_MP_STATE_HALTED
    assert said == []
    msi(machine, 0x40)
    to_halt(machine)
    assert said == [3]


TALKER = code(
    64,
    """
      31 c0            xor eax, eax
    again:
      ff c0            inc eax
      e7 e9            out 0xe9, eax
      ba d0 07 00 00   mov edx, 2000
    wait:
      ff ca            dec edx
      75 fc            jnz wait
      ff c9            dec ecx
      75 ef            jnz again
      f4               hlt
    """,
)


MOST_RUNS = 40


def storm(host: Host) -> Later:
    """A signal for this thread every millisecond of the host's, as long as the test lasts."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    host.defer(signal.signal, signal.SIGUSR1, before)
    ident = threading.get_ident()
    return Later(host, 0.001, lambda: signal.pthread_kill(ident, signal.SIGUSR1), every=True)


def test_a_storm_of_signals_loses_no_exit(host: Host) -> None:
    machine = make(host, TALKER, registers={"rcx": 1 << 31})
    said = listen(machine)
    thread = storm(host)
    runs = 0
    # On a slow host most signals come while Python has the vCPU's thread.
    while runs < MOST_RUNS and machine.cpus[0].native.eintr <= runs:
        assert machine.run(timeout=0.3).reason == "timeout"
        runs += 1
    thread.end()
    assert said == list(range(1, len(said) + 1))
    assert said
    assert machine.cpus[0].native.eintr > runs, "the time limit's own each time, and of the storm"


def test_a_storm_of_signals_loses_no_time_limit(host: Host) -> None:
    machine = make(host, SPIN)
    storm(host)
    began = time.monotonic()
    assert machine.run(timeout=0.1).reason == "timeout"
    assert time.monotonic() - began >= 0.1


def test_signals_in_the_mask_of_the_run_wait_outside(host: Host) -> None:
    machine = make(host, TALKER, registers={"rcx": 100})
    said = listen(machine)
    thread = storm(host)
    machine.cpus[0].vcpu.set_signal_mask([signal.SIGUSR1])
    before = machine.cpus[0].native.eintr
    to_halt(machine)
    thread.end()
    assert said == list(range(1, 101))
    assert machine.cpus[0].native.eintr == before
