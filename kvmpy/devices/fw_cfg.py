"""fw_cfg: how QEMU tells firmware about the machine (QEMU's docs/specs/fw_cfg.rst, and its code behind it).

What a PC's firmware wants to find in it is in :mod:`kvmpy.devices.fw_cfg_items`.
"""

from __future__ import annotations

from kvmpy.devices.device import Device
from kvmpy.errors import DeviceError, KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    class DmaMemory(Protocol):
        """Guest memory; both raise a KvmpyError for an address without RAM."""

        def read(self, address: int, length: int, /) -> bytes: ...

        def write(self, address: int, data: bytes, /) -> object: ...


SELECTOR = 0
DATA = 1
DMA = 4

SIGNATURE = 0x0000
ID = 0x0001
UUID = 0x0002
RAM_SIZE = 0x0003
NOGRAPHIC = 0x0004
CPUS = 0x0005
MACHINE_ID = 0x0006
KERNEL_ADDRESS = 0x0007
KERNEL_SIZE = 0x0008
KERNEL_CMDLINE = 0x0009
INITRD_ADDRESS = 0x000A
INITRD_SIZE = 0x000B
BOOT_DEVICE = 0x000C
NUMA = 0x000D
BOOT_MENU = 0x000E
MAX_CPUS = 0x000F
KERNEL_ENTRY = 0x0010
KERNEL_DATA = 0x0011
INITRD_DATA = 0x0012
CMDLINE_ADDRESS = 0x0013
CMDLINE_SIZE = 0x0014
CMDLINE_DATA = 0x0015
SETUP_ADDRESS = 0x0016
SETUP_SIZE = 0x0017
SETUP_DATA = 0x0018
FILE_DIRECTORY = 0x0019
FILE_FIRST = 0x0020
ACPI_TABLES = 0x8000
SMBIOS_ENTRIES = 0x8001
IRQ0_OVERRIDE = 0x8002
E820_TABLE = 0x8003
HPET = 0x8004

KEY_MASK = 0xBFFF  # bit 14 once meant "for writing" and selects nothing else
KEYS = 0x4000
NAME_LENGTH = 55
FILE_ENTRY = 64
ID_TRADITIONAL = 1
ID_DMA = 2

DMA_SIGNATURE = b"QEMU CFG"
DMA_ERROR = 0x01
DMA_READ = 0x02
DMA_SKIP = 0x04
DMA_SELECT = 0x08
DMA_WRITE = 0x10

CHUNK = 1 << 20
ZERO_LIMIT = 16 << 20
"""The most bytes beyond an item's end that one DMA read fills with zeros; a longer one fails."""


