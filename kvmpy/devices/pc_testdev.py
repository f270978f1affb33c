"""QEMU's ``pc-testdev``: what kvm-unit-tests' x86 tests poke at to provoke exits, remaps and interrupts.

Three devices, as it takes three ranges: ports 0xe0..0xeb, ports 0x2000..0x2017, memory from 0xff000000 on.
"""

from __future__ import annotations

from kvmpy.devices.device import ByteDevice, Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FLUSH = 4
IRQ_LINES = 24
MEMORY_BASE = 0xFF00_0000
MEMORY_LENGTH = 0x10000


class PcTestdevPorts(Device):
    """Twelve ports. 0xe0..0xe3 echo what was written there, by byte, word or long; 0xe8..0xeb is the same
    register (QEMU takes it byte by byte there, which gives the same values). A 32-bit write to 0xe4 names a
    guest physical address whose page is to vanish from the second level page tables: ``flush(gpa)``, page
    aligned; the contents stay. Other writes there are lost; what isn't the register reads as ones.
    """

    name = "testdev-ports"
    LENGTH = 12
    FIELDS = {"value": 0xFFFF_FFFF}

    def __init__(self, flush: Callable[[int], None] | None = None) -> None:
        self.value = 0
        self._flush = flush

    def read(self, offset: int, size: int) -> int:
        """The register's bytes from ``offset`` on."""
        ones = (1 << (8 * size)) - 1
        if not 0 <= offset < self.LENGTH or offset & FLUSH:
            return ones
        return ((self.value | ~0xFFFF_FFFF) >> (8 * (offset & 3))) & ones

    def write(self, offset: int, value: int, size: int) -> None:
        """The register's bytes from ``offset`` on, those beyond it are lost; or a flush."""
        if offset == FLUSH:
            if size == 4 and self._flush is not None:
                self._flush(value & 0xFFFF_F000)
        elif 0 <= offset < self.LENGTH and not offset & FLUSH:
            shift = 8 * (offset & 3)
            mask = (((1 << (8 * size)) - 1) << shift) & 0xFFFF_FFFF
            self.value = (self.value & ~mask) | ((value << shift) & mask)

    def reset(self) -> None:
        """The register back to 0."""
        self.value = 0


class PcTestdevIrq(ByteDevice):
    """24 write-only ports: a byte other than 0 raises the interrupt line of that number (GSI), 0 lowers it.

    ``irq(line, level)`` is called at every write. Reads give ones. In QEMU only byte writes count; here a
    wider one is split, which gives a guest that tries it something sensible.
    """

    name = "testdev-irq"
    LENGTH = IRQ_LINES
    FIELDS = {"levels": (1 << IRQ_LINES) - 1}

    def __init__(self, irq: Callable[[int, bool], None] | None = None) -> None:
        self.levels = 0
        self._irq = irq

    def write_byte(self, offset: int, value: int) -> None:
        """Drive the line."""
        bit = 1 << offset
        self.levels = self.levels | bit if value else self.levels & ~bit
        if self._irq is not None:
            self._irq(offset, bool(value))

    def reset(self) -> None:
        """Lower the lines that are up."""
        for line in range(IRQ_LINES):
            if self.levels >> line & 1:
                self.write_byte(line, 0)


class PcTestdevMemory(Device):
    """64 KiB that behave like RAM, but every access is an MMIO exit. Beyond the end: ones, and lost."""

    name = "testdev-memory"
    LENGTH = MEMORY_LENGTH
    FIELDS = {"data": bytes}

    def __init__(self) -> None:
        self.data = bytearray(MEMORY_LENGTH)

    def read(self, offset: int, size: int) -> int:
        """Little endian, any alignment."""
        if offset < 0:
            return (1 << (8 * size)) - 1
        return int.from_bytes(self.data[offset : offset + size].ljust(size, b"\xff"), "little")

    def write(self, offset: int, value: int, size: int) -> None:
        """Little endian, any alignment."""
        room = min(size, MEMORY_LENGTH - offset)
        if offset >= 0 and room > 0:
            self.data[offset : offset + room] = (value & ((1 << (8 * room)) - 1)).to_bytes(room, "little")

    def reset(self) -> None:
        """All zero, as when the machine was made."""
        self.data[:] = bytes(MEMORY_LENGTH)
