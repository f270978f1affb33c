"""A VM of the translate engine: memory slots and one vCPU."""

from __future__ import annotations

from kvmpy._native import ffi, lib
from kvmpy.errors import EngineError
from kvmpy.translate.errors import check
from kvmpy.translate.vcpu import Vcpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from kvmpy.translate.system import System

READONLY = 2  # KVM_MEM_READONLY
MAX_VCPUS = 1
MOST_VIEWS = 64  # TRANSLATE_VIEWS


class Vm:
    """Made by :meth:`kvmpy.translate.System.create_vm`. Close its vCPU first."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.closed = False
        self._slots: dict[int, tuple[int, int, int, int]] = {}
        self._vcpu: Vcpu | None = None
        self._msr_exits = 0

    def create_vcpu(self, index: int) -> Vcpu:
        """The vCPU, with its ``struct kvm_run``. EngineError for a second one: translated code has no lock prefix that
        would hold between threads."""
        if index or self._vcpu is not None:
            raise EngineError(
                f"vCPU {index}: the translate engine has {MAX_VCPUS}, for locked instructions of translated code aren't"
                " atomic between threads; use engine='kvm'"
            )
        vcpu = Vcpu(index, self)
        try:
            for slot, (flags, gpa, size, address) in self._slots.items():
                self._map(vcpu, slot, flags, gpa, size, address)
        except BaseException:
            vcpu.close()
            raise
        lib.kvmpy_translate_set_msr_exits(vcpu.state, self._msr_exits)
        self._vcpu = vcpu
        return vcpu

    def forget_vcpu(self) -> None:
        """The vCPU was closed: there may be another."""
        self._vcpu = None

    def set_user_memory_region(self, slot: int, gpa: int, size: int, address: int, flags: int = 0) -> None:
        """Make, move, change or (size 0) delete a memory slot, as KVM_SET_USER_MEMORY_REGION.

        ``flags``: ``KVM_MEM_READONLY``; a dirty log there is not. The memory must stay where it is until the slot or
        the VM is gone. Raises KvmError.
        """
        if self._vcpu is not None:
            self._map(self._vcpu, slot, flags, gpa, size, address)
        if size:
            self._slots[slot] = (flags, gpa, size, address)
        else:
            self._slots.pop(slot, None)

    def _map(self, vcpu: Vcpu, slot: int, flags: int, gpa: int, size: int, address: int) -> None:
        readonly = bool(flags & READONLY)
        result = lib.kvmpy_translate_map(vcpu.state, slot, gpa, size, ffi.cast("void *", address), readonly)
        check(result, "KVM_SET_USER_MEMORY_REGION", f"slot {slot}", f"{size:#x} bytes at {gpa:#x}")

    def wrote(self, gpa: int, length: int) -> None:
        """The host wrote to guest memory: what was translated from there is translated again. From any thread.

        The shape of a hook of :attr:`kvmpy.machine.memory.GuestMemory.on_write`.
        """
        vcpu = self._vcpu
        if vcpu is not None and not vcpu.closed:
            lib.kvmpy_translate_wrote(vcpu.state, gpa, length)

    def viewed(self, gpa: int, length: int) -> None:
        """A writable view of guest memory was handed out: from now on each entry compares the code that was translated
        from there with what is there. From any thread; the shape of a hook of ``GuestMemory.on_view``.
        """
        vcpu = self._vcpu
        if vcpu is not None and not vcpu.closed:
            lib.kvmpy_translate_viewed(vcpu.state, gpa, length)

    def set_views(self, views: Sequence[tuple[int, int]]) -> None:
        """Which writable views there are, (gpa, length) each: between two runs."""
        vcpu = self._vcpu
        if vcpu is not None and not vcpu.closed:
            if len(views) > MOST_VIEWS:
                views = [(views[0][0], views[-1][0] + views[-1][1] - views[0][0])]
            words = [word for view in views for word in view]
            lib.kvmpy_translate_views(vcpu.state, len(views), ffi.new("uint64_t[]", words))

    def enable_user_space_msrs(self, reasons: int = 7) -> None:
        """RDMSR and WRMSR that would be #GP exit to user space; ``reasons``: bits ``KVM_MSR_EXIT_REASON_*``."""
        self._msr_exits = reasons
        if self._vcpu is not None:
            lib.kvmpy_translate_set_msr_exits(self._vcpu.state, reasons)

    def close(self) -> None:
        """Closes the vCPU, too, if nobody has. Twice is fine."""
        self.closed = True
        if self._vcpu is not None:
            self._vcpu.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
