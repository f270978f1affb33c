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
        self._memory: GuestMemory | None = None
        self._viewed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vm, name)

    def map_memory(self, slot: int, flags: int, gpa: int, size: int, address: int) -> None:
        """Adds, or with size 0 removes, a memory slot."""
        self.vm.set_user_memory_region(slot, gpa, size, address, flags)

    def follow(self, memory: GuestMemory) -> None:
        """From now on writes to ``memory`` are noticed: plain ones at once, ones through views at the next entry."""
        self._memory = memory
        memory.on_write.append(self.vm.wrote)
        memory.on_view.append(self._view)
        self._viewed = bool(memory.living_views())

    def _view(self, gpa: int, length: int) -> None:
        self._viewed = True
        self.vm.viewed(gpa, length)

    def before_run(self) -> None:
        """Tells which views are left: only code they show need be looked at."""
        if self._viewed and self._memory is not None:
            views = self._memory.living_views()
            self._viewed = bool(views)
            self.vm.set_views(views)

    def create_vcpu(self, index: int) -> TranslateVcpu:
        """The vCPU, ready to be entered."""
        return TranslateVcpu(self.vm.create_vcpu(index))

    def set_irq(self, line: int, level: bool) -> None:
        """Nobody listens: there are no interrupt controllers in this engine."""

    def close(self) -> None:
        """Ends the VM."""
        if self._memory is not None:
            if self.vm.wrote in self._memory.on_write:  # not after close()
                self._memory.on_write.remove(self.vm.wrote)
            if self._view in self._memory.on_view:
                self._memory.on_view.remove(self._view)
            self._memory = None
        self.vm.close()


class TranslateEngine:
    """Binary translation by Unicorn, loaded once."""

    name = "translate"
    max_vcpus = MAX_VCPUS
    in_kernel = False
    rescuable = False

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
