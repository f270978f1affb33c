"""VMCALL and VMMCALL: what KVM answers itself, what reaches user space, and which of the two a host knows."""

from __future__ import annotations

from typing import Any

from guests import make, not_on_pvm, to_exit, to_halt
from listing import ORIGIN, Code, code
from offers import require
from suite import Host, cases

from kvmpy.abi.capabilities import KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_EXIT_HYPERCALL
from kvmpy.machine.machine import Machine

UD = 6
KVM_HC_VAPIC_POLL_IRQ, KVM_HC_MAP_GPA_RANGE = 1, 12
KVM_ENOSYS, EPERM, EINVAL = 1000, 1, 22
UNKNOWN = 0x7777
KVM_X86_QUIRK_FIX_HYPERCALL_INSN = 1 << 5
MASK = (1 << 64) - 1

VMCALL = code(
    64,
    """
      0f 01 c1         vmcall
      48 89 c5         mov rbp, rax
      f4               hlt
    ud:
      bd 6b 00 00 00   mov ebp, 0x6b
      f4               hlt
    """,
)
VMMCALL = code(
    64,
    """
      0f 01 d9         vmmcall
      48 89 c5         mov rbp, rax
      f4               hlt
    ud:
      bd 6b 00 00 00   mov ebp, 0x6b
      f4               hlt
    """,
)
BOTH = {"vmcall": VMCALL, "vmmcall": VMMCALL}
INVALID = 0x6B
IN_RING_3 = {
    "vmcall": code(64, "0f 01 c1   vmcall\n48 89 03   mov [rbx], rax"),
    "vmmcall": code(64, "0f 01 d9   vmmcall\n48 89 03   mov [rbx], rax"),
}
NOTHING = 0xFE000000
"""Where there is no memory: a write there ends a program."""
VMCALL_32 = code(32, "0f 01 c1   vmcall\nf4   hlt")
NATIVE = {"kvm_intel": "vmcall", "kvm_amd": "vmmcall"}


def calling(host: Host, what: Code, number: int, *arguments: int, **settings: Any) -> Machine:
    not_on_pvm(host, "KVM_RUN doesn't return from VMCALL and VMMCALL")
    names = ("rbx", "rcx", "rdx", "rsi")
    registers = {"rax": number, **dict(zip(names, arguments, strict=False))}
    handlers = {UD: "ud"} if "ud" in what.at else None
    return make(host, what, registers=registers, handlers=handlers, **settings)


@cases(**BOTH)
def test_either_instruction_is_a_hypercall_on_every_host(host: Host, case: Code) -> None:
    """KVM puts the host's own in place of the other one (KVM_X86_QUIRK_FIX_HYPERCALL_INSN)."""
    machine = calling(host, case, UNKNOWN, 1, 2, 3, 4)
    to_halt(machine)
    regs: Any = machine.cpus[0].regs
    assert regs.rax == regs.rbp == -KVM_ENOSYS & MASK
    assert (regs.rbx, regs.rcx, regs.rdx, regs.rsi) == (1, 2, 3, 4), "arguments stay"
    assert machine.memory.read(ORIGIN, 3) == BOTH[NATIVE[host.module]].data[:3]


@cases(**BOTH)
def test_the_other_vendors_instruction_without_that_quirk(host: Host, case: Code) -> None:
    require("KVM_CAP_DISABLE_QUIRKS2")
    machine = calling(host, case, UNKNOWN)
    machine.vm.enable_cap(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
    to_halt(machine)
    own = case is BOTH[NATIVE[host.module]]
    assert machine.cpus[0].regs.rbp == (-KVM_ENOSYS & MASK if own else INVALID)
    assert machine.memory.read(ORIGIN, 3) == case.data[:3], "left as it was"


def test_a_hypercall_outside_long_mode_has_32_bits(host: Host) -> None:
    machine = calling(host, VMCALL_32, UNKNOWN)
    to_halt(machine)
    assert machine.cpus[0].regs.rax == -KVM_ENOSYS & 0xFFFFFFFF


def test_a_hypercall_from_ring_3_is_refused(host: Host) -> None:
    machine = calling(host, IN_RING_3[NATIVE.get(host.module, "vmcall")], UNKNOWN, ring=3)
    machine.cpus[0].regs.rbx = NOTHING
    seen = to_exit(machine, "MMIO")
    assert bytes(seen.data) == (-EPERM & MASK).to_bytes(8, "little")


def test_a_hypercall_that_kvm_serves(host: Host) -> None:
    machine = calling(host, VMCALL, KVM_HC_VAPIC_POLL_IRQ)
    to_halt(machine)
    assert machine.cpus[0].regs.rbp == 0


def test_a_hypercall_that_user_space_serves(host: Host) -> None:
    """KVM_CAP_EXIT_HYPERCALL: the call, its arguments, and an answer that the guest finds in RAX."""
    require("KVM_CAP_EXIT_HYPERCALL")
    machine = calling(host, VMCALL, KVM_HC_MAP_GPA_RANGE, 0x4000, 3, 0x10)
    machine.vm.enable_cap(KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE)
    seen = []

    @machine.hypercall(KVM_HC_MAP_GPA_RANGE)
    def serve(call: Any) -> int:
        seen.append(call.args[:3])
        return 0x1234

    result = to_halt(machine)
    assert seen == [(0x4000, 3, 0x10)]
    assert machine.cpus[0].regs.rbp == 0x1234
    assert result.exits["HYPERCALL"] == 1


def test_bad_arguments_of_that_hypercall_do_not_reach_user_space(host: Host) -> None:
    require("KVM_CAP_EXIT_HYPERCALL")
    for arguments in ((0x4001, 1, 0), (0x4000, 0, 0)):
        machine = calling(host, VMCALL, KVM_HC_MAP_GPA_RANGE, *arguments)
        machine.vm.enable_cap(KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE)
        assert "HYPERCALL" not in to_halt(machine).exits
        assert machine.cpus[0].regs.rbp == -EINVAL & MASK


def test_that_hypercall_is_unknown_until_it_is_asked_for(host: Host) -> None:
    machine = calling(host, VMCALL, KVM_HC_MAP_GPA_RANGE, 0x4000, 1, 0)
    to_halt(machine)
    assert machine.cpus[0].regs.rbp == -KVM_ENOSYS & MASK
