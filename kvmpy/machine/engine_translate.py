"""The translate engine as a machine wants it: binary translation for hosts where KVM can't be used."""

from __future__ import annotations

from kvmpy.errors import UsageError
from kvmpy.translate.system import System
from kvmpy.translate.vm import MAX_VCPUS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.machine.bus import Bus
    from kvmpy.machine.memory import GuestMemory
    from kvmpy.machine.watch import Watch
    from kvmpy.translate.vcpu import Vcpu
    from kvmpy.translate.vm import Vm
    from kvmpy.x86.cpuid import CpuidTable


class TranslateVcpu:
    """A translate.Vcpu on a machine's bus; everything else is the vCPU's own."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.sync_regs = vcpu.sync_regs & 3

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vcpu, name)

    def native(self, bus: Bus) -> Any:
        """Its ``struct kvmpy_vcpu *``, on that bus."""
        state = self.vcpu.state
        state.bus = bus.native
        return state

    def close(self) -> None:
        """Frees the vCPU."""
        self.vcpu.close()


class TranslateVm:
    """A translate.Vm that learns what the host writes to guest memory: translated code may be stale then."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self._watch: Watch | None = None
        self._memory: GuestMemory | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vm, name)

    def map_memory(self, slot: int, flags: int, gpa: int, size: int, address: int) -> None:
        """Adds, or with size 0 removes, a memory slot."""
        self.vm.set_user_memory_region(slot, gpa, size, address, flags)

    def follow(self, memory: GuestMemory) -> None:
        """From now on writes to ``memory`` are noticed: plain ones at once, ones through views before the next run."""
        self._memory = memory
        self._watch = memory.watch()
        memory.on_write.append(self.vm.wrote)

    def before_run(self) -> None:
        """Forgets what was translated from memory that the host may have written through a view."""
        if self._watch is not None:
            for gpa, length in self._watch.take():
                self.vm.wrote(gpa, length)

    def create_vcpu(self, index: int) -> TranslateVcpu:
        """The vCPU, ready to be entered."""
        return TranslateVcpu(self.vm.create_vcpu(index))

    def set_irq(self, line: int, level: bool) -> None:
        """Nobody listens: there are no interrupt controllers in this engine."""

    def close(self) -> None:
        """Ends the VM."""
        if self._memory is not None and self._watch is not None:
            self._memory.unwatch(self._watch)
            self._memory.on_write.remove(self.vm.wrote)
            self._watch = None
        self.vm.close()


class TranslateEngine:
    """Binary translation by Unicorn, loaded once."""

    name = "translate"
    max_vcpus = MAX_VCPUS
    in_kernel = False

    def __init__(self) -> None:
        self.system = System()

    def create_vm(self, irqchip: str) -> TranslateVm:
        """A VM without memory and vCPUs."""
        if irqchip in ("kernel", "split"):
            raise UsageError(
                f"irqchip {irqchip!r}: the translate engine has none in the kernel: use irqchip='user' or 'none'"
            )
        return TranslateVm(self.system.create_vm())

    def cpuid(self, index: int, count: int) -> CpuidTable:
        """What the CPUID says by default: all that the engine has."""
        from kvmpy.x86.cpuid import CpuidTable

        return CpuidTable(self.system.get_supported_cpuid())

    def set_default_cpuid(self, vcpu: Any, index: int, count: int) -> None:
        """Gives the vCPU that table."""
        vcpu.set_cpuid2(self.system.get_supported_cpuid())

    def close(self) -> None:
        """The library stays loaded as long as the process lives."""
        self.system.close()
