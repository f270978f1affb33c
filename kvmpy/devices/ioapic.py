"""I/O APIC: 24 interrupt lines to messages for local APICs; at 0xfec00000 on a PC.

Source: Intel's 82093AA data sheet (290566). Lines are asserted or not: a pin's polarity bit is kept and says
nothing here, as what an active low wire carries is the business of who drives it.
"""

from __future__ import annotations

from kvmpy.devices.device import Device
from kvmpy.devices.lapic import FIXED, INIT, LEVEL_TRIGGERED, LOWEST, NMI, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PINS = 24
SELECT, WINDOW = 0x00, 0x10
REG_ID, REG_VERSION, REG_ARBITRATION, REG_TABLE = 0x00, 0x01, 0x02, 0x10
VERSION = 0x11 | (PINS - 1) << 16
ID_MASK = 0x0F00_0000

VECTOR = 0xFF
DELIVERY_SHIFT = 8
LOGICAL = 1 << 11
PENDING = 1 << 12
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
DESTINATION_SHIFT = 56
READ_ONLY = PENDING | REMOTE_IRR
WRITABLE = (0xFF << DESTINATION_SHIFT | 0x1FFFF) & ~READ_ONLY
ENTRY_BYTES = 8


class IoApic(Device):
    """A page: the register index at 0x00, the register at 0x10, everything else reads 0.

    ``send(message)`` takes an interrupt to the local APICs and says whether one of them took it. Registers are 32 bits
    at their own addresses, as the data sheet demands: narrower reads show a part, other writes are lost.

    An edge at a masked pin is lost; a level is delivered again at the EOI for as long as it is there. ExtINT and SMI
    entries deliver nothing: a PC's 8259 has its own wire to the CPU.
    """

    name = "ioapic"
    LENGTH = 0x1000
    FIELDS = {
        "select": 0xFF,
        "id": ID_MASK,
        "lines": (1 << PINS) - 1,
        "table": bytes,
    }

    def __init__(self, send: Callable[[Message], bool]) -> None:
        self._send = send
        self.lines = 0
        self.table = bytearray(PINS * ENTRY_BYTES)
        self.reset()

    def reset(self) -> None:
        """All pins masked. The lines stay as they are."""
        self.select = 0
        self.id = 0
        for pin in range(PINS):
            self._put(pin, MASKED)

    def entry(self, pin: int) -> int:
        """The redirection table entry of a pin, 64 bits."""
        return int.from_bytes(self.table[pin * ENTRY_BYTES : (pin + 1) * ENTRY_BYTES], "little")

    def _put(self, pin: int, entry: int) -> None:
        self.table[pin * ENTRY_BYTES : (pin + 1) * ENTRY_BYTES] = entry.to_bytes(ENTRY_BYTES, "little")

    # Registers

    def read(self, offset: int, size: int) -> int:
        """The index, the register it names, or a part of one."""
        ones = (1 << (8 * size)) - 1
        at, part = offset & ~3, offset & 3
        value = self.select if at == SELECT else self._register(self.select) if at == WINDOW else 0
        return (value >> (8 * part)) & ones

    def _register(self, index: int) -> int:
        if index in (REG_ID, REG_ARBITRATION):
            return self.id
        if index == REG_VERSION:
            return VERSION
        pin, high = divmod(index - REG_TABLE, 2)
        return self.entry(pin) >> (32 * high) & 0xFFFF_FFFF if 0 <= pin < PINS else 0

    def write(self, offset: int, value: int, size: int) -> None:
        """The index (its low byte counts), or the register it names."""
        if offset == SELECT:
            self.select = value & 0xFF
        elif offset == WINDOW and size >= 4:
            value &= 0xFFFF_FFFF
            if self.select == REG_ID:
                self.id = value & ID_MASK
            pin, high = divmod(self.select - REG_TABLE, 2)
            if 0 <= pin < PINS:
                self._write_entry(pin, high, value)

    def _write_entry(self, pin: int, high: int, value: int) -> None:
        before = self.entry(pin)
        half = 0xFFFF_FFFF << (32 * high)
        entry = before & ~(half & WRITABLE) | (value << (32 * high)) & half & WRITABLE
        if not entry & LEVEL:
            entry &= ~REMOTE_IRR
        self._put(pin, entry)
        if entry & LEVEL:
            self._service(pin)

    # Lines

    def set_line(self, pin: int, level: bool) -> None:
        """Pin 0-23 is asserted, or no longer."""
        bit = 1 << pin
        before = self.lines
        self.lines = before | bit if level else before & ~bit
        if level and (self.entry(pin) & LEVEL or not before & bit):
            self._service(pin)

    def _service(self, pin: int) -> None:
        entry = self.entry(pin)
        if entry & (MASKED | REMOTE_IRR) or not self.lines >> pin & 1:
            return
        mode = entry >> DELIVERY_SHIFT & 7
        if mode not in (FIXED, LOWEST, NMI, INIT):
            return
        flags = LEVEL_TRIGGERED if entry & LEVEL and mode in (FIXED, LOWEST) else 0
        message = Message(entry & VECTOR, mode, entry >> DESTINATION_SHIFT, bool(entry & LOGICAL), flags)
        if self._send(message) and flags:
            self._put(pin, entry | REMOTE_IRR)

    def end_of_interrupt(self, vector: int) -> None:
        """A local APIC has got the EOI for a level triggered interrupt of that vector."""
        for pin in range(PINS):
            entry = self.entry(pin)
            if entry & REMOTE_IRR and entry & VECTOR == vector:
                self._put(pin, entry & ~REMOTE_IRR)
                self._service(pin)

    def _restored(self) -> None:
        for pin in range(PINS):
            entry = self.entry(pin)
            self._put(pin, entry & (WRITABLE | (REMOTE_IRR if entry & LEVEL else 0)))
