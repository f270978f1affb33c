"""Every VM exit the kernel can give on x86 as a typed view, and what happens to it when nobody says otherwise.

A view borrows from the vCPU's ``struct kvm_run``: it is good until the vCPU runs again. Sources: KVM API document,
"5. The kvm_run structure".
"""

from __future__ import annotations

from kvmpy._native import ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.machine import Machine


class Exit:
    """One VM exit: ``reason`` is KVM's number, ``name`` what KVM_EXIT_… calls it."""

    reason = -1
    name = "UNKNOWN"
    MEMBER: str | None = None
    """The member of kvm_run's union with the details; its fields are attributes of the view."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.run: Any = cpu.native.run
        self._member = getattr(self.run, self.MEMBER) if self.MEMBER else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or self.MEMBER is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self._member, name)

    def describe(self) -> str:
        """One line for people."""
        return self.name

    def __repr__(self) -> str:
        return f"<{self.describe()} on vCPU {self.cpu.index}>"


class Unknown(Exit):
    """KVM_EXIT_UNKNOWN: the hardware left the guest for a reason KVM doesn't know."""

    reason, name, MEMBER = 0, "UNKNOWN", "hw"

    def describe(self) -> str:
        return f"UNKNOWN: hardware exit reason {self.hardware_exit_reason:#x}"


class Exception_(Exit):
    """KVM_EXIT_EXCEPTION: vector and error code."""

    reason, name, MEMBER = 1, "EXCEPTION", "ex"

    def describe(self) -> str:
        return f"EXCEPTION {self.exception}, error code {self.error_code:#x}"


class Io(Exit):
    """KVM_EXIT_IO: ``port``, ``size`` 1, 2 or 4, ``count`` elements, ``is_write``, ``data``."""

    reason, name, MEMBER = 2, "IO", "io"

    @property
    def is_write(self) -> bool:
        """OUT rather than IN."""
        return bool(self.direction)

    @property
    def data(self) -> memoryview:
        """What the guest wrote, or what it will read: ``size * count`` bytes."""
        base = ffi.cast("uint8_t *", self.run) + self.data_offset
        return memoryview(ffi.buffer(base, self.size * self.count))

    def describe(self) -> str:
        name = "OUT" if self.is_write else "IN"
        times = f" x {self.count}" if self.count > 1 else ""
        value = f" = {int.from_bytes(self.data, 'little'):#x}" if self.is_write and self.count == 1 else ""
        return f"{name} port {self.port:#x}, {self.size} bytes{times}{value}"


class Hypercall(Exit):
    """KVM_EXIT_HYPERCALL: ``nr``, ``args`` (six), and ``ret`` for the answer in RAX."""

    reason, name, MEMBER = 3, "HYPERCALL", "hypercall"

    def describe(self) -> str:
        return f"HYPERCALL {self.nr:#x}"


class Debug(Exit):
    """KVM_EXIT_DEBUG: ``exception`` (1 or 3), ``pc``, ``dr6``, ``dr7``."""

    reason, name, MEMBER = 4, "DEBUG", "debug"

    @property
    def arch(self) -> Any:
        """struct kvm_debug_exit_arch."""
        return self._member.arch  # type: ignore[union-attr]

    def describe(self) -> str:
        return f"DEBUG at {self.arch.pc:#x}, exception {self.arch.exception}, DR6 {self.arch.dr6:#x}"


class Hlt(Exit):
    """KVM_EXIT_HLT: the guest halted and no interrupt controller in the kernel will wake it."""

    reason, name = 5, "HLT"


class Mmio(Exit):
    """KVM_EXIT_MMIO: ``phys_addr``, ``len`` 1-8, ``is_write``, ``data``."""

    reason, name, MEMBER = 6, "MMIO", "mmio"

    @property
    def data(self) -> memoryview:
        """What the guest wrote, or what it will read."""
        return memoryview(ffi.buffer(self._member.data, self.len))  # type: ignore[union-attr]

    def describe(self) -> str:
        name = "write to" if self.is_write else "read of"
        value = f" = {int.from_bytes(self.data, 'little'):#x}" if self.is_write else ""
        return f"MMIO {name} {self.phys_addr:#x}, {self.len} bytes{value}"


