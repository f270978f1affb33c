"""From an image to a machine that is ready to run it."""

from __future__ import annotations

import os

from kvmpy.boot.payload import BootOptions, Payload
from kvmpy.errors import GuestMemoryError, ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.machine.machine import Machine


def load(machine: Machine, image: object, **options: Any) -> Payload:
    """See :meth:`kvmpy.machine.machine.Machine.load`."""
    payload = image if isinstance(image, Payload) else prepare(machine, image, **options)
    place(machine, payload)
    return payload


def prepare(machine: Machine, image: object, **options: Any) -> Payload:
    """The image as a Payload for this machine's memory; nothing is written yet."""
    from kvmpy.boot import load as boot

    ram = [(slot.gpa, slot.size) for slot in machine.memory.slots if not slot.readonly]
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        options.setdefault("name", "image")
    else:
        data = _read(os.fspath(image), options)  # type: ignore[call-overload]
    return boot(data, BootOptions(machine.memory.size, ram=ram, cpus=len(machine.cpus), **options))


def _read(where: str, options: dict[str, Any]) -> bytes:
    """A file if there is one of that name, else a bundled guest, which knows its own format and mode."""
    from kvmpy.boot import read
    from kvmpy.boot.bundled import find

    options.setdefault("name", os.path.basename(where))
    if os.sep in where or (os.path.exists(where) and not os.path.isdir(where)):
        return read(where)
    guest = find(where)
    options.setdefault("format", guest.format)
    options.setdefault("mode", guest.mode)
    if options["format"] == "flat":
        options.setdefault("load_address", guest.load_address)
    return guest.read()


def place(machine: Machine, payload: Payload) -> None:
    """Writes a payload's contents to memory and puts the first vCPU at its entry state."""
    memory = machine.memory
    for chunk in payload.chunks:
        if chunk.kind == "rom" and chunk.gpa not in memory:
            slot = memory.add(chunk.gpa, (chunk.length + 4095) & ~4095, readonly=True, name="rom")
            memory.write(slot.gpa, chunk.data, force=True)
            continue
        try:
            memory.write(chunk.gpa, chunk.data)
            if chunk.zero:
                memory.fill(chunk.gpa + len(chunk.data), chunk.zero)
        except GuestMemoryError as error:
            raise ImageError(f"{payload.format} image: {error}") from None
    for gpa, data in payload.entry.memory:
        memory.write(gpa, data)
    machine.cpus[0].load(payload.entry)
