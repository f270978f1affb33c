"""What guest memory is made of on the host: a mapping of anonymous memory, a memfd or a file.

A backing owns its mapping. Closing it unmaps at once, unless somebody still holds a view of it (memoryview,
numpy array): then the last view to go unmaps, so that no view ever points into nothing.

The host kernel sends SIGBUS to a process that touches a mapped file beyond its end: don't truncate a file
that is guest memory, and mind that a sparse file needs room on its disk when the guest fills it.
"""

from __future__ import annotations

import mmap
import os
import sys
from _warnings import warn  # What warnings.warn is; it needs no import and still works at interpreter exit.

from kvmpy._native import ffi
from kvmpy.errors import GuestMemoryError, UsageError
from kvmpy.machine.sizes import PAGE, check_pages, format_size
from kvmpy.owned import Owned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HUGE_PAGE = 2 << 20
HUGE_CHOICES = (None, "thp", "hugetlb")

# linux/mman.h and asm-generic/mman-common.h; Python's mmap has them only from 3.12 or not at all.
_MAP_NORESERVE = 0x4000
_MAP_HUGETLB_2M = 0x40000 | 21 << 26
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_THP = "/sys/kernel/mm/transparent_hugepage/"


class Backing(Owned):
    """``size`` bytes of host memory at host address ``address``, made by the functions of this module."""

    __slots__ = ("_view", "address", "fd", "kind", "map", "offset", "owned", "size", "writable", "zap")

    def __init__(
        self,
        kind: str,
        mapping: mmap.mmap,
        size: int,
        *,
        offset: int = 0,
        fd: int = -1,
        writable: bool = True,
        zap: int | None = None,
    ) -> None:
        self.kind = kind
        """``anonymous``, ``memfd``, ``file (private)`` or ``file (shared)``, and ``+hugetlb`` or ``+thp``."""
        self.map: mmap.mmap = mapping
        self.offset = offset
        """Where in ``map`` the memory starts; not 0 only for alignment to huge pages."""
        self.size = size
        self.address: int = int(ffi.cast("uintptr_t", ffi.from_buffer(mapping))) + offset
        self.fd = fd
        """The memfd, to be shared with another process; -1 for the other kinds and after close()."""
        self.writable = writable
        self.zap = zap
        """The madvise() that makes whole pages zero and gives them back to the host, if there is one."""
        self.owned = False
        """Whether it is in a GuestMemory, which closes it."""
        self._view: memoryview | None = memoryview(mapping)

    def __repr__(self) -> str:
        state = f"at {self.address:#x}" if self._view is not None else "closed"
        return f"<Backing {self.kind} {format_size(self.size)} {state}>"

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._view is None

    @property
    def view(self) -> memoryview:
        """All of it as one memoryview (read-only if ``writable`` is False). GuestMemoryError when closed."""
        return self.slice(0, self.size)

    def slice(self, offset: int, length: int) -> memoryview:
        """``length`` bytes from ``offset`` on, both within ``size``."""
        whole = self._view
        if whole is None:
            raise GuestMemoryError(f"guest memory backing ({self.kind}, {format_size(self.size)}) is closed")
        start = self.offset + offset
        return whole[start : start + length]

    def populate(self) -> None:
        """Have every page present and writable now, so that no access waits for the host; contents stay."""
        try:
            self.map.madvise(_MADV_POPULATE_WRITE, self.offset, self.size)
        except OSError:
            touched = self.map
            for at in range(self.offset, self.offset + self.size, PAGE):
                touched[at] = touched[at]

    def close(self) -> None:
        """Unmap, now or when the last view is gone. Twice is fine."""
        view, self._view = self._view, None
        if view is None:
            return
        fd, self.fd = self.fd, -1
        view.release()
        try:
            self.map.close()
        except BufferError:
            pass  # Somebody holds a view; the mapping ends with it.
        if fd >= 0:
            os.close(fd)


