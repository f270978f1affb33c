"""ACPI PM1 registers: how a guest powers the machine off (ACPI specification 6.5, 4.8.3.1 and 4.8.3.2)."""

from __future__ import annotations

from kvmpy.devices.registers import Register, RegisterFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SCI_EN = 0x0001
SLP_TYP_SHIFT = 10
SLP_EN = 0x2000


class AcpiPm1(RegisterFile):
    """Three 16-bit registers: status (write one to clear), enable and control.

    ``on_sleep(type)`` is called with the sleep type 0..7 when the guest sets SLP_EN; QEMU's PCs power off for
    type 0 and suspend for 1. So ``outw(base + 4, 0x2000)``, at 0x604 in small kernels written for QEMU, ends
    the guest. SCI_EN reads as set: there is no other mode to leave.
    """

    name = "pm1"
    status = Register(0, 2, clear_on_write=0xFFFF)
    enable = Register(2, 2)
    control = Register(
        4, 2, reset=SCI_EN, writable=0xFFFF & ~SCI_EN, fields={"sci": 0, "type": (10, 12), "sleep": 13},
        on_write=lambda self, control: self._controlled(control),
    )  # fmt: skip

    def __init__(self, on_sleep: Callable[[int], None] | None = None) -> None:
        self._on_sleep = on_sleep
        super().__init__()

    def _controlled(self, control: int) -> None:
        """SLP_EN reads as 0 again."""
        self.control = control & ~SLP_EN
        if control & SLP_EN and self._on_sleep is not None:
            self._on_sleep((control >> SLP_TYP_SHIFT) & 7)
