"""Which guest memory the host side may have written, for those who keep something derived from it.

The translate engine keeps translated code and a snapshot keeps a dirty map; neither sees what Python writes.
"""

from __future__ import annotations

from threading import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MANY = 4096


class Watch:
    """The ranges that host code wrote, or could have written, since the last :meth:`take`.

    Made by :meth:`GuestMemory.watch`. A writable view counts as written for as long as it lives, anything
    sliced or built from it (a numpy array) included. Without a watch memory keeps no record.
    """

    __slots__ = ("_lock", "_stop", "_views", "_written")

    def __init__(self, before: Iterable[tuple[int, int]], stop: Callable[[Watch], None]) -> None:
        self._lock = Lock()
        self._stop = stop
        self._written: list[tuple[int, int]] = []
        # Nobody knows whether views from before the watch still live, so these are taken to live for ever.
        self._views: list[tuple[int, int, Callable[[], object]]] = [
            (gpa, n, lambda: True) for gpa, n in before
        ]

    def wrote(self, gpa: int, length: int) -> None:
        """Host code wrote ``length`` bytes at ``gpa``."""
        with self._lock:
            self._written.append((gpa, length))
            if len(self._written) > _MANY:
                self._written = _coarse(self._written)

    def viewed(self, gpa: int, length: int, alive: Callable[[], object]) -> None:
        """A writable view was handed out; ``alive()`` is None once it is gone."""
        with self._lock:
            self._views.append((gpa, length, alive))
            if len(self._views) > _MANY:
                self._bury()

    def take(self) -> list[tuple[int, int]]:
        """(guest physical address, length) of each range since the last call: sorted, no two touch."""
        if not self._written and not self._views:
            return []
        with self._lock:
            found, self._written = self._written, []
            found.extend((gpa, length) for gpa, length, _ in self._views)
            self._views = [view for view in self._views if view[2]() is not None]
        return merge(found)

    def _bury(self) -> None:
        """Dead views can't be written any more: one range each is all that is left of them to tell."""
        living = []
        for view in self._views:
            if view[2]() is None:
                self._written.append(view[:2])
            else:
                living.append(view)
        self._views = living
        self._written = _coarse(self._written)

    def close(self) -> None:
        """Stop watching. Twice is fine."""
        self._stop(self)


def merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(address, length) ranges, sorted, with those that touch or overlap made one."""
    merged: list[tuple[int, int]] = []
    end = -1
    for gpa, length in sorted(ranges):
        if merged and gpa <= end:
            end = max(end, gpa + length)
            merged[-1] = (merged[-1][0], end - merged[-1][0])
        else:
            merged.append((gpa, length))
            end = gpa + length
    return merged


def _coarse(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most half of ``_MANY`` ranges that cover ``ranges``, and more where it can't be helped."""
    ranges = merge(ranges)
    size = 4096
    while len(ranges) > _MANY // 2:
        ranges = merge(
            (gpa - gpa % size, (gpa % size + length + size - 1) // size * size) for gpa, length in ranges
        )
        size *= 2
    return ranges
