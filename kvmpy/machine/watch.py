"""Which guest memory the host side may have written, for those who keep something derived from it.

The translate engine keeps translated code and a snapshot keeps a dirty map; neither sees what Python writes.
"""

from __future__ import annotations

from threading import RLock
from weakref import ref

from kvmpy._native import ffi
from kvmpy.machine.pinned import pinned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Range = tuple[int, int]
    View = tuple[int, int, Callable[[], object]]

_MANY = 4096


class Views:
    """The writable views of one guest memory that are still in somebody's hands, and who wants to know."""

    __slots__ = ("_living", "_lock", "_sweep_at", "_watches")

    def __init__(self) -> None:
        # Reentrant, because a signal handler may ask for a view too.
        self._lock = RLock()
        self._living: list[View] = []
        self._sweep_at = 64
        self._watches: tuple[Watch, ...] = ()

    def hand_out(self, gpa: int, view: memoryview) -> memoryview:
        """``view`` (of memory at ``gpa``) in a form whose end, and that of all made from it, is noticed."""
        # Slices and arrays outlive the memoryview they are of, but keep the object below: it goes with them.
        below = ffi.buffer(pinned(view), len(view))
        entry = (gpa, len(view), ref(below))
        with self._lock:
            self._living.append(entry)
            if len(self._living) > self._sweep_at:
                self._living = self._still_living()
                self._sweep_at = max(64, 2 * len(self._living))
            for watch in self._watches:
                watch.viewed(entry)
        return memoryview(below)

    def watch(self) -> Watch:
        """A new watch, which knows of all views there are."""
        with self._lock:
            watch = Watch(self._still_living())
            self._watches = (*self._watches, watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Tell a watch of no more views."""
        with self._lock:
            self._watches = tuple(other for other in self._watches if other is not watch)

    def living(self) -> list[Range]:
        """The ranges that views show which still are in somebody's hands: sorted, no two touch."""
        with self._lock:
            self._living = self._still_living()
            return merge((gpa, length) for gpa, length, _ in self._living)

    def _still_living(self) -> list[View]:
        return [view for view in self._living if view[2]() is not None]


class Watch:
    """The ranges that host code wrote, or could have written, since the last :meth:`take`.

    Made by :meth:`GuestMemory.watch`, ended by :meth:`GuestMemory.unwatch`. A writable view counts as written
    for as long as it lives, anything sliced or built from it (a numpy array) included.
    """

    __slots__ = ("_lock", "_views", "_written")

    def __init__(self, views: Iterable[View]) -> None:
        self._lock = RLock()
        self._written: list[Range] = []
        self._views = list(views)

    def wrote(self, gpa: int, length: int) -> None:
        """Host code wrote ``length`` bytes at ``gpa``."""
        with self._lock:
            self._written.append((gpa, length))
            if len(self._written) > _MANY:
                self._written = _coarse(self._written)

    def viewed(self, view: View) -> None:
        """A writable view was handed out: its address, length, and what returns None once it is gone."""
        with self._lock:
            self._views.append(view)
            if len(self._views) > _MANY:
                self._bury()

    def take(self) -> list[Range]:
        """(guest physical address, length) of each range since the last call: sorted, no two touch."""
        if not self._written and not self._views:
            return []
        with self._lock:
            found, self._written = self._written, []
            found.extend((gpa, length) for gpa, length, _ in self._views)
            self._views = [view for view in self._views if view[2]() is not None]
        return merge(found)

    def _bury(self) -> None:
        """Dead views can't be written any more: their ranges are all that is left to tell of them."""
        living: list[View] = []
        for view in self._views:
            if view[2]() is None:
                self._written.append(view[:2])
            else:
                living.append(view)
        self._views = living
        self._written = _coarse(self._written)


def merge(ranges: Iterable[Range]) -> list[Range]:
    """(address, length) ranges, sorted, with those that touch or overlap made one."""
    merged: list[Range] = []
    end = -1
    for gpa, length in sorted(ranges):
        if merged and gpa <= end:
            end = max(end, gpa + length)
            merged[-1] = (merged[-1][0], end - merged[-1][0])
        else:
            merged.append((gpa, length))
            end = gpa + length
    return merged


def _coarse(ranges: list[Range]) -> list[Range]:
    """Few ranges, at most half of ``_MANY``, that cover ``ranges`` and where need be more than them."""
    ranges = merge(ranges)
    size = 4096
    while len(ranges) > _MANY // 2:
        firsts = [(gpa // size * size, gpa + length) for gpa, length in ranges]
        ranges = merge((first, -(-end // size) * size - first) for first, end in firsts)
        size *= 2
    return ranges
