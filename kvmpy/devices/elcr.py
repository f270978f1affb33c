"""ELCR: which lines of the two 8259 interrupt controllers are level triggered (ports 0x4d0 and 0x4d1)."""

from __future__ import annotations

from kvmpy.devices.device import ByteDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WRITABLE = 0xDEF8
"""Lines 0, 1, 2, 8 and 13 (timer, keyboard, cascade, RTC, FPU) are edge triggered for ever."""


class Elcr(ByteDevice):
    """Two byte registers, lines 0..7 and 8..15; a set bit is a level triggered line.

    ``on_change(levels)`` gets the 16 bits when they change, for an interrupt controller outside. A 16-bit
    access works on both, as it is split into bytes.
    """

    name = "elcr"
    LENGTH = 2
    FIELDS = {"levels": 0xFFFF}

    def __init__(self, on_change: Callable[[int], None] | None = None) -> None:
        self.levels = 0
        self._on_change = on_change

    def read_byte(self, offset: int) -> int:
        """Eight of the sixteen bits."""
        return (self.levels >> (8 * offset)) & 0xFF

    def write_byte(self, offset: int, value: int) -> None:
        """Eight of the sixteen bits, less those that can't be level triggered."""
        shift = 8 * offset
        self._set((self.levels & ~(0xFF << shift)) | ((value << shift) & WRITABLE))

    def _set(self, levels: int) -> None:
        if levels != self.levels:
            self.levels = levels
            if self._on_change is not None:
                self._on_change(levels)

    def reset(self) -> None:
        """All lines edge triggered."""
        self._set(0)

    def _restored(self) -> None:
        self.levels &= WRITABLE
        if self._on_change is not None:
            self._on_change(self.levels)
