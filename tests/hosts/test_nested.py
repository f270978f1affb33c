"""Whether a guest may be a hypervisor itself: the CPUID bit of VMX or SVM, shown and hidden."""

from __future__ import annotations

from guests import listen, make, to_halt
from listing import code
from suite import Host, needs

from kvmpy.machine.machine import Machine

GP = 13
NESTED = "kvm_intel.nested=Y or kvm_intel.nested=1 or kvm_amd.nested=Y or kvm_amd.nested=1"

# CPUID leaf 1 ECX bit 5: VMX; leaf 0x80000001 ECX bit 2: SVM.
ASKS = code(
    64,
    """
      b8 01 00 00 00   mov eax, 1
      0f a2            cpuid
      89 ce            mov esi, ecx
      c1 ee 05         shr esi, 5
      83 e6 01         and esi, 1
      b8 01 00 00 80   mov eax, 0x80000001
      0f a2            cpuid
      89 cf            mov edi, ecx
      c1 ef 02         shr edi, 2
      83 e7 01         and edi, 1
      f4               hlt
    """,
)
# CR4.VMXE and EFER.SVME can only be set where the CPU has VMX or SVM.
SWITCHES_VMX_ON = code(
    64,
    """
      0f 20 e0         mov rax, cr4
      0d 00 20 00 00   or eax, 0x2000
      0f 22 e0         mov cr4, rax
      b0 01            mov al, 1
      e6 e9            out 0xe9, al
      f4               hlt
    handler:
      b0 0d            mov al, 13
      e6 e9            out 0xe9, al
      f4               hlt
    """,
)
SWITCHES_SVM_ON = code(
    64,
    """
      b9 80 00 00 c0   mov ecx, 0xc0000080
      0f 32            rdmsr
      0d 00 10 00 00   or eax, 0x1000
      0f 30            wrmsr
      b0 01            mov al, 1
      e6 e9            out 0xe9, al
      f4               hlt
    handler:
      b0 0d            mov al, 13
      e6 e9            out 0xe9, al
      f4               hlt
    """,
)


def bits(machine: Machine) -> tuple[int, int]:
    """The guest's own view: (VMX, SVM)."""
    to_halt(machine)
    regs = machine.cpus[0].regs
    return regs.rsi, regs.rdi


def switch_on(host: Host, hidden: bool) -> list[int]:
    """A guest that makes itself a hypervisor, as far as one instruction goes: [1] it can, [13] it got a #GP."""
    code = SWITCHES_VMX_ON if host.module == "kvm_intel" else SWITCHES_SVM_ON
    machine = make(host, code, handlers={GP: "handler"})
    said = listen(machine)
    if hidden:
        machine.cpus[0].cpuid.hide("vmx", "svm")
    to_halt(machine)
    return said


@needs(NESTED)
def test_the_hosts_own_flag_is_shown(host: Host) -> None:
    intel = host.module == "kvm_intel"
    assert bits(make(host, ASKS)) == (intel, not intel)


def test_the_flag_can_be_hidden(host: Host) -> None:
    machine = make(host, ASKS)
    table = machine.cpus[0].cpuid
    table.hide("vmx", "svm")
    assert not table.has("vmx") and not table.has("svm")
    assert bits(machine) == (0, 0)


@needs("flag vmx or flag svm")
def test_what_is_hidden_cannot_be_used(host: Host) -> None:
    assert switch_on(host, hidden=True) == [GP]


@needs(NESTED)
def test_what_is_shown_can_be_used(host: Host) -> None:
    assert switch_on(host, hidden=False) == [1]
