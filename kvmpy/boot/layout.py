"""Who sits where in guest RAM: checks that nothing overlaps or falls out, and finds free places."""

from __future__ import annotations

from kvmpy.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = 4096
FOUR_GIB = 1 << 32

# Never offered by find(): the real-mode vectors and BIOS data (SeaBIOS and boot code write there), and what
# a PC has between 640 KiB (less the extended BIOS data) and 1 MiB: video memory, option ROMs, the BIOS.
LEGACY = ((0, PAGE), (0x9FC00, 0x100000 - 0x9FC00))


class Layout:
    """The RAM of a machine, and what has been put into it so far.

    ``ram`` is a list of (guest physical address, length); ``name`` is what messages call the image.
    """

    def __init__(self, ram: Sequence[tuple[int, int]], name: str) -> None:
        self.name = name
        self.ram = _merged(ram)
        self._taken: list[tuple[int, int, str]] = []

    @property
    def taken(self) -> list[tuple[int, int]]:
        """(address, length) of all that has been placed."""
        return [(base, size) for base, size, _ in self._taken]

    @property
    def low(self) -> int:
        """Bytes of RAM from address 0 on, without a hole."""
        return next((size for base, size in self.ram if base == 0), 0)

    @property
    def end(self) -> int:
        """First address behind all RAM."""
        return max((base + size for base, size in self.ram), default=0)

    def holds(self, start: int, length: int = 1) -> bool:
        """True if the bytes ``start`` … ``start + length - 1`` are all RAM."""
        return any(base <= start and start + length <= base + size for base, size in self.ram)

    def free(self, start: int, length: int) -> bool:
        """True if these bytes are RAM and nobody's yet."""
        return self.holds(start, length) and not any(
            b < start + length and start < b + s for b, s, _ in self._taken
        )

    def claim(self, start: int, length: int, what: str) -> None:
        """Take a place for ``what``. ImageError if it isn't RAM or somebody else's already."""
        if length == 0:
            return
        if not self.holds(start, length):
            raise ImageError(
                f"{self.name}: {what} at {span(start, length)} lies outside memory ({self.describe()})"
            )
        for base, size, owner in self._taken:
            if start < base + size and base < start + length:
                raise ImageError(
                    f"{self.name}: {what} at {span(start, length)} overlaps {owner} at {span(base, size)}"
                )
        self._taken.append((start, length, what))

    def find(self, length: int, what: str, *, low: int = 0, high: int = FOUR_GIB, align: int = PAGE) -> int:
        """Take the lowest free place of ``length`` bytes in [low, high) and return its address.

        ImageError if there is none. The first page and the PC's area from 639 KiB to 1 MiB are left alone.
        """
        # Only the ends of what is there can be the lowest address of a gap.
        busy = [(base, base + size) for base, size, _ in self._taken]
        busy += [(base, base + size) for base, size in LEGACY]
        starts = [low, *(base for base, _ in self.ram), *(end for _, end in busy)]
        for start in sorted({-(-max(low, start) // align) * align for start in starts}):
            end = start + length
            if end > high:
                break
            if self.holds(start, length) and not any(start < b and a < end for a, b in busy):
                self._taken.append((start, length, what))
                return start
        raise ImageError(
            f"{self.name}: no free place of {length} bytes for {what} from {low:#x} to {high - 1:#x} "
            f"({self.describe()}): give the machine more memory"
        )

    def describe(self) -> str:
        """The RAM, for a message."""
        return "RAM: " + ", ".join(span(base, size) for base, size in self.ram)


def span(start: int, length: int) -> str:
    """A range of addresses, last byte included, as messages show it."""
    return f"{start:#x}-{start + length - 1:#x}"


def _merged(ram: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that touch become one, so that a segment may lie across two memory slots."""
    merged: list[tuple[int, int]] = []
    for base, size in sorted(ram):
        if merged and merged[-1][0] + merged[-1][1] == base:
            base, size = merged[-1][0], merged[-1][1] + size
            merged.pop()
        merged.append((base, size))
    return merged
