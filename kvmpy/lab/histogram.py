"""Distributions in the layout of HdrHistogram: three significant digits, from 1 to 2**40 - 1.

They are filled in C (native/histogram.c). Here are the numbers that come out of one, and the compressed text form (V2)
that every HdrHistogram library reads. Source: HdrHistogram's documentation of its bucket structure and encoding.
"""

from __future__ import annotations

from kvmpy._native import ffi, lib
from kvmpy.errors import KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

HALF = 1024
LENGTH = 31 * HALF
HIGHEST = (1 << 40) - 1
DIGITS = 3
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
COOKIE, COMPRESSED_COOKIE = 0x1C849313, 0x1C849314  # V2, with eight-byte words


class HistogramError(KvmpyError):
    """Text that isn't a histogram of this layout."""


def lowest(index: int) -> int:
    """The smallest value that a counter stands for."""
    bucket = max(index // HALF - 1, 0)
    return (index - bucket * HALF) << bucket


def highest(index: int) -> int:
    """The largest value that a counter stands for."""
    bucket = max(index // HALF - 1, 0)
    return ((index - bucket * HALF + 1) << bucket) - 1


class Histogram:
    """``counts``: counter index to how many values; ``total``, ``sum``, ``min``, ``max`` of the values themselves.

    ``min`` and ``max`` are 0 while there are no values.
    """

    __slots__ = ("counts", "max", "min", "sum", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = self.sum = self.min = self.max = 0

    def __repr__(self) -> str:
        return f"<Histogram of {self.total} values, {self.min} to {self.max}>"

    def add_native(self, native: Any) -> None:
        """Adds what a ``struct kvmpy_histogram *`` holds."""
        if not native.total:
            return
        other = Histogram()
        indices, counts = ffi.new("uint32_t[]", LENGTH), ffi.new("uint64_t[]", LENGTH)
        found = lib.kvmpy_histogram_pairs(native, indices, counts, LENGTH)
        other.counts = {indices[at]: counts[at] for at in range(found)}
        other.total, other.sum = native.total, native.sum
        other.min, other.max = native.min, native.max
        self.add(other)

    def add(self, other: Histogram) -> None:
        """Adds another's values."""
        if not other.total:
            return
        for index, count in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + count
        self.min = min(self.min, other.min) if self.total else other.min
        self.max = max(self.max, other.max)
        self.total += other.total
        self.sum += other.sum

    def record(self, value: int) -> None:
        """Adds one value; below 0 it counts as 0, above HIGHEST as that."""
        value = min(max(value, 0), HIGHEST)
        index = lib.kvmpy_histogram_index(value)
        self.counts[index] = self.counts.get(index, 0) + 1
        self.min = min(self.min, value) if self.total else value
        self.max = max(self.max, value)
        self.total += 1
        self.sum += value

    @property
    def mean(self) -> float:
        """The arithmetic mean; 0 of nothing."""
        return self.sum / self.total if self.total else 0.0

    def percentile(self, percent: float) -> int:
        """The value that ``percent`` (0 to 100) of the values don't exceed, as HdrHistogram tells it: the highest that
        its counter stands for, but no more than the maximum. 0 of nothing."""
        wanted = max(int(percent / 100.0 * self.total + 0.5), 1)
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen >= wanted:
                return min(highest(index), self.max)
        return self.max

    def summary(self) -> dict[str, float]:
        """min, p50 … p99.99, max, mean."""
        found: dict[str, float] = {"min": self.min}
        found.update({f"p{percent:g}": self.percentile(percent) for percent in PERCENTILES})
        found.update(max=self.max, mean=round(self.mean, 1))
        return found

    def points(self) -> list[tuple[int, float]]:
        """The cumulative distribution: (value, share of values up to it)."""
        seen, found = 0, []
        for index in sorted(self.counts):
            seen += self.counts[index]
            found.append((highest(index), seen / self.total))
        return found

    # The text form

    def encode(self) -> str:
        """Base64 of the compressed V2 encoding, as in HdrHistogram's logs ("HISTF…")."""
        import base64
        import struct
        import zlib

        payload = b"".join(_zigzag(value) for value in self._words())
        head = struct.pack(">iiiiqqd", COOKIE, len(payload), 0, DIGITS, 1, HIGHEST, 1.0)
        packed = zlib.compress(head + payload, 6)
        return base64.b64encode(struct.pack(">ii", COMPRESSED_COOKIE, len(packed)) + packed).decode()

    def _words(self) -> Iterator[int]:
        """Counters in order; a run of zeros is its negative length."""
        at = 0
        for index in sorted(self.counts):
            if index > at:
                yield at - index
            yield self.counts[index]
            at = index + 1

    @classmethod
    def decode(cls, text: str) -> Histogram:
        """The inverse, but for ``sum``, ``min`` and ``max``, which then are those of the counters.

        Raises HistogramError.
        """
        import base64
        import struct
        import zlib

        try:
            data = base64.b64decode(text, validate=True)
            cookie, length = struct.unpack_from(">ii", data)
            data = zlib.decompress(data[8 : 8 + length])
            inner, _, _, digits, unit, _, _ = struct.unpack_from(">iiiiqqd", data)
        except (ValueError, struct.error, zlib.error) as error:
            raise HistogramError(f"not a compressed histogram: {error}") from None
        if (cookie, inner, digits, unit) != (COMPRESSED_COOKIE, COOKIE, DIGITS, 1):
            raise HistogramError(
                f"a histogram of {digits} digits and unit {unit} (3 and 1 are known), or not V2"
            )
        return cls._of_words(_unzigzag(data[40:]))

    @classmethod
    def _of_words(cls, words: Iterable[int]) -> Histogram:
        self, at = cls(), 0
        for word in words:
            if word < 0:
                at -= word
                continue
            if at >= LENGTH:
                raise HistogramError(f"a histogram with more than {LENGTH} counters")
            if word:
                self.counts[at] = word
                self.total += word
                self.sum += word * ((lowest(at) + highest(at)) // 2)
            at += 1
        if self.counts:
            self.min, self.max = lowest(min(self.counts)), highest(max(self.counts))
        return self


def _zigzag(value: int) -> bytes:
    """ZigZag LEB128 with at most nine bytes: small numbers of either sign are short."""
    value = value << 1 ^ value >> 63
    found = bytearray()
    while len(found) < 8 and value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value & 0xFF)
    return bytes(found)


def _unzigzag(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value = shift = 0
        while True:
            if at >= len(data):
                raise HistogramError("a histogram that ends in the middle of a number")
            byte = data[at]
            at += 1
            if shift == 56:
                value |= byte << shift
                break
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        yield value >> 1 ^ -(value & 1)
