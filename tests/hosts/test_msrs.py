"""MSR accesses that leave the guest: unknown ones, filtered ones, and those of machine.msrs."""

from __future__ import annotations

from typing import Any

from guests import make, to_exit, to_halt
from listing import code
from offers import require
from suite import Host, cases

from kvmpy.abi import constants as c
from kvmpy.abi import exits as why
from kvmpy.machine.machine import Machine
from kvmpy.machine.rules import Latch

UNKNOWN = 0x4711
KERNEL_GS_BASE, LSTAR, TSC = 0xC0000102, 0xC0000082, 0x10
X2APIC_TPR = 0x808
READ, WRITE = c.KVM_MSR_FILTER_READ, c.KVM_MSR_FILTER_WRITE
GP = 13

READ_MSR = code(
    64,
    """
      0f 32            rdmsr
      f4               hlt
    gp:
      5b               pop rbx
      bf 6b 00 00 00   mov edi, 0x6b
      f4               hlt
    """,
)
WRITE_MSR = code(
    64,
    """
      0f 30            wrmsr
      f4               hlt
    gp:
      5b               pop rbx
      bf 6b 00 00 00   mov edi, 0x6b
      f4               hlt
    """,
)
READ_TWICE = code(
    64,
    """
    0f 32      rdmsr
    49 89 c0   mov r8, rax
    49 89 d1   mov r9, rdx
    e6 e9      out 0xe9, al
    0f 32      rdmsr
    f4         hlt
    """,
)
WRITE_THEN_READ = code(
    64,
    """
    0f 30   wrmsr
    31 c0   xor eax, eax
    31 d2   xor edx, edx
    0f 32   rdmsr
    f4      hlt
    """,
)
FAULTED = 0x6B
"""What RDI holds after a #GP."""


def accessing(host: Host, what: Any, index: int, value: int = 0, **settings: Any) -> Machine:
    registers = {"rcx": index, "rax": value & 0xFFFFFFFF, "rdx": value >> 32}
    handlers = {GP: "gp"} if "gp" in what.at else None
    return make(host, what, registers=registers, handlers=handlers, **settings)


def edx_eax(machine: Machine) -> int:
    regs: Any = machine.cpus[0].regs
    return int(regs.rdx << 32 | regs.rax)


@cases(read=READ_MSR, write=WRITE_MSR)
def test_an_msr_that_does_not_exist_is_a_general_protection_fault(host: Host, case: Any) -> None:
    machine = accessing(host, case, UNKNOWN)
    to_halt(machine)
    assert (machine.cpus[0].regs.rdi, machine.cpus[0].regs.rbx) == (FAULTED, 0)


def test_an_unknown_msr_read_is_answered_by_user_space(host: Host) -> None:
    require("KVM_CAP_X86_USER_SPACE_MSR")
    machine = accessing(host, READ_MSR, UNKNOWN)
    machine.vm.enable_user_space_msrs(why.KVM_MSR_EXIT_REASON_UNKNOWN)
    seen = []

    @machine.on_exit("X86_RDMSR")
    def answer(exit_: Any) -> None:
        seen.append((exit_.index, exit_.run.msr.reason))
        exit_.run.msr.data, exit_.run.msr.error = 0x1122334455667788, 0

    to_halt(machine)
    assert seen == [(UNKNOWN, why.KVM_MSR_EXIT_REASON_UNKNOWN)]
    assert edx_eax(machine) == 0x1122334455667788
    assert machine.cpus[0].regs.rdi == 0


def test_an_unknown_msr_write_brings_its_value(host: Host) -> None:
    require("KVM_CAP_X86_USER_SPACE_MSR")
    machine = accessing(host, WRITE_MSR, UNKNOWN, 0x8899AABBCCDDEEFF)
    machine.vm.enable_user_space_msrs(why.KVM_MSR_EXIT_REASON_UNKNOWN)
    seen = []

    @machine.on_exit("X86_WRMSR")
    def take(exit_: Any) -> None:
        seen.append((exit_.index, exit_.run.msr.data))
        exit_.run.msr.error = 0

    to_halt(machine)
    assert seen == [(UNKNOWN, 0x8899AABBCCDDEEFF)]
    assert machine.cpus[0].regs.rdi == 0


@cases(read=READ_MSR, write=WRITE_MSR)
def test_user_space_refuses_an_msr_with_a_general_protection_fault(host: Host, case: Any) -> None:
    require("KVM_CAP_X86_USER_SPACE_MSR")
    machine = accessing(host, case, UNKNOWN)
    machine.vm.enable_user_space_msrs(why.KVM_MSR_EXIT_REASON_UNKNOWN)
    result = to_halt(machine)  # nobody has taken the exit over
    assert machine.cpus[0].regs.rdi == FAULTED
    assert sum(result.exits.get(name, 0) for name in ("X86_RDMSR", "X86_WRMSR")) == 1


@cases(read=READ_MSR, write=WRITE_MSR)
def test_a_filtered_msr_without_user_space_is_a_general_protection_fault(host: Host, case: Any) -> None:
    require("KVM_CAP_X86_MSR_FILTER")
    machine = accessing(host, case, KERNEL_GS_BASE)
    machine.vm.set_msr_filter([(READ | WRITE, KERNEL_GS_BASE, 1, b"\0")])
    to_halt(machine)
    assert machine.cpus[0].regs.rdi == FAULTED


