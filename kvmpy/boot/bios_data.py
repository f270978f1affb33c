"""What a BIOS has left in low memory when a boot loader hands over to a kernel, though none ran here.

Kernels look there for the end of conventional memory and the serial ports; some go back to real mode and ask the BIOS,
and take its "no" for an answer. Source: IBM PC/AT Technical Reference, "ROM BIOS and System Usage"; Multiboot 0.6.96,
3.2: the BIOS's data is as it was.
"""

from __future__ import annotations

from kvmpy.boot.memory_map import LOW_END, lower_kib
from kvmpy.boot.payload import Chunk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmpy.boot.layout import Layout

VECTORS, DATA, EBDA = 0x000, 0x400, LOW_END
STUBS = 0xFFF00  # F000:FF00, where a PC has its ROM

IRET = b"\xcf"
# The caller sees carry set and everything else as it was: "this function isn't there".
REFUSE = b"\x55\x89\xe5\x80\x4e\x06\x01\x5d\xcf"  # push %bp; mov %sp, %bp; orb $1, 6(%bp); pop %bp; iret
SERVICES = range(0x10, 0x20)

COM1 = 0x3F8
EQUIPMENT = 1 << 9 | 0b10 << 4  # one serial port, 80 columns in colour
FIELDS = ((0x00, COM1), (0x0E, EBDA >> 4), (0x10, EQUIPMENT), (0x49, 3), (0x4A, 80), (0x63, 0x3D4))


def chunks(layout: Layout, ram: Sequence[tuple[int, int]]) -> list[Chunk]:
    """Interrupt vectors, the BIOS's data areas and stubs for its services, where the image left the room free."""
    offset = STUBS & 0xFFFF
    vector = (0xF000 << 16 | offset).to_bytes(4, "little")
    refuse = (0xF000 << 16 | offset + len(IRET)).to_bytes(4, "little")
    vectors = b"".join(refuse if number in SERVICES else vector for number in range(256))
    data = bytearray(0x100)
    for at, value in (*FIELDS, (0x13, lower_kib(ram))):
        data[at : at + 2] = value.to_bytes(2, "little")
    parts = ((VECTORS, vectors), (DATA, bytes(data)), (EBDA, b"\x01"), (STUBS, IRET + REFUSE))
    return [Chunk(gpa, contents) for gpa, contents in parts if layout.free(gpa, len(contents))]
