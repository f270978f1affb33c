"""Debug console: a port where each byte written is output (QEMU's ``isa-debugcon``, Bochs' port 0xe9)."""

from __future__ import annotations

from kvmpy.devices.device import ByteDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READBACK = 0xE9
"""What a read gives, so that a guest can find out whether somebody listens (QEMU's ``readback`` property)."""


class DebugConsole(ByteDevice):
    """One write-only byte port, usually at 0xe9, or at 0x402 where SeaBIOS writes its messages.

    Of a wider write only the low byte is output, the rest belongs to the next ports; of a wider read the low
    byte is ``readback``.
    """

    name = "debugcon"

    def __init__(self, output: Callable[[bytes], None], readback: int = READBACK) -> None:
        self.readback = readback & 0xFF
        self._output = output

    def read_byte(self, offset: int) -> int:
        """``readback``."""
        return self.readback

    def write(self, offset: int, value: int, size: int) -> None:
        """Output the low byte."""
        if offset == 0:
            self._output(bytes((value & 0xFF,)))

    def write_string(self, offset: int, data: bytes, size: int) -> None:
        """``rep outsb`` goes out in one piece."""
        if offset == 0 and data:
            self._output(bytes(data[::size]))
