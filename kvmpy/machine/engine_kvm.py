"""The kvm engine as a machine wants it: what kvmpy.kvm offers, set up for a PC."""

from __future__ import annotations

from os.path import exists

from kvmpy._native import ffi, lib
from kvmpy.abi.capabilities import KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_MAX_VCPUS, KVM_CAP_SYNC_REGS
from kvmpy.abi.constants import KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_SINGLESTEP
from kvmpy.errors import EngineError
from kvmpy.kvm.cpuid import pack
from kvmpy.kvm.system import System
from kvmpy.x86.layout import KVM_IDENTITY_MAP, KVM_TSS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from kvmpy.kvm.vcpu import Vcpu
    from kvmpy.kvm.vm import Vm
    from kvmpy.machine.bus import Bus
    from kvmpy.machine.memory import GuestMemory
    from kvmpy.x86.cpuid import CpuidTable

SYNC_FIELDS = 3  # KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS
RESCUE_FIELDS = 7  # and KVM_SYNC_X86_EVENTS
KVM_FEATURES = 0x40000001
DIRTY_RING_MOST = 65536
PVM = "/sys/module/kvm_pvm"
"""There when KVM works without hardware virtualization: its guests must not make hypercalls to KVM itself."""


class KvmVcpu:
    """A kvm.Vcpu with the run loop's state; everything else is the vCPU's own."""

    def __init__(self, vcpu: Vcpu, sync_regs: int, irqchip: str) -> None:
        self.vcpu = vcpu
        self.sync_regs = sync_regs
        self.irqchip = irqchip
        self._native: Any = ffi.NULL
        self._steps: Any = ffi.NULL

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vcpu, name)

    def native(self, bus: Bus) -> Any:
        """A new ``struct kvmpy_vcpu *`` on that bus; freed by close()."""
        self._native = lib.kvmpy_vcpu_new(self.vcpu.index, self.vcpu.run, self.vcpu.fd)
        if self._native == ffi.NULL:
            raise MemoryError("no memory for a vCPU")
        self._native.bus = bus.native
        return self._native

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """As :meth:`kvmpy.kvm.Vcpu.set_guest_debug`; single steps also begin where registers written here say.

        Rescued instructions count as the guest's, too.
        """
        self.vcpu.set_guest_debug(control, debugreg)
        self._native.debug = control
        steps = ffi.NULL
        if control & KVM_GUESTDBG_SINGLESTEP:
            again = control & ~(KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)
            steps = ffi.new("struct kvm_guest_debug *", (again, 0, (tuple(debugreg),)))
        lib.kvmpy_kvm_step(self._native, steps)
        self._steps = steps  # kept as long as C has it

    def close(self) -> None:
        """Frees the vCPU."""
        lib.kvmpy_vcpu_free(self._native)
        self._native = ffi.NULL
        self.vcpu.close()


class KvmVm:
    """A kvm.Vm set up as a PC."""

    def __init__(self, engine: KvmEngine, irqchip: str) -> None:
        self.engine = engine
        self.irqchip = irqchip
        self.vm: Vm = engine.system.create_vm()
        try:
            self._set_up()
        except BaseException:
            self.vm.close()
            raise

    def _set_up(self) -> None:
        self.vm.set_identity_map_addr(KVM_IDENTITY_MAP)
        self.vm.set_tss_addr(KVM_TSS)
        if self.engine.exit_on_emulation_failure:
            self.vm.enable_cap(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
        if self.irqchip == "kernel":
            self.vm.create_irqchip()
            self.vm.create_pit2()
        elif self.irqchip == "split":
            self.vm.enable_split_irqchip()

    def map_memory(self, slot: int, flags: int, gpa: int, size: int, address: int) -> None:
        """Adds, or with size 0 removes, a memory slot."""
        self.vm.set_user_memory_region(slot, gpa, size, address, flags)

    def create_vcpu(self, index: int) -> KvmVcpu:
        """A vCPU, ready to be entered."""
        return KvmVcpu(self.vm.create_vcpu(index), self.engine.sync_regs, self.irqchip)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vm, name)

    def follow(self, memory: GuestMemory) -> None:
        """The processor sees the host's writes by itself."""

    def before_run(self) -> None:
        """Nothing is out of date."""

    def enable_dirty_ring(self, entries: int) -> None:
        """Rings of ``entries`` or more for the vCPUs to come."""
        if exists(PVM):
            # Between two instructions that it emulates, PVM doesn't look whether the ring is full, and writes on over
            # what is in it: the largest ring makes that least likely.
            entries = max(entries, DIRTY_RING_MOST)
        self.vm.enable_dirty_ring(entries)

    def set_irq(self, line: int, level: bool) -> None:
        """The level of an interrupt line of the irqchip in the kernel; without one nobody listens."""
        if self.irqchip == "kernel":
            self.vm.irq_line(line, level)

    def close(self) -> None:
        """Ends the VM."""
        self.vm.close()


