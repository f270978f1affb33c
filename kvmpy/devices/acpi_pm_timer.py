"""ACPI power management timer: a counter at 3.579545 MHz (ACPI specification 6.5, 4.8.3.3)."""

from __future__ import annotations

from kvmpy.devices.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FREQUENCY = 3_579_545
"""Hz."""


class AcpiPmTimer(Device):
    """Four read-only bytes: a counter of 24 bits (the upper byte is 0) or 32 that follows ``clock`` (ns).

    It starts at 0 when made and isn't stopped by a reset. A narrower read gives its part of the counter,
    bytes beyond it read as ones. There is no status bit for its overflow: that lives in the PM1 registers.
    """

    name = "pm-timer"
    LENGTH = 4
    FIELDS = {"elapsed": (1 << 64) - 1}

    def __init__(self, clock: Callable[[], int], bits: int = 24) -> None:
        self.bits = 32 if bits == 32 else 24
        self._mask = (1 << self.bits) - 1
        self._clock = clock
        self._start = clock()

    @property
    def elapsed(self) -> int:
        """Nanoseconds since the counter was 0 for the first time."""
        return (self._clock() - self._start) & ((1 << 64) - 1)

    @elapsed.setter
    def elapsed(self, value: int) -> None:
        self._start = self._clock() - value

    @property
    def count(self) -> int:
        """The counter."""
        return self.elapsed * FREQUENCY // 1_000_000_000 & self._mask

    def read(self, offset: int, size: int) -> int:
        """``size`` bytes of the counter, taken at one moment."""
        ones = (1 << (8 * size)) - 1
        if not 0 <= offset < 4:
            return ones
        return ((self.count | ~0xFFFF_FFFF) >> (8 * offset)) & ones