def test_a_filter_tells_reads_from_writes_and_one_msr_from_the_next(host: Host) -> None:
    """FS, GS and KERNEL_GS base: hardware lets a guest have them without an exit, until they are filtered."""
    require("KVM_CAP_X86_MSR_FILTER")
    first = KERNEL_GS_BASE - 2
    for index, denied, outcome in (
        (KERNEL_GS_BASE, READ, {"X86_RDMSR": 1}),
        (KERNEL_GS_BASE, WRITE, {"X86_WRMSR": 1}),
        (KERNEL_GS_BASE - 1, READ | WRITE, {}),
    ):
        machine = accessing(host, WRITE_THEN_READ, index, 0x7000)
        machine.vm.enable_user_space_msrs(why.KVM_MSR_EXIT_REASON_FILTER)
        machine.vm.set_msr_filter([(denied, first, 3, b"\x03")])
        seen = []

        def let(exit_: Any, seen: list[int] = seen) -> None:
            seen.append(exit_.run.msr.reason)
            exit_.run.msr.data, exit_.run.msr.error = 0x9000, 0

        machine.on_exit("X86_RDMSR")(let)
        machine.on_exit("X86_WRMSR")(let)
        found = dict(to_halt(machine).exits)
        assert found.pop("HLT") == 1
        assert found == outcome
        assert seen == [why.KVM_MSR_EXIT_REASON_FILTER] * len(outcome)
        expected = 0x7000 if not outcome else 0x9000 if denied == READ else 0
        assert edx_eax(machine) == expected, "a write that was denied never arrived"


def test_a_filter_that_denies_by_default(host: Host) -> None:
    require("KVM_CAP_X86_MSR_FILTER")
    for index, expected in ((LSTAR, 0), (KERNEL_GS_BASE, FAULTED)):
        machine = accessing(host, WRITE_MSR, index, 0x1000)
        machine.vm.set_msr_filter([(READ | WRITE, LSTAR, 1, b"\1")], default_deny=True)
        to_halt(machine)
        assert machine.cpus[0].regs.rdi == expected


def test_a_filter_changes_between_two_reads(host: Host) -> None:
    """What was passed through comes out, and the other way round: the vCPU's own bitmap follows."""
    require("KVM_CAP_X86_MSR_FILTER")
    for first, second in (([], [(READ, KERNEL_GS_BASE, 1, b"\0")]), ([(READ, KERNEL_GS_BASE, 1, b"\0")], [])):
        machine = accessing(host, READ_TWICE, KERNEL_GS_BASE)
        machine.ports.drop(0xE9)
        machine.cpus[0].msrs[KERNEL_GS_BASE] = 0x77
        machine.vm.enable_user_space_msrs(why.KVM_MSR_EXIT_REASON_FILTER)

        @machine.on_exit("X86_RDMSR")
        def answer(exit_: Any) -> None:
            exit_.run.msr.data, exit_.run.msr.error = 0x99, 0

        machine.vm.set_msr_filter(first)
        to_exit(machine, "IO")
        machine.vm.set_msr_filter(second)
        to_halt(machine)
        regs: Any = machine.cpus[0].regs
        assert (regs.r8, regs.rax) == ((0x99, 0x77) if first else (0x77, 0x99))


def test_the_msrs_of_an_x2apic_cannot_be_filtered(host: Host) -> None:
    """KVM API document, KVM_X86_SET_MSR_FILTER: accesses to 0x800-0x8ff are KVM's own whatever the filter says."""
    require("KVM_CAP_X86_MSR_FILTER", "irqchip")
    machine = accessing(host, WRITE_THEN_READ, X2APIC_TPR, 0x20, irqchip="kernel")
    machine.cpus[0].set_up()  # CPUID says that there is an x2APIC
    machine.cpus[0].sregs.apic_base = 0xFEE00D00  # bootstrap processor, x2APIC, on
    machine.vm.set_msr_filter([(READ | WRITE, 0x800, 0x100, bytes(32))])
    to_halt(machine)
    assert edx_eax(machine) == 0x20


class Owner:
    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append((offset, size))
        return 0x0102030405060708

    def write(self, offset: int, value: int, size: int) -> None:
        self.seen.append((offset, value, size))


@cases(unknown=UNKNOWN, known=KERNEL_GS_BASE)
def test_a_python_object_owns_an_msr(host: Host, case: int) -> None:
    require("KVM_CAP_X86_USER_SPACE_MSR", "KVM_CAP_X86_MSR_FILTER")
    machine = accessing(host, WRITE_THEN_READ, case, 0xA1A2A3A4B1B2B3B4)
    owner = Owner()
    range_ = machine.msrs.attach(case - 1, 2, owner)
    to_halt(machine)
    assert owner.seen == [(1, 0xA1A2A3A4B1B2B3B4, 8), (1, 8)]
    assert edx_eax(machine) == 0x0102030405060708
    assert range_.count == 2


def test_a_rule_in_c_owns_an_msr_and_gives_it_back(host: Host) -> None:
    require("KVM_CAP_X86_USER_SPACE_MSR", "KVM_CAP_X86_MSR_FILTER")
    machine = accessing(host, READ_TWICE, KERNEL_GS_BASE)
    machine.ports.drop(0xE9)
    machine.cpus[0].msrs[KERNEL_GS_BASE] = 0x1234
    rule = Latch(1, fill=0x55)
    range_ = machine.msrs.attach(KERNEL_GS_BASE, 1, rule)
    to_exit(machine, "IO")
    range_.place = "kernel"
    to_halt(machine)
    regs: Any = machine.cpus[0].regs
    assert (regs.r8 & 0xFF, regs.rax) == (0x55, 0x1234)


def test_a_guest_above_ring_0_cannot_reach_any_msr(host: Host) -> None:
    machine = accessing(host, READ_MSR, LSTAR, ring=3)
    owner = Owner()
    machine.msrs.attach(LSTAR, 1, owner)
    to_halt(machine)
    assert machine.cpus[0].regs.rdi == FAULTED
    assert owner.seen == []
