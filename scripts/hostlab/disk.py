"""The disk image a Bochs host starts from: boot sector, kernel, PVH start info, initrd."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from .errors import HostsError
from .kernel import Image

SECTOR = 512
HEADS, SECTORS_PER_TRACK = 16, 63
_SOURCE = Path(__file__).with_name("boot_sector.s")
_BEHIND_CODE = 0x100  # see boot_sector.s
_PARTITION_TABLE = 0x1BE  # the list must end before it: the BIOS may look there

_START_INFO = 0x90000  # below the kernel and above the boot sector, in one 4 KiB page
_MODULES, _MEMORY_MAP, _COMMAND_LINE, _START_INFO_SIZE = 0x100, 0x200, 0x400, 0x1000
_START_MAGIC = 0x336EC578
_RAM, _RESERVED, _ACPI = 1, 2, 3


class Disk(NamedTuple):
    """A flat image in ``data``, and the number of cylinders that the emulator has to be told."""

    data: bytes
    cylinders: int


def assemble() -> bytes:
    """The boot sector's code, with an empty list. HostsError if it can't be assembled."""
    with tempfile.TemporaryDirectory() as place:
        thing, binary = Path(place) / "boot.o", Path(place) / "boot.bin"
        link = (
            "ld",
            "-m",
            "elf_i386",
            "-Ttext",
            "0x7c00",
            "--oformat",
            "binary",
            "-o",
            str(binary),
            str(thing),
        )
        for command in (("as", "--32", "-o", str(thing), str(_SOURCE)), link):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise HostsError(f"{command[0]} can't make the boot sector: {done.stderr.strip()}")
        return binary.read_bytes()


def start_info(command_line: str, initrd: tuple[int, int], memory: int) -> bytes:
    """The page that tells the kernel what it has: command line, initrd (address, size) and memory map.

    ``memory`` is the machine's in bytes. The map is that of Bochs' BIOS, which keeps its ACPI tables in the
    last 64 KiB. HostsError if the command line is too long.
    """
    map_ = (
        (0, 0x9FC00, _RAM),
        (0x9FC00, 0x400, _RESERVED),
        (0xE8000, 0x18000, _RESERVED),
        (0x100000, memory - 0x110000, _RAM),
        (memory - 0x10000, 0x10000, _ACPI),
        (0xFFFC0000, 0x40000, _RESERVED),
    )
    line = command_line.encode() + b"\0"
    if len(line) > _START_INFO_SIZE - _COMMAND_LINE:
        raise HostsError(
            f"the kernel's command line has {len(line)} bytes: {_START_INFO_SIZE - _COMMAND_LINE} fit"
        )
    page = bytearray(_START_INFO_SIZE)
    modules, entries, text = (_START_INFO + offset for offset in (_MODULES, _MEMORY_MAP, _COMMAND_LINE))
    # magic, version, flags, modules, module list, command line, RSDP (the kernel searches), memory map, its
    # length
    struct.pack_into("<IIIIQQQQII", page, 0, _START_MAGIC, 1, 0, 1, modules, text, 0, entries, len(map_), 0)
    struct.pack_into("<QQQQ", page, _MODULES, *initrd, 0, 0)
    for number, (address, size, kind) in enumerate(map_):
        struct.pack_into("<QQII", page, _MEMORY_MAP + 24 * number, address, size, kind, 0)
    page[_COMMAND_LINE : _COMMAND_LINE + len(line)] = line
    return bytes(page)


def build(boot_sector: bytes, kernel: Image, initrd: bytes, command_line: str, memory: int) -> Disk:
    """The image that starts ``kernel`` with ``initrd`` on a machine of ``memory`` bytes.

    HostsError if they don't fit in that memory.
    """
    ready = kernel.data.rstrip(b"\0")  # the machine's memory is clear to begin with
    initrd_at = _page_up(
        kernel.base + len(kernel.data) + (32 << 20)
    )  # the kernel uses some memory behind itself
    end = initrd_at + len(initrd)
    if end > memory - (64 << 20):
        raise HostsError(
            f"kernel and initrd end at {end >> 20} MiB, the host has {memory >> 20}: give it more memory"
        )
    info = start_info(command_line, (initrd_at, len(initrd)), memory)
    pieces = ((ready, kernel.base), (info, _START_INFO), (initrd, initrd_at))
    contents, where = bytearray(SECTOR), []
    for data, address in pieces:
        where.append((len(contents) // SECTOR, -(-len(data) // SECTOR), address))
        contents += data + bytes(-len(data) % SECTOR)
    contents[:SECTOR] = _fill_in(boot_sector, kernel.entry, where)
    cylinder = HEADS * SECTORS_PER_TRACK * SECTOR
    contents += bytes(-len(contents) % cylinder)
    return Disk(bytes(contents), len(contents) // cylinder)


def _fill_in(boot_sector: bytes, entry: int, pieces: list[tuple[int, int, int]]) -> bytes:
    """The boot sector with the list in it and the mark that makes it one."""
    behind = struct.pack("<II", entry, _START_INFO)
    behind += b"".join(struct.pack("<III", *piece) for piece in (*pieces, (0, 0, 0)))
    if _BEHIND_CODE + len(behind) > _PARTITION_TABLE:
        behind_limit = _PARTITION_TABLE - _BEHIND_CODE
        raise ValueError(f"the list in the boot sector takes {len(behind)} bytes: {behind_limit} fit")
    return (boot_sector[:_BEHIND_CODE].ljust(_BEHIND_CODE, b"\0") + behind).ljust(
        SECTOR - 2, b"\0"
    ) + b"\x55\xaa"


def _page_up(address: int) -> int:
    return (address + 0xFFF) & ~0xFFF
