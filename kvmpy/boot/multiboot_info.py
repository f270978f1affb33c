"""The Multiboot information structure that a kernel finds at EBX (Multiboot 0.6.96, 3.3)."""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

INFO_MEMORY = 1 << 0
INFO_CMDLINE = 1 << 2
INFO_MODULES = 1 << 3
INFO_ELF_SECTIONS = 1 << 5
INFO_MEMORY_MAP = 1 << 6
INFO_LOADER_NAME = 1 << 9

LOADER_NAME = "kvmpy"
INFO_SIZE = 120  # up to and with the frame buffer's fields, which stay 0

_MODULE = struct.Struct("<4I")  # start, end, string, reserved
_AREA = struct.Struct("<IQQI")  # size of what follows, start, length, type


class Info:
    """What the structure will say. ``build`` lays it out for the address where it is to live.

    ``modules`` holds (first address, first address behind, string), ``areas`` (start, length, type),
    ``sections`` (count, bytes each, address, index of the names) of the ELF section headers, if they are
    loaded. Sizes of memory are in KiB.
    """

    def __init__(self, command_line: str, lower_kib: int, upper_kib: int) -> None:
        self.command_line = command_line
        self.lower_kib = lower_kib
        self.upper_kib = upper_kib
        self.areas: Sequence[tuple[int, int, int]] = ()
        self.modules: list[tuple[int, int, str]] = []
        self.sections: tuple[int, int, int, int] | None = None

    @property
    def size(self) -> int:
        """Bytes it takes with all that it points at."""
        return len(self.build(0))

    def build(self, base: int) -> bytes:
        """The structure for guest physical address ``base``, with the tables and strings it points at."""
        block = bytearray(INFO_SIZE)
        modules_at = _append(block, base, bytes(_MODULE.size * len(self.modules)))
        areas_at = _append(block, base, b"".join(_AREA.pack(20, *area) for area in self.areas))
        for number, (start, end, text) in enumerate(self.modules):
            string = _append(block, base, _string(text))
            _MODULE.pack_into(block, modules_at - base + number * _MODULE.size, start, end, string, 0)
        flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME
        struct.pack_into("<2I", block, 4, self.lower_kib, self.upper_kib)
        struct.pack_into("<I", block, 16, _append(block, base, _string(self.command_line)))
        struct.pack_into("<2I", block, 20, len(self.modules), modules_at)
        if self.sections is not None:
            flags |= INFO_ELF_SECTIONS
            struct.pack_into("<4I", block, 28, *self.sections)
        struct.pack_into("<2I", block, 44, _AREA.size * len(self.areas), areas_at)
        struct.pack_into("<I", block, 64, _append(block, base, _string(LOADER_NAME)))
        struct.pack_into("<I", block, 0, flags)
        return bytes(block)


def _append(block: bytearray, base: int, contents: bytes) -> int:
    """Put ``contents`` behind what is there, on a 4-byte boundary; the address it will have."""
    block += bytes(-len(block) % 4)
    address = base + len(block)
    block += contents
    return address


def _string(text: str) -> bytes:
    # Names of files may hold bytes that aren't UTF-8; they come as surrogates and go back to what they were.
    return text.encode(errors="surrogateescape") + b"\0"
