"""Port 0x92, "system control port A": the PS/2's fast A20 gate and fast reset."""

from __future__ import annotations

from kvmpy.devices.registers import Register, RegisterFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RESET = 0x01
A20 = 0x02


class Port92(RegisterFile):
    """One byte: bit 1 is the A20 gate, a rising bit 0 resets the machine, the others only latch.

    ``on_a20(enabled)`` is called when the gate changes, ``on_reset()`` when bit 0 rises (QEMU's reading of
    it: a value whose bit 0 stays set resets once). Only the low byte of a wider access is this port.
    """

    name = "port92"
    value = Register(0, 1, fields={"reset": 0, "a20": 1}, on_write=lambda self, value: self._written(value))

    def __init__(
        self, on_reset: Callable[[], None] | None = None, on_a20: Callable[[bool], None] | None = None
    ) -> None:
        self._on_reset = on_reset
        self._on_a20 = on_a20
        self._before = 0
        super().__init__()

    def _written(self, value: int) -> None:
        """Moves the gate, then resets, where the bits say so."""
        before, self._before = self._before, value
        if (before ^ value) & A20 and self._on_a20 is not None:
            self._on_a20(bool(value & A20))
        if value & ~before & RESET and self._on_reset is not None:
            self._on_reset()

    def reset(self) -> None:
        """Gate and latch to 0; the machine brings the A20 line itself back to its own reset value."""
        super().reset()
        self._before = 0

    def _restored(self) -> None:
        self._before = self.value
