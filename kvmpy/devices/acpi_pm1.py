"""ACPI PM1 registers: how a guest powers the machine off (ACPI specification 6.5, 4.8.3.1 and 4.8.3.2)."""

from __future__ import annotations

from kvmpy.devices.device import ByteDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STATUS = 0
ENABLE = 2
CONTROL = 4
SCI_EN = 0x0001
SLP_TYP_SHIFT = 10
SLP_EN = 0x2000


class AcpiPm1(ByteDevice):
    """Three 16-bit registers: status (write one to clear), enable and control; wider is split into bytes.

    ``on_sleep(type)`` is called with the sleep type 0..7 when the guest sets SLP_EN; QEMU's PCs power off for
    type 0 and suspend for 1. So ``outw(base + 4, 0x2000)``, at 0x604 in small kernels written for QEMU, ends
    the guest. SCI_EN reads as set: there is no other mode to leave.
    """

    name = "pm1"
    LENGTH = 6
    FIELDS = {"status": 0xFFFF, "enable": 0xFFFF, "control": 0xFFFF}

    def __init__(self, on_sleep: Callable[[int], None] | None = None) -> None:
        self._on_sleep = on_sleep
        self.reset()

    def reset(self) -> None:
        """Nothing pending, nothing enabled."""
        self.status = self.enable = 0
        self.control = SCI_EN

    def read_byte(self, offset: int) -> int:
        """Half of a register."""
        value = (self.status, self.enable, self.control)[offset >> 1]
        return (value >> (8 * (offset & 1))) & 0xFF

    def write_byte(self, offset: int, value: int) -> None:
        """Half of a register; SLP_EN is in the upper half of control and reads as 0."""
        shift = 8 * (offset & 1)
        if offset < ENABLE:
            self.status &= ~(value << shift)
        elif offset < CONTROL:
            self.enable = (self.enable & ~(0xFF << shift)) | (value << shift)
        else:
            control = (self.control & ~(0xFF << shift)) | (value << shift)
            self.control = control & ~SLP_EN | SCI_EN
            if control & SLP_EN and self._on_sleep is not None:
                self._on_sleep((control >> SLP_TYP_SHIFT) & 7)
