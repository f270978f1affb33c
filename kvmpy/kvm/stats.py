"""The kernel's own counters of a VM or a vCPU: exits, page faults, halts (KVM_GET_STATS_FD).

Source: KVM API document, "KVM_GET_STATS_FD".
"""

from __future__ import annotations

import os
import struct

from kvmpy.abi import constants as c
from kvmpy.kvm.descriptor import Descriptor

_HEADER = struct.Struct("=6I")
_DESCRIPTION = struct.Struct("=IhHII")
_TYPES = {
    c.KVM_STATS_TYPE_CUMULATIVE: "cumulative",
    c.KVM_STATS_TYPE_INSTANT: "instant",
    c.KVM_STATS_TYPE_PEAK: "peak",
    c.KVM_STATS_TYPE_LINEAR_HIST: "linear histogram",
    c.KVM_STATS_TYPE_LOG_HIST: "logarithmic histogram",
}
_UNITS = {
    c.KVM_STATS_UNIT_NONE: "",
    c.KVM_STATS_UNIT_BYTES: "bytes",
    c.KVM_STATS_UNIT_SECONDS: "seconds",
    c.KVM_STATS_UNIT_CYCLES: "cycles",
    c.KVM_STATS_UNIT_BOOLEAN: "boolean",
}


class Counter:
    """One counter: ``name``, ``kind`` ("cumulative", "peak", …), ``unit`` ("seconds"; "": a plain count), ``scale``
    (one step is that many units, 1e-09 for nanoseconds), ``size`` (values; above 1 for a histogram),
    ``bucket_size`` (of a linear histogram) and its ``offset`` in the data."""

    __slots__ = ("bucket_size", "kind", "name", "offset", "scale", "size", "unit")

    def __init__(
        self, name: str, flags: int, exponent: int, size: int, offset: int, bucket_size: int
    ) -> None:
        base = 2.0 if flags & c.KVM_STATS_BASE_MASK == c.KVM_STATS_BASE_POW2 else 10.0
        self.name = name
        self.kind = _TYPES.get(flags & c.KVM_STATS_TYPE_MASK, "unknown")
        self.unit = _UNITS.get(flags & c.KVM_STATS_UNIT_MASK, "unknown")
        self.scale: float = base**exponent
        self.size = size
        self.offset = offset
        self.bucket_size = bucket_size

    def __repr__(self) -> str:
        return f"<Counter {self.name} ({self.kind}, {self.size} x {self.scale:g} {self.unit})>"


class Stats(Descriptor):
    """The counters of one VM or vCPU: ``counters`` describes them, :meth:`read` gives their values now.

    ``id`` is the kernel's own name of the object, with the process id in it.
    """

    __slots__ = ("_length", "_start", "counters", "id")

    def __init__(self, fd: int, owner: str) -> None:
        super().__init__(fd, f"counters of {owner}")
        try:
            self._describe()
        except BaseException:
            self.close()
            raise

    def _describe(self) -> None:
        _flags, name_size, count, id_at, described_at, self._start = _HEADER.unpack(
            self._read(_HEADER.size, 0)
        )
        self.id = _text(self._read(name_size, id_at))
        step = _DESCRIPTION.size + name_size
        block = self._read(step * count, described_at)
        self.counters = [_counter(block[at : at + step]) for at in range(0, len(block), step)]
        self._length = max((counter.offset + 8 * counter.size for counter in self.counters), default=0)

    def read(self) -> dict[str, int | list[int]]:
        """The values by name: a number, or for a histogram the list of its buckets. Raises OSError."""
        data = self._read(self._length, self._start)
        values: dict[str, int | list[int]] = {}
        for counter in self.counters:
            found = struct.unpack_from(f"={counter.size}Q", data, counter.offset)
            values[counter.name] = found[0] if counter.size == 1 else list(found)
        return values

    def _read(self, length: int, offset: int) -> bytes:
        return os.pread(self.fd, length, offset)


def _counter(block: bytes) -> Counter:
    return Counter(_text(block[_DESCRIPTION.size :]), *_DESCRIPTION.unpack_from(block))


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("ascii", "replace")
