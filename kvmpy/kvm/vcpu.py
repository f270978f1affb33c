"""A vCPU: its shared page, registers, interrupts and the rest of its state."""

from __future__ import annotations

import os

from kvmpy._native import ffi, lib
from kvmpy.abi import ioctls
from kvmpy.errors import KvmError
from kvmpy.kvm import cpuid, msrs
from kvmpy.kvm.descriptor import NULL, Descriptor, new

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvmpy._native import CData
    from kvmpy.kvm.cpuid import Entry
    from kvmpy.kvm.vm import Vm

PAGE = 4096


class Vcpu(Descriptor):
    """The file descriptor and the mapping of a vCPU; made by :meth:`kvmpy.kvm.Vm.create_vcpu`.

    Pointers into the mapping (``run`` and what hangs on it) die with :meth:`close`. Every ioctl but ``KVM_INTERRUPT``
    belongs on the thread that runs the vCPU: others wait until it leaves the guest. Source: KVM API document,
    "vCPU ioctls".
    """

    __slots__ = ("_length", "_mapping", "_xsave_size", "index", "vm")

    def __init__(self, fd: int, index: int, vm: Vm) -> None:
        super().__init__(fd, f"vCPU {index}")
        self.index = index
        self.vm = vm
        self._xsave_size = 0
        self._length = vm.system.get_vcpu_mmap_size()
        try:
            self._mapping = _map(fd, self._length, 0, self.label)
        except KvmError:
            self.close()
            raise

    def close(self) -> None:
        """Undo the mapping and close the file descriptor. The vCPU mustn't be running."""
        mapping = getattr(self, "_mapping", NULL)
        self._mapping = NULL
        if mapping:
            lib.kvmpy_unmap(mapping, self._length)
        super().close()

    @property
    def run(self) -> CData:
        """``struct kvm_run *``, shared with the kernel. Keep it for speed; it is invalid once the vCPU is closed.

        Raises KvmError when closed.
        """
        return ffi.cast("struct kvm_run *", self._live())

    def _live(self) -> CData:
        if not self._mapping:
            raise KvmError(f"{self.label} is closed: its struct kvm_run is gone")
        return self._mapping

    def enter(self) -> int:
        """Run the guest once (KVM_RUN): 0, then ``run.exit_reason`` says why it came back; or an errno.

        EINTR: a signal, or ``run.immediate_exit`` was set. EAGAIN: the vCPU was or is waiting for SIPI: again.
        EFAULT: look at ``run.exit_reason``. This is for tests and tools; a machine runs in C (native/run.c).
        """
        return -lib.kvmpy_ioctl_value(self.fd, ioctls.KVM_RUN.number, 0)

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> int:
        """Switch a capability of this vCPU on, with up to four arguments (KVM_ENABLE_CAP)."""
        argument = new("struct kvm_enable_cap *", (capability, flags, args))
        return self.call(ioctls.KVM_ENABLE_CAP, argument, f"capability {capability}")

    # Registers

    def get_regs(self, into: CData | None = None) -> CData:
        """``struct kvm_regs *``: general registers, rip, rflags (KVM_GET_REGS)."""
        return self.get(ioctls.KVM_GET_REGS, into)

    def set_regs(self, regs: CData) -> None:
        """From ``struct kvm_regs *`` (KVM_SET_REGS). A pending exception is dropped."""
        self.put(ioctls.KVM_SET_REGS, regs)

    def get_sregs(self, into: CData | None = None) -> CData:
        """``struct kvm_sregs *``: segments, descriptor tables, control registers, EFER (KVM_GET_SREGS)."""
        return self.get(ioctls.KVM_GET_SREGS, into)

    def set_sregs(self, sregs: CData) -> None:
        """From ``struct kvm_sregs *`` (KVM_SET_SREGS). A bit in ``interrupt_bitmap`` injects that vector."""
        self.put(ioctls.KVM_SET_SREGS, sregs)

    def get_fpu(self, into: CData | None = None) -> CData:
        """``struct kvm_fpu *``: x87 and SSE, of the time before XSAVE (KVM_GET_FPU)."""
        return self.get(ioctls.KVM_GET_FPU, into)

    def set_fpu(self, fpu: CData) -> None:
        """From ``struct kvm_fpu *`` (KVM_SET_FPU)."""
        self.put(ioctls.KVM_SET_FPU, fpu)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The values of MSRs, any number of them; those that can't be read are missing (KVM_GET_MSRS)."""
        return msrs.read(self, indices)

    def set_msrs(self, values: Mapping[int, int]) -> list[int]:
        """Write MSRs in the order given, going on behind a refused one; the refused indices (KVM_SET_MSRS)."""
        return msrs.write(self, values)

    def get_cpuid2(self) -> list[Entry]:
        """The CPUID table as last set: (function, index, flags, eax, ebx, ecx, edx) (KVM_GET_CPUID2)."""
        return cpuid.fetch(self, ioctls.KVM_GET_CPUID2)

    def set_cpuid2(self, table: CData | Iterable[Entry]) -> None:
        """What the guest's CPUID gives (KVM_SET_CPUID2): entries, or :func:`kvmpy.kvm.cpuid.pack` of them, which is
        worth keeping for many vCPUs. Before the first run."""
        packed = table if isinstance(table, ffi.CData) else cpuid.pack(table)
        self.put(ioctls.KVM_SET_CPUID2, packed)

    # Interrupts and events

    def get_lapic(self, into: CData | None = None) -> CData:
        """``struct kvm_lapic_state *``: the local APIC's register page (KVM_GET_LAPIC)."""
        return self.get(ioctls.KVM_GET_LAPIC, into)

    def set_lapic(self, lapic: CData) -> None:
        """From ``struct kvm_lapic_state *`` (KVM_SET_LAPIC). After IA32_APIC_BASE, before IA32_TSC_DEADLINE."""
        self.put(ioctls.KVM_SET_LAPIC, lapic)

    def get_mp_state(self) -> int:
        """``KVM_MP_STATE_*``: runnable, halted, waiting for INIT or SIPI (KVM_GET_MP_STATE)."""
        return int(self.get(ioctls.KVM_GET_MP_STATE, None).mp_state)

    def set_mp_state(self, state: int) -> None:
        """One of ``KVM_MP_STATE_*`` (KVM_SET_MP_STATE)."""
        self.call(ioctls.KVM_SET_MP_STATE, new("struct kvm_mp_state *", (state,)), f"state {state}")

    def get_vcpu_events(self, into: CData | None = None) -> CData:
        """``struct kvm_vcpu_events *``: pending exception, interrupt, NMI, SMI (KVM_GET_VCPU_EVENTS)."""
        return self.get(ioctls.KVM_GET_VCPU_EVENTS, into)

    def set_vcpu_events(self, events: CData) -> None:
        """From ``struct kvm_vcpu_events *``; ``flags`` say which optional fields count (KVM_SET_VCPU_EVENTS)."""
        self.put(ioctls.KVM_SET_VCPU_EVENTS, events)

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt (KVM_INTERRUPT), vector 0 to 255; only without an irqchip in the kernel."""
        self.call(ioctls.KVM_INTERRUPT, new("struct kvm_interrupt *", (vector,)), f"vector {vector}")

    def nmi(self) -> None:
        """Queue an NMI (KVM_NMI)."""
        self.call_value(ioctls.KVM_NMI)


def _map(fd: int, length: int, offset: int, label: str) -> CData:
    error = new("int *")
    mapping = lib.kvmpy_map(fd, length, offset, error)
    if not mapping:
        raise KvmError(f"mmap of {length:#x} bytes of {label}: {os.strerror(error[0])}", error[0])
    return mapping
