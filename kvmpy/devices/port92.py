"""Port 0x92, "system control port A": the PS/2's fast A20 gate and fast reset."""

from __future__ import annotations

from kvmpy.devices.device import ByteDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RESET = 0x01
A20 = 0x02


class Port92(ByteDevice):
    """One byte: bit 1 is the A20 gate, a rising bit 0 resets the machine, the others only latch.

    ``on_a20(enabled)`` is called when the gate changes, ``on_reset()`` when bit 0 rises (QEMU's reading of
    it: a value whose bit 0 stays set resets once). Only the low byte of a wider access is this port.
    """

    name = "port92"
    FIELDS = {"value": 0xFF}

    def __init__(
        self, on_reset: Callable[[], None] | None = None, on_a20: Callable[[bool], None] | None = None
    ) -> None:
        self.value = 0
        self._on_reset = on_reset
        self._on_a20 = on_a20

    def read_byte(self, offset: int) -> int:
        """The last value."""
        return self.value

    def write_byte(self, offset: int, value: int) -> None:
        """Move the gate, then reset, where the bits say so."""
        before, self.value = self.value, value
        if (before ^ value) & A20 and self._on_a20 is not None:
            self._on_a20(bool(value & A20))
        if value & ~before & RESET and self._on_reset is not None:
            self._on_reset()

    def reset(self) -> None:
        """Gate and latch to 0; the machine brings the A20 line itself back to its own reset value."""
        self.value = 0
