"""Exit port: a write ends the guest with a status (0xf4 style, and QEMU's ``isa-debug-exit``)."""

from __future__ import annotations

from kvmpy.devices.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class ExitPort(Device):
    """Four ports (usually 0xf4..0xf7) where any write is a status and asks for the end of the guest.

    The written value, 8, 16 or 32 bits wide and at any of the offsets, is the status; it isn't split. With
    ``qemu`` it is turned into what QEMU would exit with, 2n+1, which is never 0 (success is a convention of
    the test suite, usually 0 -> 1). That an operating system keeps only 8 bits of it is the caller's matter.

    Reads give 0, as QEMU's do, so a guest can tell the port from an empty bus.
    """

    name = "exit"
    LENGTH = 4
    FIELDS = {"written": bool, "value": 0xFFFF_FFFF}

    def __init__(self, on_exit: Callable[[int], None], qemu: bool = False) -> None:
        self.qemu = qemu
        self.written = False
        self.value = 0
        self._on_exit = on_exit

    @property
    def status(self) -> int | None:
        """The status of the last write, already mapped when ``qemu`` is set; None before the first."""
        if not self.written:
            return None
        return 2 * self.value + 1 if self.qemu else self.value

    def read(self, offset: int, size: int) -> int:
        """0."""
        return 0

    def write(self, offset: int, value: int, size: int) -> None:
        """Note the status and call ``on_exit`` with it, at every write: a guest may be run on."""
        self.written = True
        self.value = value & 0xFFFF_FFFF & ((1 << (8 * size)) - 1)
        self._on_exit(2 * self.value + 1 if self.qemu else self.value)

    def reset(self) -> None:
        """Forget the status."""
        self.written = False
        self.value = 0
