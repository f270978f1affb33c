"""KVM_CAP_X86_DISABLE_EXITS: instructions that needn't leave the guest."""

from __future__ import annotations

from guests import make, not_on_pvm, to_halt
from listing import code
from suite import Host, raises, skip

from kvmpy.abi import constants as c
from kvmpy.abi.capabilities import KVM_CAP_X86_DISABLE_EXITS
from kvmpy.errors import KvmError
from kvmpy.machine.engine_kvm import KvmEngine, KvmVm

SLEEPS = code(
    64,
    """
    again:
      f4         hlt
      48 ff c0   inc rax
      eb fa      jmp again
    """,
)
PAUSES = code(
    64,
    """
      b9 20 4e 00 00   mov ecx, 20000
    again:
      f3 90            pause
      ff c9            dec ecx
      75 fa            jnz again
      f4               hlt
    """,
)


class Engine(KvmEngine):
    """The kvm engine with VMs that have some exits switched off."""

    def __init__(self, host: Host, which: int, name: str) -> None:
        super().__init__()
        host.defer(self.close)
        self.which = which
        if not self.system.check_extension(KVM_CAP_X86_DISABLE_EXITS) & which:
            skip(f"KVM_CAP_X86_DISABLE_EXITS: this KVM has no {name}")

    def create_vm(self, irqchip: str) -> KvmVm:
        vm = super().create_vm(irqchip)
        try:
            vm.vm.enable_cap(KVM_CAP_X86_DISABLE_EXITS, self.which)
        except BaseException:
            vm.close()
            raise
        return vm


def test_hlt_does_not_exit(host: Host) -> None:
    not_on_pvm(host, "HLT exits, whatever KVM_CAP_X86_DISABLE_EXITS says")
    engine = Engine(host, c.KVM_X86_DISABLE_EXITS_HLT, "KVM_X86_DISABLE_EXITS_HLT")
    machine = make(host, SLEEPS, interrupts=True, engine=engine)
    result = machine.run(timeout=0.2)
    assert (result.reason, result.exits) == ("timeout", {})


def test_hlt_does_exit_otherwise(host: Host) -> None:
    machine = make(host, SLEEPS, interrupts=True)
    for count in range(3):
        assert to_halt(machine).exits == {"HLT": 1}
        assert machine.cpus[0].regs.rax == count


def test_pause_does_not_exit(host: Host) -> None:
    engine = Engine(host, c.KVM_X86_DISABLE_EXITS_PAUSE, "KVM_X86_DISABLE_EXITS_PAUSE")
    machine = make(host, PAUSES, engine=engine)
    assert to_halt(machine).exits == {"HLT": 1}
    assert machine.cpus[0].regs.rcx == 0


def test_exits_that_there_are_none_of_are_refused(host: Host) -> None:
    engine = Engine(host, c.KVM_X86_DISABLE_EXITS_HLT, "KVM_X86_DISABLE_EXITS_HLT")
    engine.which = 1 << 30
    with raises(KvmError, "KVM_ENABLE_CAP"):
        make(host, SLEEPS, engine=engine)