class FwCfg(Device):
    """Ports 0x510 (selector, 16 bit), 0x511 (data) and 0x514..0x51b (DMA address), attached at 0x510.

    As in QEMU: only a 16-bit write to 0x510 selects; a byte read from 0x510 is data as well; data writes are
    ignored; the DMA address takes 32-bit writes (the one to its lower half starts) or one of 64 bits. A data
    read of N bytes at 0x511 gives the next N as a string, zeros after the end.

    ``memory`` is where DMA goes; without it the interface isn't there, and the id item says so. What a guest
    asks of DMA is bounded: no more than the item's length and :data:`ZERO_LIMIT` is moved, in chunks, and an
    address without RAM sets the error bit.
    """

    name = "fw_cfg"
    LENGTH = 12
    FIELDS = {"selected": 0xFFFF, "position": 0xFFFF_FFFF, "dma_high": 0xFFFF_FFFF, "writable": bytes}

    def __init__(self, memory: DmaMemory | None = None) -> None:
        self._memory = memory
        self._items: dict[int, bytes | bytearray] = {}
        self._files: dict[str, int] = {}
        self._directory_stale = True
        self.selected = SIGNATURE
        self.position = 0
        self.dma_high = 0
        self._current: bytes | bytearray = b"QEMU"
        self.set(SIGNATURE, b"QEMU")
        self.set_int(ID, ID_TRADITIONAL | (ID_DMA if memory is not None else 0), 4)

    # Filling it

    def set(self, key: int, data: bytes, *, writable: bool = False) -> None:
        """Make ``data`` the item at ``key`` (0..0x3fff, or 0x8000..0xbfff), instead of what was there.

        ``writable``: a guest may overwrite it through DMA, in its length. Raises DeviceError for a key that
        can't be selected, the file directory's, which makes itself, or more than 4 GiB - 1 of data.
        """
        if key != key & KEY_MASK or not 0 <= key & 0x7FFF < KEYS or key == FILE_DIRECTORY:
            raise DeviceError(
                f"fw_cfg: key {key:#x} can't be set, must be 0..0x3fff or 0x8000..0xbfff, not 0x19"
            )
        if len(data) > 0xFFFF_FFFF:
            raise DeviceError(
                f"fw_cfg: item {key:#x} has {len(data)} bytes, at most {0xFFFF_FFFF} can be told"
            )
        self._items[key] = bytearray(data) if writable else bytes(data)
        self._directory_stale = True
        self._reselect()

    def set_int(self, key: int, value: int, size: int) -> None:
        """A little endian number of ``size`` bytes; raises DeviceError if it doesn't fit."""
        if not 0 <= value < 1 << (8 * size):
            raise DeviceError(f"fw_cfg: item {key:#x} is {value}, must fit in {size} bytes unsigned")
        self.set(key, value.to_bytes(size, "little"))

    def set_file(self, name: str, data: bytes, *, writable: bool = False) -> int:
        """Make ``data`` the contents of the file ``name``, e.g. "etc/e820" or "opt/org.example/x".

        Returns its key: the next from 0x20 on for a new name, so keys don't change. Raises DeviceError for a
        name that isn't 1..55 ASCII characters.
        """
        if not 0 < len(name) <= NAME_LENGTH or not name.isascii() or "\0" in name:
            raise DeviceError(f"fw_cfg: file name {name!r} must be 1..{NAME_LENGTH} ASCII characters")
        key = self._files.get(name, FILE_FIRST + len(self._files))
        self.set(key, data, writable=writable)
        if name not in self._files:
            self._files[name] = key
            self._directory_stale = True
            self._reselect()
        return key

    def item(self, key: int) -> bytes | None:
        """What a guest that selects ``key`` can read now; None if there is nothing."""
        if key == FILE_DIRECTORY and self._directory_stale:
            self._items[FILE_DIRECTORY] = self._directory()
            self._directory_stale = False
        data = self._items.get(key)
        return None if data is None else bytes(data)

    def file(self, name: str) -> bytes | None:
        """The contents of the file ``name``; None if there is none."""
        return self.item(self._files[name]) if name in self._files else None

    def _directory(self) -> bytes:
        entries = [len(self._files).to_bytes(4, "big")]
        for name, key in self._files.items():
            size = len(self._items[key])
            entries.append(size.to_bytes(4, "big") + key.to_bytes(2, "big") + bytes(2))
            entries.append(name.encode("ascii").ljust(NAME_LENGTH + 1, b"\0"))
        return b"".join(entries)

    # The ports

    def read(self, offset: int, size: int) -> int:
        """The next bytes of the selected item, or the DMA signature."""
        ones = (1 << (8 * size)) - 1
        if offset == DATA or (offset == SELECTOR and size == 1):
            return int.from_bytes(self._take(size), "little")
        if offset == SELECTOR:
            return 0
        if DMA <= offset < self.LENGTH and self._memory is not None:
            part = DMA_SIGNATURE[offset - DMA : offset - DMA + size]
            return int.from_bytes(part.ljust(size, b"\xff"), "little")
        return ones

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """``rep insb`` from the data register, the way firmware reads, is one slice."""
        if offset == DATA and count > 0:
            return self._take(size * count)
        return super().read_string(offset, size, count)

    def write(self, offset: int, value: int, size: int) -> None:
        """Select, or set the DMA address and go."""
        if offset == SELECTOR and size == 2:
            self._select(value & 0xFFFF)
        elif self._memory is None:
            return
        elif offset == DMA and size == 4:
            self.dma_high = _swapped(value, 4)
        elif (offset == DMA + 4 and size == 4) or (offset == DMA and size == 8):
            address = _swapped(value, size) | (self.dma_high << 32 if size == 4 else 0)
            self.dma_high = 0
            self._dma(self._memory, address)

    def reset(self) -> None:
        """The signature is selected. Items that a guest wrote to stay as written."""
        self._select(SIGNATURE)
        self.dma_high = 0

    def _select(self, key: int) -> None:
        self.selected = key
        self.position = 0
        self._reselect()

    def _reselect(self) -> None:
        key = self.selected & KEY_MASK
        if key == FILE_DIRECTORY:
            self.item(key)
        self._current = self._items.get(key, b"")

    def _take(self, count: int) -> bytes:
        data = bytes(self._current[self.position : self.position + count])
        self.position += len(data)
        return data.ljust(count, b"\0")

    # DMA

    def _dma(self, memory: DmaMemory, at: int) -> None:
        """Do what the 16 byte structure at the guest physical address ``at`` asks for."""
        status = DMA_ERROR
        try:
            request = memory.read(at, 16)
            control = int.from_bytes(request[0:4], "big")
            length = int.from_bytes(request[4:8], "big")
            address = int.from_bytes(request[8:16], "big")
            if control & DMA_SELECT:
                self._select(control >> 16)
            if self._transfer(memory, control, length, address):
                status = 0
        except KvmpyError:
            pass  # an address without RAM: the guest's mistake, and the guest is told
        try:
            memory.write(at, status.to_bytes(4, "big"))
        except KvmpyError:
            return  # and here there is nowhere to tell it

    def _transfer(self, memory: DmaMemory, control: int, length: int, address: int) -> bool:
        """True if it went well. Raises what ``memory`` does."""
        if not length or not control & (DMA_READ | DMA_WRITE | DMA_SKIP):
            return True
        rest = max(len(self._current) - self.position, 0)
        if control & DMA_READ:
            if address + length > 1 << 64 or length > rest + ZERO_LIMIT:
                return False
            for done in range(0, length, CHUNK):
                memory.write(address + done, self._take(min(CHUNK, length - done)))
        elif control & DMA_WRITE:
            if length > rest or not isinstance(self._current, bytearray) or address + length > 1 << 64:
                return False
            self._current[self.position : self.position + length] = memory.read(address, length)
            self.position += length
        else:
            self.position += min(length, rest)
        return True

    # State: what a guest can change. The items come from whoever makes the machine.

    @property
    def writable(self) -> bytes:
        """The writable items, one after another in the order of their keys."""
        return b"".join(bytes(data) for _, data in self._writable_items())

    @writable.setter
    def writable(self, value: bytes) -> None:
        at = 0
        for _, data in self._writable_items():
            data[:] = value[at : at + len(data)]
            at += len(data)

    def _writable_items(self) -> list[tuple[int, bytearray]]:
        return [(key, data) for key, data in sorted(self._items.items()) if isinstance(data, bytearray)]

    def _check_state(self, state: Mapping[str, object]) -> None:
        data, here = state["writable"], len(self.writable)
        assert isinstance(data, bytes)
        if len(data) != here:
            raise DeviceError(
                f"fw_cfg: restore: {len(data)} bytes of writable items, this machine has {here};"
                " make it with the same items first"
            )

    def _restored(self) -> None:
        self._reselect()


def _swapped(value: int, size: int) -> int:
    """A big endian register's value, from what a little endian CPU wrote."""
    return int.from_bytes((value & ((1 << (8 * size)) - 1)).to_bytes(size, "little"), "big")
