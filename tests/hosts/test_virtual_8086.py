"""Real mode without "unrestricted guest" is a virtual-8086 task; its TSS is where KVM_SET_TSS_ADDR says.

Without that call KVM takes what the guest has at 0 for it: then ports and interrupts fault, and KVM's emulator makes up
for it without a word, instruction by instruction. So what is looked at is how much it had to do (KVM_GET_STATS_FD).
"""

from __future__ import annotations

from guests import listen, make, not_on_pvm, to_halt
from listing import code
from suite import Host, skip

from kvmpy.abi.capabilities import KVM_CAP_BINARY_STATS_FD
from kvmpy.machine.machine import Machine

TIMES = 50
HANDLER = 0x2000
PORTS = code(
    16,
    """
      b9 32 00   mov cx, 50
    again:
      e6 e9      out 0xe9, al
      49         dec cx
      75 fb      jnz again
      f4         hlt
    """,
)
INTERRUPTS = code(
    16,
    """
      b9 32 00   mov cx, 50
      51         push cx
      59         pop cx
    again:
      cd 21      int 0x21
      49         dec cx
      75 fb      jnz again
      f4         hlt
    """,
)
IRET = code(
    16,
    """
      cf   iret
    """,
)


def emulated(machine: Machine) -> int:
    """How many instructions KVM has emulated for the first vCPU."""
    with machine.cpus[0].vcpu.get_stats() as stats:
        found = stats.read()["insn_emulation"]
    assert isinstance(found, int)
    return found


def run(host: Host, machine: Machine) -> int:
    """Runs the guest to its end; how many instructions were emulated meanwhile."""
    not_on_pvm(host, "it emulates all of real mode")
    host.avoid(
        "amd-bochs", because="pow() of the C library overflows in Bochs 2.7, and the counters' scales need it"
    )
    if not machine.vm.check_extension(KVM_CAP_BINARY_STATS_FD):
        skip("KVM_CAP_BINARY_STATS_FD: this kernel has no counters to look at")
    machine.memory.fill(0, 0x84, 0xFF)  # no TSS: all of its I/O bitmap's base, all vectors below 0x21
    machine.memory.write(4 * 0x21, HANDLER.to_bytes(4, "little"))
    machine.memory.write(HANDLER, IRET.data)
    before = emulated(machine)
    to_halt(machine)
    return emulated(machine) - before


def test_ports_of_real_mode_need_no_emulator(host: Host) -> None:
    machine = make(host, PORTS)
    said = listen(machine)
    assert run(host, machine) < TIMES // 2
    assert len(said) == TIMES


def test_interrupts_of_real_mode_need_no_emulator(host: Host) -> None:
    assert run(host, make(host, INTERRUPTS)) < TIMES // 2