class IrqWindowOpen(Exit):
    """KVM_EXIT_IRQ_WINDOW_OPEN: the guest can take the interrupt that was asked for."""

    reason, name = 7, "IRQ_WINDOW_OPEN"


class Shutdown(Exit):
    """KVM_EXIT_SHUTDOWN: a triple fault."""

    reason, name = 8, "SHUTDOWN"

    def describe(self) -> str:
        return "SHUTDOWN: triple fault"


class FailEntry(Exit):
    """KVM_EXIT_FAIL_ENTRY: the hardware refused the guest's state."""

    reason, name, MEMBER = 9, "FAIL_ENTRY", "fail_entry"

    def describe(self) -> str:
        code = self.hardware_entry_failure_reason
        return f"FAIL_ENTRY: the hardware refused to enter the guest, reason {code:#x}"


class Intr(Exit):
    """KVM_EXIT_INTR: a signal came."""

    reason, name = 10, "INTR"


class SetTpr(Exit):
    """KVM_EXIT_SET_TPR: the guest changed CR8 and the local APIC isn't in the kernel."""

    reason, name = 11, "SET_TPR"


class TprAccess(Exit):
    """KVM_EXIT_TPR_ACCESS: ``rip`` and ``is_write`` of an access to the task priority register."""

    reason, name, MEMBER = 12, "TPR_ACCESS", "tpr_access"


class Nmi(Exit):
    """KVM_EXIT_NMI."""

    reason, name = 16, "NMI"


EMULATION_FAILURE = 1


class InternalError(Exit):
    """KVM_EXIT_INTERNAL_ERROR: KVM gave up. ``suberror`` 1 is an instruction it couldn't emulate, and that wasn't
    rescued either."""

    reason, name, MEMBER = 17, "INTERNAL_ERROR", "internal"
    SUBERRORS = {
        EMULATION_FAILURE: "emulation failure",
        2: "exception during delivery of another",
        3: "exit during event delivery",
        4: "unexpected VM exit reason",
    }

    @property
    def instruction(self) -> bytes:
        """The bytes at RIP as KVM saw them, where it says so (KVM_CAP_EXIT_ON_EMULATION_FAILURE); or empty."""
        failure = self.run.emulation_failure
        if self.suberror != EMULATION_FAILURE or failure.ndata < 3 or not failure.flags & 1:
            return b""
        return bytes(failure.insn_bytes)[: failure.insn_size]

    def describe(self) -> str:
        what = self.SUBERRORS.get(self.suberror, "unknown sub-code")
        code = self.instruction
        return f"INTERNAL_ERROR {self.suberror} ({what})" + (f", instruction {code.hex(' ')}" if code else "")


class IoapicEoi(Exit):
    """KVM_EXIT_IOAPIC_EOI: ``vector``; split irqchip only."""

    reason, name, MEMBER = 26, "IOAPIC_EOI", "eoi"


class SystemEvent(Exit):
    """KVM_EXIT_SYSTEM_EVENT: ``type`` 1 shutdown, 2 reset, 3 crash."""

    reason, name, MEMBER = 24, "SYSTEM_EVENT", "system_event"

    def describe(self) -> str:
        return f"SYSTEM_EVENT {self.type}"


class Msr(Exit):
    """``index`` and ``data`` of an MSR access; ``error`` = 1 gives the guest a #GP."""

    MEMBER = "msr"

    def describe(self) -> str:
        return f"{self.name} {self.index:#x}"


class Rdmsr(Msr):
    """KVM_EXIT_X86_RDMSR."""

    reason, name = 29, "X86_RDMSR"


class Wrmsr(Msr):
    """KVM_EXIT_X86_WRMSR."""

    reason, name = 30, "X86_WRMSR"


class DirtyRingFull(Exit):
    """KVM_EXIT_DIRTY_RING_FULL: collect the dirty pages, then run again."""

    reason, name = 31, "DIRTY_RING_FULL"


class BusLock(Exit):
    """KVM_EXIT_X86_BUS_LOCK: a split lock held the bus."""

    reason, name = 33, "X86_BUS_LOCK"


