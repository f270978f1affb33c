"""Latches: byte registers that keep what was written, for chips that a guest sets up but never uses."""

from __future__ import annotations

from kvmpy.devices.registers import RegisterFile


class Latches(RegisterFile):
    """``length`` byte registers with no effect: reads give what was last written, ``fill`` before that.

    A PC's DMA page registers (0x81..0x8f) and its two 8237 DMA controllers (0x00..0x0f, 0xc0..0xdf) are such
    to a guest without a floppy. C serves them all.
    """

    name = "latches"
    FIELDS = {"values": bytes}

    def __init__(self, name: str, length: int, fill: int = 0) -> None:
        self.name = name
        self.LENGTH = length
        self.MASKS = dict.fromkeys(self.MASKS, bytes(length)) | dict.fromkeys(
            ("readable", "writable"), b"\xff" * length
        )
        self._fill = fill & 0xFF
        super().__init__()

    @property
    def values(self) -> bytearray:
        """What was last written to each."""
        return bytearray(self.memory[: self.LENGTH])

    @values.setter
    def values(self, values: bytes) -> None:
        self.memory[: self.LENGTH] = values

    def reset(self) -> None:
        """Every register back to ``fill``."""
        self.values = bytes((self._fill,)) * self.LENGTH
