"""Writer of the "newc" cpio archives that Linux unpacks as its first file system.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. Archives can be put one
after the other in one initrd; what comes later wins.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

_MAGIC = b"070701"
_END = "TRAILER!!!"


class Archive:
    """An archive that grows in memory; directories above an entry are added as they are needed."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._seen: set[str] = set()

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory, once however often it is asked for."""
        name = _name(path)
        if name and name not in self._seen:
            self._parents(name)
            self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file. ValueError if the archive has that path already."""
        self._new(path, stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link. ValueError if the archive has that path already."""
        self._new(path, stat.S_IFLNK | 0o777, target.encode())

    def tree(self, root: Path, at: str = "/", only: Iterable[Path] | None = None) -> None:
        """Add what lies under ``root`` (or ``only`` those of its files) below the path ``at``."""
        for path in sorted(root.rglob("*") if only is None else only):
            name = str(PurePosixPath(at) / path.relative_to(root))
            if path.is_symlink():
                self.link(name, str(path.readlink()))
            elif path.is_dir():
                self.directory(name)
            elif path.is_file():
                self.file(name, path.read_bytes(), 0o755 if path.stat().st_mode & 0o100 else 0o644)

    def finish(self) -> bytes:
        """The archive's bytes, padded to 512 so that another can follow. Nothing can be added afterwards."""
        self._entry(_END, 0, b"")
        self._pad(512)
        return self._out.getvalue()

    def _new(self, path: str, mode: int, data: bytes) -> None:
        name = _name(path)
        if name in self._seen:
            raise ValueError(f"/{name} is in the archive already")
        self._parents(name)
        self._entry(name, mode, data)

    def _parents(self, name: str) -> None:
        for parent in reversed(PurePosixPath(name).parents):
            self.directory(str(parent))

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._seen.add(name)
        inode = len(self._seen)  # the same number twice would be read as a hard link
        links = 2 if stat.S_ISDIR(mode) else 1
        encoded = name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, size, device of the file, of the node, length of the name,
        # checksum
        fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        self._out.write(_MAGIC + b"".join(b"%08X" % field for field in fields) + encoded)
        self._pad(4)
        self._out.write(data)
        self._pad(4)

    def _pad(self, to: int) -> None:
        self._out.write(bytes(-self._out.tell() % to))


def _name(path: str) -> str:
    return str(PurePosixPath("/") / path).lstrip("/")
