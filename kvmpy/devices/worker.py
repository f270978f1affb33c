"""Worker: something that works for the guest, to compare ways of asking it to.

It adds numbers up; and it has a job that takes a while. Registers of 32 bits, at ports and in memory alike:

======  ======  ===========================================================================================
offset  access  register
======  ======  ===========================================================================================
0       write   ITEM: a number to be added
4       read    SUM of all numbers, modulo 2**32
8       write   JOB: one that takes so many milliseconds (at most 10000) begins
12      read    STATUS: 1 the job is done; reading it lowers the interrupt line, which rose when it was done
======  ======  ===========================================================================================
"""

from __future__ import annotations

from kvmpy.devices.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ITEM, SUM, JOB, STATUS = 0, 4, 8, 12
LONGEST = 10_000
MASK = 0xFFFFFFFF


class Worker(Device):
    """The registers. ``later(seconds, function)`` calls the function when that time is over, on any thread; ``irq`` is
    the level of its line; ``before_sum()`` brings in work that waits elsewhere."""

    name = "worker"
    LENGTH = 16
    FIELDS = {"sum": MASK, "items": (1 << 64) - 1, "done": bool}

    def __init__(
        self,
        later: Callable[[float, Callable[[], None]], object],
        irq: Callable[[bool], None],
        before_sum: Callable[[], object] = lambda: None,
    ) -> None:
        self.sum = 0
        self.items = 0
        self.done = False
        self._later = later
        self._irq = irq
        self._before_sum = before_sum

    def add(self, item: int) -> None:
        """One more number."""
        self.sum = self.sum + item & MASK
        self.items += 1

    def read(self, offset: int, size: int) -> int:
        """SUM or STATUS; other offsets read 0."""
        value = 0
        if offset == SUM:
            self._before_sum()
            value = self.sum
        elif offset == STATUS:
            value = int(self.done)
            self._irq(False)
        return value & ((1 << 8 * size) - 1)

    def write(self, offset: int, value: int, size: int) -> None:
        """ITEM or JOB; other offsets are ignored."""
        if offset == ITEM:
            self.add(value)
        elif offset == JOB:
            self.done = False
            self._later(min(value, LONGEST) / 1000, self._finish)

    def _finish(self) -> None:
        self.done = True
        self._irq(True)

    def reset(self) -> None:
        """No work done."""
        self.sum = self.items = 0
        self.done = False
        self._irq(False)