class Notify(Exit):
    """KVM_EXIT_NOTIFY: no event window for too long; ``flags`` bit 0: the vCPU's state is lost."""

    reason, name, MEMBER = 37, "NOTIFY", "notify"


class MemoryFault(Exit):
    """KVM_EXIT_MEMORY_FAULT: ``gpa``, ``size``, ``flags`` of an access the slots can't serve."""

    reason, name, MEMBER = 39, "MEMORY_FAULT", "memory_fault"

    def describe(self) -> str:
        return f"MEMORY_FAULT at {self.gpa:#x}, {self.size:#x} bytes"


def _subclasses(kind: type[Exit]) -> list[type[Exit]]:
    found = []
    for sub in kind.__subclasses__():
        found += [sub, *_subclasses(sub)]
    return found


VIEWS: dict[int, type[Exit]] = {view.reason: view for view in _subclasses(Exit) if view.reason >= 0}


def view(cpu: Cpu) -> Exit:
    """The vCPU's last exit."""
    reason = int(cpu.native.run.exit_reason)
    found = VIEWS.get(reason, Exit)(cpu)
    if type(found) is Exit:
        found.reason, found.name = reason, f"EXIT_{reason}"
    return found


def name_of(reason: int) -> str:
    """KVM's name of an exit reason."""
    known = VIEWS.get(reason)
    return known.name if known else f"EXIT_{reason}"


# What happens to an exit nobody has taken over. Each function may end the run (machine.end) or leave the guest running.


def _halt(machine: Machine, exit_: Exit) -> None:
    machine.halted(exit_.cpu)


def _crash(machine: Machine, exit_: Exit) -> None:
    machine.crash(exit_.cpu, exit_.describe())


def _internal_error(machine: Machine, exit_: Exit) -> None:
    if exit_.suberror != EMULATION_FAILURE:
        machine.crash(exit_.cpu, exit_.describe())
        return
    from kvmpy.machine.crash import instruction

    name = instruction(exit_.cpu)
    what = exit_.describe() + (f": {name}" if name else "")
    machine.crash(exit_.cpu, what, remark=machine.why_not_rescued(exit_.cpu))


def _debug(machine: Machine, exit_: Exit) -> None:
    machine.end("debug", cpu=exit_.cpu, detail=exit_.describe())


def _hypercall(machine: Machine, exit_: Exit) -> None:
    from kvmpy.machine.hypercalls import instruction

    instruction(machine, exit_)


def _no_msr(machine: Machine, exit_: Exit) -> None:
    exit_.run.msr.error = 1


def _system_event(machine: Machine, exit_: Exit) -> None:
    kind = {1: "shutdown", 2: "reset"}.get(exit_.type)
    if kind is None:
        _crash(machine, exit_)
    else:
        machine.end(kind, cpu=exit_.cpu, detail=exit_.describe())


def _notify(machine: Machine, exit_: Exit) -> None:
    if exit_.flags & 1:
        _crash(machine, exit_)


def _window(machine: Machine, exit_: Exit) -> None:
    exit_.run.request_interrupt_window = 0
    _set_tpr(machine, exit_)


def _set_tpr(machine: Machine, exit_: Exit) -> None:
    if machine.interrupts is not None:
        machine.interrupts.deliver()


def _go_on(machine: Machine, exit_: Exit) -> None:
    pass


DEFAULTS: dict[int, Callable[[Machine, Exit], None]] = {
    Hypercall.reason: _hypercall,
    Debug.reason: _debug,
    InternalError.reason: _internal_error,
    Hlt.reason: _halt,
    IrqWindowOpen.reason: _window,
    Intr.reason: _go_on,
    SetTpr.reason: _set_tpr,
    TprAccess.reason: _go_on,
    Nmi.reason: _go_on,
    SystemEvent.reason: _system_event,
    IoapicEoi.reason: _go_on,
    Rdmsr.reason: _no_msr,
    Wrmsr.reason: _no_msr,
    DirtyRingFull.reason: _crash,
    BusLock.reason: _go_on,
    Notify.reason: _notify,
}


def default(machine: Machine, exit_: Exit) -> None:
    """What kvmpy does with an exit that no handler has taken: unknown ones are crashes."""
    DEFAULTS.get(exit_.reason, _crash)(machine, exit_)
