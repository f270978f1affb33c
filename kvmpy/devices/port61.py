"""Port 0x61, "system control port B": speaker, the gate and output of PIT channel 2, refresh toggle."""

from __future__ import annotations

from kvmpy.devices.device import ByteDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

GATE2 = 0x01
SPEAKER = 0x02
WRITABLE = 0x0F
REFRESH = 0x10
OUT2 = 0x20
REFRESH_NS = 15_085
"""Nanoseconds of a memory refresh cycle; the toggle changes with each."""


class Port61(ByteDevice):
    """One byte. Bits 0..3 are kept as written, bit 4 toggles, bit 5 is PIT channel 2's output, 6 and 7 are 0.

    ``out2()`` tells the output (False if not given), ``on_gate(level)`` is called when bit 0 changes; both
    are for a timer outside. With ``clock`` (nanoseconds) the toggle follows time, without it changes at each
    read: delay loops end in both cases. Only the low byte of a wider access is this port.
    """

    name = "port61"
    FIELDS = {"value": WRITABLE, "toggle": bool}

    def __init__(
        self,
        clock: Callable[[], int] | None = None,
        out2: Callable[[], bool] | None = None,
        on_gate: Callable[[bool], None] | None = None,
    ) -> None:
        self.value = 0
        self.toggle = False
        self._clock = clock
        self._out2 = out2
        self._on_gate = on_gate

    def read_byte(self, offset: int) -> int:
        """What was written, and what the lines do."""
        self.toggle = not self.toggle if self._clock is None else bool(self._clock() // REFRESH_NS & 1)
        return (
            self.value
            | (REFRESH if self.toggle else 0)
            | (OUT2 if self._out2 is not None and self._out2() else 0)
        )

    def write_byte(self, offset: int, value: int) -> None:
        """Keep the low four bits; the gate may move."""
        before, self.value = self.value, value & WRITABLE
        if (before ^ value) & GATE2 and self._on_gate is not None:
            self._on_gate(bool(value & GATE2))

    def reset(self) -> None:
        """Speaker and gate off."""
        self.write_byte(0, 0)
        self.toggle = False

    def _restored(self) -> None:
        if self._on_gate is not None:
            self._on_gate(bool(self.value & GATE2))
