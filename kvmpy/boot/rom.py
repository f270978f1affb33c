"""Firmware: a ROM that ends at 4 GiB; after reset the CPU fetches from its last 16 bytes."""

from __future__ import annotations

from kvmpy.boot.layout import FOUR_GIB, PAGE, Layout, span
from kvmpy.boot.payload import BootOptions, Chunk, Payload
from kvmpy.errors import ImageError, UsageError
from kvmpy.x86 import entry as x86

SUMMARY = "ROM that ends at 4 GiB, started at the reset vector (firmware, SeaBIOS)"

LARGEST = 8 << 20  # as on QEMU's PC; further down come the APICs' pages and those that VT-x needs
LOW_END = 0x100000
LOW_COPY = 0x20000  # a chipset shows the last 128 KiB below 1 MiB as well, where real mode can reach them


def load(data: bytes, options: BootOptions) -> Payload:
    """Payload of a firmware image: a read-only chunk below 4 GiB, and a copy of its last 128 KiB below 1 MiB.

    The copy is RAM and can be written, as after a BIOS has unlocked it on a PC.
    """
    options.refuse("ROM", "load_address", "entry", "modules", "initrd")
    if options.mode not in (None, "real"):
        raise UsageError(
            f"{options.name}: a ROM starts at the reset vector, in real mode, not in {options.mode} mode"
        )
    if len(data) % PAGE:
        raise ImageError(f"{options.name}: a ROM of {len(data)} bytes: a multiple of {PAGE} is needed")
    if len(data) > LARGEST:
        raise ImageError(
            f"{options.name}: a ROM of {len(data)} bytes: no more than {LARGEST} fit below 4 GiB"
        )
    base = FOUR_GIB - len(data)
    layout = Layout(options.ram, options.name)
    for start, size in layout.ram:
        if start < FOUR_GIB and base < start + size:
            raise ImageError(
                f"{options.name}: the ROM at {span(base, len(data))} overlaps RAM at {span(start, size)}: "
                "leave a hole below 4 GiB"
            )
    low = memoryview(data)[-LOW_COPY:]
    layout.claim(LOW_END - len(low), len(low), "the ROM's copy below 1 MiB")
    chunks = [Chunk(base, data, readonly=True, kind="rom"), Chunk(LOW_END - len(low), low)]
    return Payload("rom", chunks, x86.reset_vector())
