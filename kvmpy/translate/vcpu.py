"""A vCPU of the translate engine: the methods of :class:`kvmpy.kvm.Vcpu` that make sense without a kernel."""

from __future__ import annotations

import sys
from errno import EINVAL

from kvmpy._native import ffi, lib
from kvmpy.errors import EngineError, KvmError
from kvmpy.translate.errors import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from kvmpy._native import CData
    from kvmpy.translate.cpuid import Entry
    from kvmpy.translate.vm import Vm

SYNC_FIELDS = 7  # KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS


class Vcpu:
    """Made by :meth:`kvmpy.translate.Vm.create_vcpu`. Everything but :meth:`close` may be called at any exit; the
    state then set is the guest's when it is next entered. Structures are KVM's, as cffi pointers."""

    sync_regs = SYNC_FIELDS
    """KVM_SYNC_X86_*: register sets that travel in ``run.s.regs``."""

    def __init__(self, index: int, vm: Vm) -> None:
        self.index = index
        self.vm = vm
        self.label = f"vCPU {index}"
        self._cpuid: list[Entry] = []
        error = ffi.new("const char **")
        self._state = lib.kvmpy_translate_new(index, error)
        if self._state == ffi.NULL:
            raise EngineError(f"{self.label} of the translate engine: {ffi.string(error[0]).decode()}")

    @property
    def closed(self) -> bool:
        """Whether it was given back."""
        return bool(self._state == ffi.NULL)

    @property
    def state(self) -> CData:
        """``struct kvmpy_vcpu *``: what the run loop runs. KvmError when closed."""
        if self.closed:
            raise KvmError(f"{self.label} is closed")
        state: CData = self._state
        return state

    @property
    def run(self) -> CData:
        """``struct kvm_run *``, as KVM_RUN fills it."""
        run: CData = self.state.run
        return run

    def enter(self) -> int:
        """Run the guest once: 0, then ``run.exit_reason`` says why it came back; or an errno (see kvm.Vcpu.enter)."""
        return -int(lib.kvmpy_translate_enter(self.state))

    def close(self) -> None:
        """Give it back. Twice is fine."""
        state = getattr(self, "_state", ffi.NULL)
        self._state = ffi.NULL
        if state != ffi.NULL:
            lib.kvmpy_translate_free(state)
            self.vm.forget_vcpu()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_state", ffi.NULL) != ffi.NULL:
            if sys.is_finalizing():  # nothing can be imported any more, and the process's end frees it
                return
            import warnings

            warnings.warn(
                f"{self.label} of the translate engine was never closed", ResourceWarning, stacklevel=1
            )
            self.close()

    # Registers

    def get_regs(self, into: CData | None = None) -> CData:
        """``struct kvm_regs *``: general registers, rip, rflags."""
        regs = into if into is not None else ffi.new("struct kvm_regs *")
        lib.kvmpy_translate_get_regs(self.state, regs)
        return regs

    def set_regs(self, regs: CData) -> None:
        """From ``struct kvm_regs *``. A pending exception is dropped."""
        lib.kvmpy_translate_set_regs(self.state, regs)

    def get_sregs(self, into: CData | None = None) -> CData:
        """``struct kvm_sregs *``: segments, descriptor tables, control registers, EFER."""
        sregs = into if into is not None else ffi.new("struct kvm_sregs *")
        lib.kvmpy_translate_get_sregs(self.state, sregs)
        return sregs

    def set_sregs(self, sregs: CData) -> None:
        """From ``struct kvm_sregs *``. KvmError for combinations that KVM refuses, too."""
        result = lib.kvmpy_translate_set_sregs(self.state, sregs)
        if result < 0:
            from kvmpy.x86.explain import explain_sregs

            control = {name: getattr(sregs, name) for name in ("cr0", "cr3", "cr4", "cr8", "efer")}
            check(result, "KVM_SET_SREGS", self.label, "; ".join(explain_sregs(**control)))

    def get_fpu(self, into: CData | None = None) -> CData:
        """``struct kvm_fpu *``: x87 and SSE."""
        fpu = into if into is not None else ffi.new("struct kvm_fpu *")
        lib.kvmpy_translate_get_fpu(self.state, fpu)
        return fpu

    def set_fpu(self, fpu: CData) -> None:
        """From ``struct kvm_fpu *``."""
        lib.kvmpy_translate_set_fpu(self.state, fpu)

    def get_debugregs(self, into: CData | None = None) -> CData:
        """``struct kvm_debugregs *``: DR0-3, DR6, DR7."""
        regs = into if into is not None else ffi.new("struct kvm_debugregs *")
        lib.kvmpy_translate_get_debugregs(self.state, regs)
        return regs

    def set_debugregs(self, regs: CData) -> None:
        """From ``struct kvm_debugregs *``."""
        lib.kvmpy_translate_set_debugregs(self.state, regs)

    def get_xcrs(self, into: CData | None = None) -> CData:
        """``struct kvm_xcrs *``: extended control registers, of which there is XCR0."""
        xcrs = into if into is not None else ffi.new("struct kvm_xcrs *")
        xcrs.nr_xcrs = 1
        xcrs.xcrs[0].xcr = 0
        xcrs.xcrs[0].value = lib.kvmpy_translate_get_xcr0(self.state)
        return xcrs

    def set_xcrs(self, xcrs: CData) -> None:
        """From ``struct kvm_xcrs *``; x87 and SSE are all there is in XCR0. KvmError (EINVAL) for more."""
        for number in range(xcrs.nr_xcrs):
            xcr = xcrs.xcrs[number]
            result = -EINVAL if xcr.xcr else lib.kvmpy_translate_set_xcr0(self.state, xcr.value)
            check(result, "KVM_SET_XCRS", self.label, f"XCR{xcr.xcr} = {xcr.value:#x}")

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The values of MSRs; those that can't be read are missing."""
        value = ffi.new("uint64_t *")
        state = self.state
        return {i: int(value[0]) for i in indices if lib.kvmpy_translate_get_msr(state, i, value)}

    def set_msrs(self, values: Mapping[int, int]) -> list[int]:
        """Write MSRs in the order given, going on behind a refused one; the refused indices."""
        state = self.state
        return [i for i, value in values.items() if not lib.kvmpy_translate_set_msr(state, i, value)]

    def get_cpuid2(self) -> list[Entry]:
        """The CPUID table as last set: (function, index, flags, eax, ebx, ecx, edx)."""
        return list(self._cpuid)

    def set_cpuid2(self, table: CData | Iterable[Entry]) -> None:
        """What the guest's CPUID gives: entries, or a ``struct kvm_cpuid2 *``. KvmError (E2BIG) above 256."""
        from kvmpy.translate import cpuid

        packed = table if isinstance(table, ffi.CData) else cpuid.pack(table)
        result = lib.kvmpy_translate_set_cpuid(self.state, packed.entries, packed.nent)
        check(result, "KVM_SET_CPUID2", self.label, f"{packed.nent} entries, {cpuid.MOST} are the most")
        self._cpuid = cpuid.unpack(packed)

    def translate(self, linear: int) -> int | None:
        """The guest physical address of a linear one by the vCPU's page tables; None where nothing is mapped."""
        gpa = int(lib.kvmpy_translate_linear(self.state, linear))
        return None if gpa < 0 else gpa

    # Interrupts and events

    def get_mp_state(self) -> int:
        """``KVM_MP_STATE_*``: always runnable, unless something else was set."""
        return int(lib.kvmpy_translate_get_mp_state(self.state))

    def set_mp_state(self, state: int) -> None:
        """One of ``KVM_MP_STATE_*``. Kept, and nothing more: without a local APIC nobody waits for INIT."""
        lib.kvmpy_translate_set_mp_state(self.state, state)

    def get_vcpu_events(self, into: CData | None = None) -> CData:
        """``struct kvm_vcpu_events *``: pending exception, interrupt, NMI."""
        events = into if into is not None else ffi.new("struct kvm_vcpu_events *")
        lib.kvmpy_translate_get_events(self.state, events)
        return events

    def set_vcpu_events(self, events: CData) -> None:
        """From ``struct kvm_vcpu_events *``; ``flags`` say which optional fields count."""
        lib.kvmpy_translate_set_events(self.state, events)

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt, vector 0 to 255: delivered as soon as the guest can take it.

        KvmError (EEXIST) while another waits: ``run.request_interrupt_window`` asks for an exit when it doesn't.
        """
        check(
            lib.kvmpy_translate_interrupt(self.state, vector), "KVM_INTERRUPT", self.label, f"vector {vector}"
        )

    def nmi(self) -> None:
        """Queue an NMI."""
        lib.kvmpy_translate_nmi(self.state)

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """Breakpoint instructions, single steps, execution breakpoints: ``KVM_GUESTDBG_*``; DR0-DR7 for ``_USE_HW_BP``.

        KvmError (EINVAL) for breakpoints on data.
        """
        debug = ffi.new("struct kvm_guest_debug *", (control, 0, (tuple(debugreg),)))
        result = lib.kvmpy_translate_set_debug(self.state, debug)
        check(result, "KVM_SET_GUEST_DEBUG", self.label, "breakpoints on data aren't to be had")