def anonymous(size: int, *, huge: str | None = None, phase: int = 0) -> Backing:
    """Private zeroed memory; the host finds pages as they are touched, so more than is free can be mapped.

    ``huge``: ``"thp"`` asks for transparent 2 MiB pages, ``"hugetlb"`` takes them from the pool set aside in
    ``/proc/sys/vm/nr_hugepages``; what isn't to be had gives a RuntimeWarning and the next best.
    ``phase`` is the guest physical address modulo 2 MiB: the engine can map a huge page as one only where
    host and guest addresses agree in that.
    UsageError for a bad size, GuestMemoryError if the host refuses.
    """
    _check(size, huge)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if huge is None:
        return Backing("anonymous", _map(-1, size, flags | _MAP_NORESERVE), size, zap=mmap.MADV_DONTNEED)
    if huge == "hugetlb":
        try:
            # With MAP_NORESERVE an empty pool would show only later, as SIGBUS.
            return Backing("anonymous+hugetlb", _hugetlb(size, flags), size)
        except OSError as error:
            _no_huge_pages(error)
    mapping = _map(-1, size + HUGE_PAGE, flags | _MAP_NORESERVE)
    start = int(ffi.cast("uintptr_t", ffi.from_buffer(mapping)))
    offset = (phase - start) % HUGE_PAGE
    kind = "anonymous+thp" if _ask_thp(mapping, "enabled", size) else "anonymous"
    return Backing(kind, mapping, size, offset=offset, zap=mmap.MADV_DONTNEED)


def memfd(size: int, *, name: str = "kvmpy", huge: str | None = None) -> Backing:
    """Shared zeroed memory behind a file descriptor (``fd``) that another mapping or process can have too.

    ``name`` shows in ``/proc/self/maps``; the rest as for :func:`anonymous`.
    """
    _check(size, huge)
    flags = mmap.MAP_SHARED
    if huge == "hugetlb":
        try:
            return _memfd(size, name, os.MFD_HUGETLB | os.MFD_HUGE_2MB, flags, "memfd+hugetlb")
        except GuestMemoryError as error:
            _no_huge_pages(error)
    backing = _memfd(size, name, 0, flags | _MAP_NORESERVE, "memfd")
    backing.zap = getattr(mmap, "MADV_REMOVE", None)
    if huge and _ask_thp(backing.map, "shmem_enabled", size):
        backing.kind = "memfd+thp"
    return backing


def file(
    path: str | os.PathLike[str] | int,
    size: int | None = None,
    *,
    offset: int = 0,
    shared: bool = False,
    readonly: bool = False,
    create: bool = False,
) -> Backing:
    """``size`` bytes (default: all) of a file from ``offset`` on; ``path`` may be an open file descriptor.

    Private: the guest starts from the file's contents and its writes stay in memory. ``shared``: they go to
    the file. ``readonly``: nobody can write, so the slot must be read-only too. ``create`` makes the file,
    or makes it longer, as far as ``size`` needs; it is sparse then.
    Raises UsageError for a bad size or offset, GuestMemoryError for a file that can't be opened or is too
    short.
    """
    what = f"guest memory file {path!r}" if isinstance(path, int) else f"guest memory file {os.fspath(path)}"
    if offset < 0 or offset % PAGE:
        raise UsageError(f"{what}: offset {offset} is not a multiple of the page size {PAGE}")
    if create and (size is None or readonly or not shared):
        raise UsageError(f"{what}: create needs a size, shared=True and not readonly")
    write = shared and not readonly
    fd = path if isinstance(path, int) else _open(path, what, write, create)
    try:
        length = _file_length(fd, what, size, offset, create)
        prot = mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE | _MAP_NORESERVE
        kind = "file (shared)" if shared else "file (private)"
        return Backing(kind, _map(fd, length, flags, prot, offset, what), length, writable=not readonly)
    finally:
        if not isinstance(path, int):
            os.close(fd)


