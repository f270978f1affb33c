"""Latches: byte registers that keep what was written, for chips that a guest sets up but never uses."""

from __future__ import annotations

from kvmpy.devices.device import ByteDevice


class Latches(ByteDevice):
    """``length`` byte registers with no effect: reads give what was last written, ``fill`` before that.

    A PC's DMA page registers (0x81..0x8f) and its two 8237 DMA controllers (0x00..0x0f, 0xc0..0xdf) are such
    to a guest without a floppy. Wider accesses are split into bytes.
    """

    name = "latches"
    FIELDS = {"values": bytes}

    def __init__(self, name: str, length: int, fill: int = 0) -> None:
        self.name = name
        self.LENGTH = length
        self._fill = fill & 0xFF
        self.values = bytearray((self._fill,)) * length

    def read_byte(self, offset: int) -> int:
        """What was last written."""
        return self.values[offset]

    def write_byte(self, offset: int, value: int) -> None:
        """Keep it."""
        self.values[offset] = value

    def reset(self) -> None:
        """Every register back to ``fill``."""
        self.values[:] = bytearray((self._fill,)) * len(self.values)
