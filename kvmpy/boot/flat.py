"""Flat binaries: the file's bytes, put somewhere in memory, started in any of the three modes."""

from __future__ import annotations

from kvmpy.boot import start
from kvmpy.boot.layout import Layout
from kvmpy.boot.payload import BootOptions, Chunk, Payload
from kvmpy.x86.layout import FLAT_IMAGE, HIGH_MEMORY

SUMMARY = "flat binary, started in real, protected or long mode"

USUAL_PLACE = {"real": FLAT_IMAGE, "protected": HIGH_MEMORY, "long": HIGH_MEMORY}


def load(data: bytes, options: BootOptions) -> Payload:
    """Payload of a flat binary, in real mode unless ``options.mode`` says otherwise.

    It goes to ``load_address``, else to ``entry``, else to 0x1000 (real mode) or 1 MiB; it starts at
    ``entry``, else at its first byte. Real mode starts below 1 MiB, with CS 0 below 64 KiB.
    """
    options.refuse("flat", "modules", "initrd")
    mode = options.mode or "real"
    address = options.load_address
    if address is None:
        address = USUAL_PLACE[mode] if options.entry is None else options.entry
    entry = address if options.entry is None else options.entry
    layout = Layout(options.ram, options.name)
    layout.claim(address, len(data), "the image")
    return Payload("flat", [Chunk(address, data)], start.enter(mode, entry, layout))
