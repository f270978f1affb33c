"""The engine itself: loaded once, makes VMs."""

from __future__ import annotations

from kvmpy.translate import library
from kvmpy.translate.vm import Vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from kvmpy.translate.cpuid import Entry

MSRS = (
    0x10, 0x1B, 0x3B, 0x8B, 0xFE, 0x174, 0x175, 0x176, 0x179, 0x17A, 0x1A0, *range(0x200, 0x210), 0x250, 0x258, 0x259,
    *range(0x268, 0x270), 0x277, 0x2FF, 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000100,
    0xC0000101, 0xC0000102, 0xC0000103,
)  # fmt: skip
"""The MSRs that are part of a guest's state."""


class System:
    """Unicorn, found and checked. Raises EngineError, with the remedy, when it isn't there or isn't the right one."""

    def __init__(self, path: str | None = None) -> None:
        library.load(path)
        self.closed = False
        self._supported: list[Entry] | None = None

    def create_vm(self) -> Vm:
        """A VM without memory and vCPUs."""
        return Vm(self)

    def get_supported_cpuid(self) -> list[Entry]:
        """What this engine's CPU has: (function, index, flags, eax, ebx, ecx, edx). Asked once."""
        if self._supported is None:
            from kvmpy.translate import cpuid

            with self.create_vm() as vm, vm.create_vcpu(0) as vcpu:
                self._supported = cpuid.supported(vcpu.state)
        return self._supported

    def get_msr_index_list(self) -> list[int]:
        """The MSRs that are part of a guest's state: save and restore these."""
        return list(MSRS)

    def close(self) -> None:
        """Nothing to give back: the library stays loaded as long as the process lives."""
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
