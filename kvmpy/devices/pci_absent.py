"""The PCI configuration ports of a PC that has no PCI: nobody answers, but 0xcf9 still resets."""

from __future__ import annotations

from kvmpy.devices.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RESET_CONTROL = 1
SYSTEM_RESET = 0x02
RESET_CPU = 0x04


class PciAbsent(Device):
    """Ports 0xcf8..0xcff. Reads of any size give all ones and configuration writes are lost.

    A guest that writes 0x80000000 to 0xcf8 and reads it back finds that there is no host bridge. The reset
    control register of Intel's chipsets at 0xcf9, only a byte access reaches it, is there all the same, as
    kernels reboot through it: bit 2 asks ``on_reset()``, bit 1 (hard or soft) reads back.
    """

    name = "pci"
    LENGTH = 8
    FIELDS = {"reset_control": 0xFF}

    def __init__(self, on_reset: Callable[[], None] | None = None) -> None:
        self.reset_control = 0
        self._on_reset = on_reset

    def read(self, offset: int, size: int) -> int:
        """All ones, but a byte at 0xcf9."""
        if offset == RESET_CONTROL and size == 1 and self._on_reset is not None:
            return self.reset_control
        return super().read(offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        """Lost, but a byte at 0xcf9."""
        if offset == RESET_CONTROL and size == 1:
            self.reset_control = value & SYSTEM_RESET  # bit 2 is never seen set: the machine resets
            if value & RESET_CPU and self._on_reset is not None:
                self._on_reset()

    def reset(self) -> None:
        """The kind of reset back to soft."""
        self.reset_control = 0