class KvmEngine:
    """Hardware virtualization through /dev/kvm, opened once."""

    name = "kvm"
    in_kernel = True
    rescuable = True

    def __init__(self) -> None:
        self.system = System()
        check = self.system.check_extension
        self.max_vcpus = max(check(KVM_CAP_MAX_VCPUS), 1)
        sync = check(KVM_CAP_SYNC_REGS)
        self.sync_regs = sync & SYNC_FIELDS
        self.sync_rescue = sync & RESCUE_FIELDS
        self.exit_on_emulation_failure = bool(check(KVM_CAP_EXIT_ON_EMULATION_FAILURE))
        self.hypercalls = not exists(PVM)
        self._supported: list[tuple[int, int, int, int, int, int, int]] | None = None
        self._packed: dict[tuple[int, int, bool], Any] = {}

    def supported(self) -> list[tuple[int, int, int, int, int, int, int]]:
        """KVM_GET_SUPPORTED_CPUID, asked once."""
        if self._supported is None:
            self._supported = self.system.get_supported_cpuid()
        return self._supported

    def create_vm(self, irqchip: str) -> KvmVm:
        """A VM without memory and vCPUs."""
        if self.system.closed:
            raise EngineError("/dev/kvm was closed")
        return KvmVm(self, irqchip)

    def close(self) -> None:
        """Closes /dev/kvm; machines that exist go on working."""
        self.system.close()

    def offered(self, apic: bool) -> list[tuple[int, int, int, int, int, int, int]]:
        """That table without the PV features that a vCPU with or without a local APIC doesn't have on this host."""
        entries = self.supported().copy()
        for at, (function, index, flags, eax, *others) in enumerate(entries):
            if function == KVM_FEATURES:
                from kvmpy.x86.pv_features import limited

                eax = limited(eax, apic=apic, hypercalls=self.hypercalls)
                entries[at] = (function, index, flags, eax, *others)  # type: ignore[assignment]
        return entries

    def cpuid(self, index: int, count: int) -> CpuidTable:
        """What the CPUID of vCPU ``index`` of ``count`` says by default: all that KVM offers here."""
        return self._table(index, count, apic=True)

    def _table(self, index: int, count: int, apic: bool) -> CpuidTable:
        from kvmpy.x86.cpuid import CpuidTable

        return CpuidTable(self.offered(apic)).set_processor(index, count)

    def set_default_cpuid(self, vcpu: Any, index: int, count: int) -> None:
        """Gives the vCPU that table; made once, then kept in the kernel's form."""
        apic = vcpu.irqchip != "none"
        key = (index, count, apic)
        packed = self._packed.get(key)
        if packed is None:
            # A lone vCPU's table is the kernel's own: APIC id 0.
            entries = self.offered(apic) if count == 1 else self._table(index, count, apic).entries()
            packed = self._packed[key] = pack(entries)
        vcpu.set_cpuid2(packed)
