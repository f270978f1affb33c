"""A vCPU: its shared page, registers, interrupts and the rest of its state."""

from __future__ import annotations

import os
from errno import EINVAL

from kvmpy._native import ffi, lib
from kvmpy.abi import constants as c
from kvmpy.abi import ioctls
from kvmpy.abi.capabilities import KVM_CAP_NESTED_STATE, KVM_CAP_XSAVE2
from kvmpy.errors import KvmError
from kvmpy.kvm import cpuid, msrs
from kvmpy.kvm.descriptor import NULL, Descriptor, check, new
from kvmpy.kvm.errors import refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kvmpy._native import CData
    from kvmpy.abi.ioctls import Ioctl
    from kvmpy.kvm.cpuid import Entry
    from kvmpy.kvm.stats import Stats
    from kvmpy.kvm.vm import Vm

PAGE = 4096
_RING_AT_ONCE = 512
_DIRTY_ENTRY = 16  # bytes of struct kvm_dirty_gfn
_SIGNALS = 64


class Vcpu(Descriptor):
    """The file descriptor and the mappings of a vCPU; made by :meth:`kvmpy.kvm.Vm.create_vcpu`.

    Pointers into the mappings (``run`` and what hangs on it) die with :meth:`close`. Every ioctl but
    ``KVM_INTERRUPT`` belongs on the thread that runs the vCPU: others wait until it leaves the guest.
    Source: KVM API document, "vCPU ioctls".
    """

    __slots__ = ("_dirty", "_dirty_next", "_length", "_mapping", "index", "vm")

    def __init__(self, fd: int, index: int, vm: Vm) -> None:
        super().__init__(fd, f"vCPU {index}")
        self.index = index
        self.vm = vm
        self._length = vm.mmap_size
        self._mapping = self._dirty = NULL
        try:
            self._mapping = _map(fd, self._length, 0, self.label)
            if vm.dirty_ring_entries:
                self._map_dirty_ring()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Undo the mappings and close the file descriptor. The vCPU mustn't be running."""
        mapping, self._mapping = self._mapping, NULL
        if mapping:
            lib.kvmpy_unmap(mapping, self._length)
        dirty, self._dirty = self._dirty, NULL
        if dirty:
            lib.kvmpy_unmap(dirty, self.vm.dirty_ring_entries * _DIRTY_ENTRY)
        super().close()

    # Running

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

    @property
    def memory_fault(self) -> CData:
        """``struct kvmpy_memory_fault *``: flags, gpa and size of a KVM_EXIT_MEMORY_FAULT, in ``run``."""
        return ffi.cast("struct kvmpy_memory_fault *", ffi.addressof(self.run, "hw"))

    def set_signal_mask(self, signals: Iterable[int] | None) -> None:
        """The signals (1-64) blocked while the guest runs, instead of the thread's; None: the thread's again
        (KVM_SET_SIGNAL_MASK)."""
        if signals is None:
            self.call(ioctls.KVM_SET_SIGNAL_MASK)
            return
        bits = 0
        for number in signals:
            if not 1 <= number <= _SIGNALS:
                raise refused(
                    ioctls.KVM_SET_SIGNAL_MASK, self.label, f"no signal {number}: they go from 1 to 64"
                )
            bits |= 1 << (number - 1)
        mask = new("struct kvm_signal_mask *", {"len": 8, "sigset": bits.to_bytes(8, "little")})
        self.call(ioctls.KVM_SET_SIGNAL_MASK, mask)

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> int:
        """Switch a capability of this vCPU on, with up to four arguments (KVM_ENABLE_CAP)."""
        argument = new("struct kvm_enable_cap *", (capability, flags, args))
        return self.call(ioctls.KVM_ENABLE_CAP, argument, f"capability {capability}")

    def get_stats(self) -> Stats:
        """The kernel's counters of the vCPU (KVM_GET_STATS_FD); to be closed."""
        from kvmpy.kvm.stats import Stats

        return Stats(self.call_value(ioctls.KVM_GET_STATS_FD), self.label)

    # Registers in the shared page (KVM_CAP_SYNC_REGS)

    def sync(self, fields: int) -> None:
        """From the next exit on, the kernel copies these groups to :attr:`sync_regs` (``KVM_SYNC_X86_*``)."""
        self.run.kvm_valid_regs = fields

    def sync_dirty(self, fields: int) -> None:
        """At the next entry, the kernel takes these groups from :attr:`sync_regs`; at the exit the mark is gone."""
        self.run.kvm_dirty_regs |= fields

    @property
    def sync_regs(self) -> CData:
        """``struct kvm_sync_regs *``: regs, sregs and events, in the shared page."""
        return ffi.addressof(self.run, "s", "regs")

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
        """From ``struct kvm_sregs *`` (KVM_SET_SREGS). A bit in ``interrupt_bitmap`` injects that vector.

        Raises KvmError; for values the CPU forbids it says which.
        """
        self._put_sregs(ioctls.KVM_SET_SREGS, sregs)

    def get_sregs2(self, into: CData | None = None) -> CData:
        """``struct kvm_sregs2 *``: the same with the PAE pointers, no interrupt (KVM_GET_SREGS2)."""
        return self.get(ioctls.KVM_GET_SREGS2, into)

    def set_sregs2(self, sregs: CData) -> None:
        """From ``struct kvm_sregs2 *`` (KVM_SET_SREGS2; KVM_CAP_SREGS2, Linux 5.14)."""
        self._put_sregs(ioctls.KVM_SET_SREGS2, sregs)

    def _put_sregs(self, request: Ioctl, sregs: CData) -> None:
        try:
            self.put(request, sregs)
        except KvmError as error:
            if error.errno != EINVAL:
                raise
            from kvmpy.kvm.errors import bad_sregs

            raise bad_sregs(request, self.label, sregs) from None

    def get_fpu(self, into: CData | None = None) -> CData:
        """``struct kvm_fpu *``: x87 and SSE, of the time before XSAVE (KVM_GET_FPU)."""
        return self.get(ioctls.KVM_GET_FPU, into)

    def set_fpu(self, fpu: CData) -> None:
        """From ``struct kvm_fpu *`` (KVM_SET_FPU)."""
        self.put(ioctls.KVM_SET_FPU, fpu)

    def get_xsave(self, into: CData | None = None) -> CData:
        """``struct kvm_xsave *`` of ``vm.xsave_size`` bytes: x87, SSE, AVX and on, laid out as CPUID leaf 0xd says
        (KVM_GET_XSAVE2, or KVM_GET_XSAVE where the kernel has no other).

        ``into`` must come from here. Raises KvmError.
        """
        if into is None:
            into = new("struct kvm_xsave *", {"extra": (self.vm.xsave_size - PAGE) // 4})
        self._check_xsave(ioctls.KVM_GET_XSAVE2, into)
        has_second = self.vm.system.check_extension(KVM_CAP_XSAVE2)
        self.call(ioctls.KVM_GET_XSAVE2 if has_second else ioctls.KVM_GET_XSAVE, into)
        return into

    def set_xsave(self, xsave: CData) -> None:
        """From what :meth:`get_xsave` gave (KVM_SET_XSAVE). Before ``set_xcrs``."""
        self._check_xsave(ioctls.KVM_SET_XSAVE, xsave)
        self.call(ioctls.KVM_SET_XSAVE, xsave)

    def _check_xsave(self, request: Ioctl, xsave: CData) -> None:
        check(request, xsave)
        size = ffi.sizeof(xsave[0])
        if size < self.vm.xsave_size:
            raise refused(request, self.label, f"a buffer of {size} bytes; {self.vm.xsave_size} are needed")

    def get_xcrs(self, into: CData | None = None) -> CData:
        """``struct kvm_xcrs *``: extended control registers, of which there is XCR0 (KVM_GET_XCRS)."""
        return self.get(ioctls.KVM_GET_XCRS, into)

    def set_xcrs(self, xcrs: CData) -> None:
        """From ``struct kvm_xcrs *`` (KVM_SET_XCRS)."""
        self.put(ioctls.KVM_SET_XCRS, xcrs)

    def get_debugregs(self, into: CData | None = None) -> CData:
        """``struct kvm_debugregs *``: DR0-DR3, DR6, DR7 (KVM_GET_DEBUGREGS)."""
        return self.get(ioctls.KVM_GET_DEBUGREGS, into)

    def set_debugregs(self, debugregs: CData) -> None:
        """From ``struct kvm_debugregs *`` (KVM_SET_DEBUGREGS)."""
        self.put(ioctls.KVM_SET_DEBUGREGS, debugregs)

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
        """What the guest's CPUID gives (KVM_SET_CPUID2). Before the first run.

        ``table``: entries, or :func:`kvmpy.kvm.cpuid.pack` of them, which is worth keeping for many vCPUs.
        """
        packed = table if isinstance(table, ffi.CData) else cpuid.pack(table)
        self.put(ioctls.KVM_SET_CPUID2, packed, f"{packed.nent} entries")

    def get_supported_hv_cpuid(self) -> list[Entry]:
        """Hyper-V's CPUID leaves for this vCPU (KVM_GET_SUPPORTED_HV_CPUID)."""
        return cpuid.fetch(self, ioctls.KVM_GET_SUPPORTED_HV_CPUID)

    def get_nested_state(self) -> bytes:
        """The state of the guest's own hypervisor: ``struct kvm_nested_state`` and data (KVM_GET_NESTED_STATE)."""
        most = max(self.vm.check_extension(KVM_CAP_NESTED_STATE), ffi.sizeof("struct kvm_nested_state"))
        buffer = new("char[]", most)
        state = ffi.cast("struct kvm_nested_state *", buffer)
        state.size = most
        self.call(ioctls.KVM_GET_NESTED_STATE, state)
        return bytes(ffi.buffer(buffer, state.size))

    def set_nested_state(self, state: bytes) -> None:
        """From what :meth:`get_nested_state` gave (KVM_SET_NESTED_STATE). After sregs and MSRs."""
        head = ffi.sizeof("struct kvm_nested_state")
        buffer = new("char[]", state.ljust(head, b"\0"))
        pointer = ffi.cast("struct kvm_nested_state *", buffer)
        if len(state) < head or pointer.size > len(state):
            why = f"{len(state)} bytes for a state of {max(pointer.size, head)}"
            raise refused(ioctls.KVM_SET_NESTED_STATE, self.label, why)
        self.call(ioctls.KVM_SET_NESTED_STATE, pointer)

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
        """Queue an external interrupt, vector 0 to 255 (KVM_INTERRUPT); only without PICs in the kernel.

        From any thread. When ``run.ready_for_interrupt_injection`` is 0, set ``run.request_interrupt_window``.
        """
        self.call(ioctls.KVM_INTERRUPT, new("struct kvm_interrupt *", (vector,)), f"vector {vector}")

    def nmi(self) -> None:
        """Queue an NMI (KVM_NMI)."""
        self.call_value(ioctls.KVM_NMI)

    def smi(self) -> None:
        """Queue a system management interrupt (KVM_SMI; KVM_CAP_X86_SMM)."""
        self.call_value(ioctls.KVM_SMI)

    def tpr_access_reporting(self, enabled: bool) -> None:
        """Exit when the guest touches the task priority register (KVM_TPR_ACCESS_REPORTING; KVM_CAP_VAPIC)."""
        self.call(ioctls.KVM_TPR_ACCESS_REPORTING, new("struct kvm_tpr_access_ctl *", (enabled,)))

    def set_vapic_addr(self, gpa: int) -> None:
        """Where the guest and KVM share the task priority (KVM_SET_VAPIC_ADDR)."""
        self.call(ioctls.KVM_SET_VAPIC_ADDR, new("struct kvm_vapic_addr *", (gpa,)), f"{gpa:#x}")

    def setup_mce(self, mcg_cap: int) -> None:
        """The vCPU's machine-check banks and features, as in IA32_MCG_CAP (KVM_X86_SETUP_MCE)."""
        self.call(ioctls.KVM_X86_SETUP_MCE, new("__u64 *", mcg_cap), f"{mcg_cap:#x}")

    def set_mce(self, error: CData) -> None:
        """Inject a machine check from ``struct kvm_x86_mce *`` (KVM_X86_SET_MCE)."""
        self.put(ioctls.KVM_X86_SET_MCE, error, f"bank {error.bank}")

    # Time

    def get_tsc_khz(self) -> int:
        """The guest's TSC frequency, kHz (KVM_GET_TSC_KHZ)."""
        return self.call_value(ioctls.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """Set it, where the CPU can scale or it is near the host's (KVM_SET_TSC_KHZ; KVM_CAP_TSC_CONTROL)."""
        self.call_value(ioctls.KVM_SET_TSC_KHZ, khz, f"{khz} kHz")

    def get_tsc_offset(self) -> int:
        """What is added to the host's TSC, modulo 2**64 (KVM_VCPU_TSC_OFFSET, Linux 5.16)."""
        value = new("__u64 *")
        self.get_device_attr(c.KVM_VCPU_TSC_CTRL, c.KVM_VCPU_TSC_OFFSET, value)
        return int(value[0])

    def set_tsc_offset(self, offset: int) -> None:
        """Set that; negative ones wrap."""
        value = new("__u64 *", offset & 0xFFFF_FFFF_FFFF_FFFF)
        self.set_device_attr(c.KVM_VCPU_TSC_CTRL, c.KVM_VCPU_TSC_OFFSET, value)

    def kvmclock_ctrl(self) -> None:
        """Tell the guest it was paused, so that its watchdog keeps quiet (KVM_KVMCLOCK_CTRL)."""
        self.call_value(ioctls.KVM_KVMCLOCK_CTRL)

    # Debugging, translation

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """Breakpoints and single-stepping: ``KVM_GUESTDBG_*``; DR0-DR7 for ``_USE_HW_BP`` (KVM_SET_GUEST_DEBUG)."""
        argument = new("struct kvm_guest_debug *", (control, 0, (tuple(debugreg),)))
        self.call(ioctls.KVM_SET_GUEST_DEBUG, argument, f"control {control:#x}")

    def translate(self, address: int) -> int | None:
        """Linear to guest physical address through the vCPU's page tables; None: not mapped (KVM_TRANSLATE)."""
        translation = new("struct kvm_translation *", (address,))
        self.call(ioctls.KVM_TRANSLATE, translation, f"{address:#x}")
        return int(translation.physical_address) if translation.valid else None

    # Memory

    def pre_fault_memory(self, gpa: int, size: int) -> int:
        """Map guest memory now, not at first touch (KVM_PRE_FAULT_MEMORY, Linux 6.11); bytes left to do."""
        span = new("struct kvm_pre_fault_memory *", (gpa, size))
        self.call(ioctls.KVM_PRE_FAULT_MEMORY, span, f"{size:#x} bytes at {gpa:#x}")
        return int(span.size)

    def _map_dirty_ring(self) -> None:
        length = self.vm.dirty_ring_entries * _DIRTY_ENTRY
        self._dirty = _map(self.fd, length, c.KVM_DIRTY_LOG_PAGE_OFFSET * PAGE, self.label)
        self._dirty_next = new("uint32_t *")

    def take_dirty(self) -> list[tuple[int, int]]:
        """The pages in the dirty ring, ``(slot, page within it)``, some maybe twice; empties it.

        They are write-protected again by ``vm.reset_dirty_rings()``, only then is there room for more.
        Not from two threads at once. Raises KvmError if the VM has no dirty rings.
        """
        if not self._dirty:
            raise KvmError(f"{self.label} has no dirty ring: vm.enable_dirty_ring() before it was created")
        ring = ffi.cast("struct kvm_dirty_gfn *", self._dirty)
        into = new("struct kvm_dirty_gfn[]", _RING_AT_ONCE)
        pages: list[tuple[int, int]] = []
        taken = _RING_AT_ONCE
        while taken == _RING_AT_ONCE:
            taken = lib.kvmpy_dirty_ring_take(
                ring, self.vm.dirty_ring_entries, self._dirty_next, into, _RING_AT_ONCE
            )
            pages += [(into[n].slot, into[n].offset) for n in range(taken)]
        return pages

    @property
    def dirty_ring(self) -> CData:
        """``struct kvm_dirty_gfn *``: the ring itself, ``vm.dirty_ring_entries`` long, for who empties it in C."""
        return ffi.cast("struct kvm_dirty_gfn *", self._dirty)

    @property
    def coalesced_ring(self) -> CData:
        """``struct kvm_coalesced_mmio_ring *``: writes to registered zones, the same ring on every vCPU."""
        where = c.KVM_COALESCED_MMIO_PAGE_OFFSET * PAGE
        if self._length < where + PAGE:
            raise KvmError(
                f"{self.label} has no coalesced ring: the kernel maps {self._length:#x} bytes only"
            )
        return ffi.cast("struct kvm_coalesced_mmio_ring *", ffi.cast("char *", self._live()) + where)

    def take_coalesced(self) -> list[tuple[int, bytes, bool]]:
        """The writes in the coalesced ring, oldest first: address, bytes, is it a port; empties the ring.

        Not from two threads at once, nor beside a run loop that does it (native/run.c).
        """
        ring = self.coalesced_ring
        entry = new("struct kvm_coalesced_mmio *")
        writes = []
        while lib.kvmpy_coalesced_take(ring, PAGE, entry):
            data = bytes(ffi.buffer(entry.data, min(entry.len, 8)))
            writes.append((int(entry.phys_addr), data, bool(entry.pio)))
        return writes

    # Xen

    def xen_get_attr(self, attribute: CData) -> CData:
        """Fill ``struct kvm_xen_vcpu_attr *``, whose ``type`` says what is asked (KVM_XEN_VCPU_GET_ATTR)."""
        return self.get(ioctls.KVM_XEN_VCPU_GET_ATTR, attribute)

    def xen_set_attr(self, attribute: CData) -> None:
        """From ``struct kvm_xen_vcpu_attr *`` (KVM_XEN_VCPU_SET_ATTR)."""
        self.put(ioctls.KVM_XEN_VCPU_SET_ATTR, attribute)


def _map(fd: int, length: int, offset: int, label: str) -> CData:
    error = new("int *")
    mapping = lib.kvmpy_map(fd, length, offset, error)
    if not mapping:
        raise KvmError(f"mmap of {length:#x} bytes of {label}: {os.strerror(error[0])}", error[0])
    return mapping
