"""ELCR: which lines of the two 8259 interrupt controllers are level triggered (ports 0x4d0 and 0x4d1)."""

from __future__ import annotations

from kvmpy.devices.registers import Register, RegisterFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WRITABLE = 0xDEF8
"""Lines 0, 1, 2, 8 and 13 (timer, keyboard, cascade, RTC, FPU) are edge triggered for ever."""


class Elcr(RegisterFile):
    """Two bytes, lines 0..7 and 8..15; a set bit is a level triggered line.

    ``on_change(levels)`` gets the 16 bits when they change, for an interrupt controller outside.
    """

    name = "elcr"
    levels = Register(0, 2, writable=WRITABLE, on_write=lambda self, levels: self._set(levels))

    def __init__(self, on_change: Callable[[int], None] | None = None) -> None:
        self._on_change = on_change
        self._told = 0
        super().__init__()

    def _set(self, levels: int) -> None:
        if levels != self._told:
            self._told = levels
            if self._on_change is not None:
                self._on_change(levels)

    def reset(self) -> None:
        """All lines edge triggered."""
        super().reset()
        self._set(0)

    def _restored(self) -> None:
        self.levels &= WRITABLE
        self._told = self.levels
        if self._on_change is not None:
            self._on_change(self.levels)
