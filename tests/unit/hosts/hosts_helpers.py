"""The smallest files that still are a kernel, a bzImage, a module; and a reader of cpio archives."""

from __future__ import annotations

import lzma
import stat
import struct
from collections.abc import Sequence
from typing import NamedTuple

HEADER, SEGMENT, SECTION = 64, 56, 64


def elf(
    segments: Sequence[tuple[int, int, bytes]] = (), sections: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """An ELF64 file with segments (type, physical address, contents) and sections (name, contents)."""
    names = b"\0" + b"".join(name + b"\0" for name, _ in sections) + b".shstrtab\0"
    blobs = [data for _, _, data in segments] + [data for _, data in sections] + [names]
    places, data = [], bytearray(HEADER + SEGMENT * len(segments))
    for blob in blobs:
        places.append(len(data))
        data += blob + bytes(-len(blob) % 8)
    for number, (kind, physical, blob) in enumerate(segments):
        at = HEADER + SEGMENT * number
        struct.pack_into("<IIQQQQQQ", data, at, kind, 5, places[number], 0, physical, len(blob), len(blob), 8)
    table, name_at = len(data), 1
    data += bytes(SECTION)
    for (name, blob), place in zip([*sections, (b".shstrtab", names)], places[len(segments) :], strict=True):
        data += struct.pack("<IIQQQQIIQQ", name_at, 1, 0, 0, place, len(blob), 0, 0, 1, 0)
        name_at += len(name) + 1
    data[:16] = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    count = len(sections) + 2
    struct.pack_into("<HHIQQQI", data, 16, 2, 62, 1, 0, HEADER if segments else 0, table, 0)
    struct.pack_into("<HHHHHH", data, 52, HEADER, SEGMENT, len(segments), SECTION, count, count - 1)
    return bytes(data)


def note(owner: bytes, kind: int, data: bytes) -> bytes:
    name = owner + b"\0"
    padded = name + bytes(-len(name) % 4) + data + bytes(-len(data) % 4)
    return struct.pack("<III", len(name), len(data), kind) + padded


def vmlinux(entry: int = 0x1000_0000, text: bytes = b"text", base: int = 0x100_0000) -> bytes:
    """A kernel with two loadable segments, a gap between them, and a PVH entry among other notes."""
    notes = note(b"GNU", 3, b"abc") + note(b"Xen", 5, b"\1") + note(b"Xen", 18, struct.pack("<Q", entry))
    return elf([(1, base, text), (4, 0, notes), (1, base + 0x2000, b"data"), (1, base + 0x4000, b"")])


def bzimage(payload: bytes, setup_sectors: int = 3) -> bytes:
    """A bzImage with this payload; what follows it in the file isn't part of it."""
    head = bytearray((setup_sectors + 1) * 512)
    head[0x1F1] = setup_sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 100, len(payload))
    return bytes(head) + bytes(100) + payload + b"something else"


def xz(data: bytes) -> bytes:
    """As the kernel's build packs it: the size unpacked follows the stream."""
    return lzma.compress(data) + struct.pack("<I", len(data))


def module(depends: str | None = "", signature: bytes | None = None) -> bytes:
    """A kernel module, signed if there is a signature."""
    info = (
        b"license=GPL\0" + (b"" if depends is None else b"depends=" + depends.encode() + b"\0") + b"name=x\0"
    )
    data = elf(sections=[(b".text", b"\xc3"), (b".modinfo", info)])
    if signature is not None:
        data += signature + struct.pack(">BBBBBxxxI", 0, 0, 2, 0, 0, len(signature))
        data += b"~Module signature appended~\n"
    return data


class Entry(NamedTuple):
    mode: int
    inode: int
    data: bytes

    @property
    def kind(self) -> str:
        kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
        return kinds[stat.S_IFMT(self.mode)]


def read_cpio(archive: bytes) -> dict[str, Entry]:
    """The entries of one or more "newc" archives, as Linux reads them; later ones win."""
    found: dict[str, Entry] = {}
    at = 0
    while at < len(archive):
        if archive[at] == 0:
            at += 4
            continue
        assert archive[at : at + 6] == b"070701", at
        assert at % 4 == 0
        fields = [int(archive[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        inode, mode, size, name_size = fields[0], fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size]
        assert name[-1:] == b"\0"
        data_at = (at + 110 + name_size + 3) & ~3
        if name != b"TRAILER!!!\0":
            found[name[:-1].decode()] = Entry(mode, inode, archive[data_at : data_at + size])
        at = (data_at + size + 3) & ~3
    return found
