"""The laboratory's guests: measured loops in 64-bit mode, one for each kind of exit (guest_images/lab/exits.inc).

They are assembled from source when the package is built, like the bundled guests, and by the same builder: a listing
reads better than a table of bytes, and the assembler checks it. They aren't among the bundled guests, because alone
they end nowhere and show nothing.
"""

from __future__ import annotations

import os
import struct

from kvmpy.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.x86.entry import EntryState

IMAGE_AT = 0x10000
SHARED_AT = 0x1F000
"""Two 32-bit words for two vCPUs."""
SAMPLES_AT = 0x20000
STACK_AT = 0x80000
STACK_2_AT = 0x90000
REGION_AT = 0x400000
"""Memory that kinds do things to: aligned to 2 MiB."""
OUTSIDE = 0xD000_0000
"""No memory there, mapped all the same: accesses are MMIO."""
CONTROL, INJECT = 0xE0, 0xE1
USER_PORT, KERNEL_PORT = 0xE4, 0x4D0
USER_MSR = 0x10000
"""An MSR no CPU has."""
VECTOR = 0x40
MAGIC = b"KVMPYLAB"
ENTRY = struct.Struct("<24sQ")
STAMPS = ("fenced", "plain")
"""fenced: RDTSC between two LFENCEs. plain: RDTSC, where an emulator runs ring 0 one whole instruction after the other:
there are no instructions in flight to be fenced, and each costs as much as some exits."""


class LabImage:
    """An image and its table: ``entries`` maps the names of loops and handlers to their addresses.

    Raises ImageError when the package was built without it.
    """

    @staticmethod
    def read(name: str) -> bytes:
        """The bytes of one of the laboratory's guests. ImageError when the package was built without it."""
        path = os.path.join(os.path.dirname(__file__), os.pardir, "_images", "lab", f"{name}.bin")
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise ImageError(
                f"the laboratory's guest {name!r} isn't there ({error.strerror}): install kvmpy again"
            ) from None

    def __init__(self, stamp: str) -> None:
        self.data = self.read(stamp)
        self.stamp = stamp
        self.entries = _table(self.data)

    def state(
        self,
        entry: str,
        memory_size: int,
        chunk: int,
        r14: int,
        r15: int,
        handler: str = "",
        second: bool = False,
    ) -> EntryState:
        """Where a vCPU starts: at loop ``entry``, with interrupts of VECTOR going to ``handler`` if there is one."""
        from kvmpy.x86.entry import long_mode

        used = 0x20000 + 16 * chunk
        return long_mode(
            self.entries[entry],
            memory_size=memory_size,
            stack=STACK_2_AT if second else STACK_AT,
            tables_at=0x120000 if second else 0x100000,
            avoid=[(IMAGE_AT, used)],
            idt={VECTOR: self.entries[handler]} if handler else None,
            regs={"r12": SAMPLES_AT, "r13": chunk, "r14": r14, "r15": r15},
        )


def _table(data: bytes) -> dict[str, int]:
    if data[:8] != MAGIC:
        raise ImageError(
            "the laboratory's guest begins with something else than its table: install kvmpy again"
        )
    found = {}
    for at in range(8, len(data), ENTRY.size):
        name, address = ENTRY.unpack_from(data, at)
        if not name.strip(b"\0"):
            break
        found[name.rstrip(b"\0").decode()] = address
    return found
