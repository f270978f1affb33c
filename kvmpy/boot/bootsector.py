"""Boot sectors: what a PC's BIOS reads from the first 512 bytes of a disk to 0x7c00."""

from __future__ import annotations

from kvmpy.boot import start
from kvmpy.boot.layout import Layout
from kvmpy.boot.memory_map import LOW_END
from kvmpy.boot.payload import BootOptions, Chunk, Payload
from kvmpy.boot.signature import BOOT_SIGNATURE, SECTOR
from kvmpy.errors import ImageError, UsageError
from kvmpy.x86.layout import BOOT_SECTOR

SUMMARY = "boot sector at 0x7c00, with the sectors behind it"

FIRST_HARD_DISK = 0x80
LARGEST = LOW_END - BOOT_SECTOR


def load(data: bytes, options: BootOptions) -> Payload:
    """Payload of a boot sector: real mode at 0:0x7c00, DL 0x80 (first hard disk).

    A BIOS would read one sector and offer a disk service for the rest. There is neither, so all sectors are
    put behind the first, where most boot code reads them to anyway.
    """
    options.refuse("boot sector", "load_address", "entry", "modules", "initrd")
    if options.mode not in (None, "real"):
        raise UsageError(f"{options.name}: a boot sector starts in real mode, not in {options.mode} mode")
    if len(data) < SECTOR or len(data) % SECTOR:
        raise ImageError(
            f"{options.name}: a boot sector image has a multiple of {SECTOR} bytes, not {len(data)}"
        )
    if data[SECTOR - 2 : SECTOR] != BOOT_SIGNATURE:
        raise ImageError(
            f"{options.name}: no boot sector: bytes 510 and 511 are "
            f"{data[SECTOR - 2 : SECTOR].hex(' ')}, not 55 aa"
        )
    if len(data) > LARGEST:
        raise ImageError(
            f"{options.name}: {len(data)} bytes don't fit behind {BOOT_SECTOR:#x}: at most {LARGEST} do, "
            "and there is no disk to read the rest from"
        )
    layout = Layout(options.ram, options.name)
    layout.claim(BOOT_SECTOR, len(data), "the boot sector")
    notes = ["there is no BIOS: its interrupts (int 0x10, int 0x13, …) lead nowhere"]
    state = start.real(BOOT_SECTOR, layout, dl=FIRST_HARD_DISK)
    return Payload("bootsector", [Chunk(BOOT_SECTOR, data)], state, notes)