def _check(size: int, huge: str | None) -> None:
    check_pages(size, "guest memory")
    if huge not in HUGE_CHOICES:
        raise UsageError(f"guest memory: huge pages are 'thp', 'hugetlb' or None, not {huge!r}")


def _map(
    fd: int,
    size: int,
    flags: int,
    prot: int = mmap.PROT_READ | mmap.PROT_WRITE,
    offset: int = 0,
    what: str = "guest memory",
) -> mmap.mmap:
    # Python keeps a duplicate of the descriptor for resize(); from 3.13 it can do without.
    more: dict[str, Any] = {"trackfd": False} if fd >= 0 and sys.version_info >= (3, 13) else {}
    try:
        return mmap.mmap(fd, size, flags=flags, prot=prot, offset=offset, **more)
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GuestMemoryError(f"{what}: the host can't map {format_size(size)}: {reason}") from error


def _hugetlb(size: int, flags: int) -> mmap.mmap:
    if size % HUGE_PAGE:
        raise OSError(f"{format_size(size)} is not a multiple of 2 MiB")
    return mmap.mmap(-1, size, flags=flags | _MAP_HUGETLB_2M, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _memfd(size: int, name: str, create: int, flags: int, kind: str) -> Backing:
    if create and size % HUGE_PAGE:
        raise GuestMemoryError(f"{format_size(size)} is not a multiple of 2 MiB")
    fd = -1
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | create)
        os.truncate(fd, size)
        return Backing(kind, _map(fd, size, flags), size, fd=fd)
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if isinstance(error, OSError):
            raise GuestMemoryError(
                f"guest memory: no memfd of {format_size(size)}: {error.strerror}"
            ) from error
        raise


def _open(path: str | os.PathLike[str], what: str, write: bool, create: bool) -> int:
    flags = (os.O_RDWR if write else os.O_RDONLY) | (os.O_CREAT if create else 0) | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NONBLOCK, 0o600)  # O_NONBLOCK: a FIFO must not wait for its writer.
    except (OSError, ValueError) as error:
        raise GuestMemoryError(f"{what}: {getattr(error, 'strerror', None) or error}") from error


def _file_length(fd: int, what: str, size: int | None, offset: int, create: bool) -> int:
    """How many bytes to map, after the file was made long enough for them if ``create``."""
    from stat import S_ISREG

    try:
        status = os.fstat(fd)
        if not S_ISREG(status.st_mode):
            raise GuestMemoryError(f"{what}: not a regular file")
        length = check_pages(status.st_size - offset if size is None else size, what)
        if create and status.st_size < offset + length:
            os.truncate(fd, offset + length)
        elif offset + length > status.st_size:
            raise GuestMemoryError(
                f"{what}: has {status.st_size} bytes, too short for {length} bytes at offset {offset}"
            )
    except OSError as error:
        raise GuestMemoryError(f"{what}: {error.strerror}") from error
    return length


def _ask_thp(mapping: mmap.mmap, switch: str, size: int) -> bool:
    """Ask for transparent huge pages; a RuntimeWarning and False where they can't come."""
    reason = ""
    try:
        fd = os.open(_THP + switch, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 256).decode()
        finally:
            os.close(fd)
        if "[never]" in text or "[deny]" in text:
            reason = f"{_THP}{switch} says {text[text.index('[') + 1 : text.index(']')]}"
        elif size < HUGE_PAGE:
            reason = f"{format_size(size)} is less than one of them"
        else:
            mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        reason = f"{error.filename or 'madvise'}: {error.strerror}"
    if reason:
        _warn(f"guest memory gets no transparent huge pages: {reason}")
    return not reason


def _no_huge_pages(error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    _warn(
        f"guest memory gets no hugetlb pages ({reason}; pool: /proc/sys/vm/nr_hugepages), tries transparent"
    )


def _warn(message: str) -> None:
    warn(message, RuntimeWarning, 4)
