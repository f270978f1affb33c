"""The rings: what the C loop writes down about accesses, read in batches."""

from __future__ import annotations

from kvmpy._native import ffi, lib
from kvmpy.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

RECORD_SIZE: int = ffi.sizeof("struct kvmpy_record")
NOT_AN_ACCESS = 255
LIMIT = 1 << 26
"""Most records a ring can have: 2.5 GiB of them."""

DTYPE = [
    ("tsc", "<u8"), ("address", "<u8"), ("value", "<u8"), ("count", "<u4"), ("range", "<u2"), ("vcpu", "<u2"),
    ("space", "u1"), ("size", "u1"), ("is_write", "u1"), ("reserved", "V5"),
]  # fmt: skip
"""``numpy.frombuffer(records, dtype=DTYPE)``."""

MODES = {"counted": 0, "lossless": 1, "last": 2}
"""A full ring: counts what it drops, stops the vCPU, or forgets the oldest."""


class Record:
    """One logged access, or one exit that is none (``space`` is NOT_AN_ACCESS; ``address`` is then the reason)."""

    __slots__ = ("address", "is_write", "range", "size", "space", "tsc", "value", "vcpu")

    def __init__(self, native: Any) -> None:
        self.tsc: int = native.tsc
        self.address: int = native.address
        self.value: int = native.value
        self.range: int = native.range
        self.vcpu: int = native.vcpu
        self.space: int = native.space
        self.size: int = native.size
        self.is_write: bool = bool(native.is_write)


class Ring:
    """A vCPU's log. One thread drains it, at any time.

    ``capacity`` records of 40 bytes, rounded up to a power of two; ``mode`` one of MODES. Raises UsageError.
    """

    def __init__(self, capacity: int, mode: str = "counted") -> None:
        if not isinstance(capacity, int) or not 1 <= capacity <= LIMIT:
            raise UsageError(f"a ring of {capacity!r} records: 1 to {LIMIT} are possible")
        if mode not in MODES:
            raise UsageError(f"ring mode {mode!r}: one of {', '.join(MODES)}")
        self.mode = mode
        self.capacity = 1 << (capacity - 1).bit_length()
        self.native: Any = lib.kvmpy_ring_new(self.capacity, MODES[mode])
        if self.native == ffi.NULL:
            raise UsageError(
                f"no memory for a ring of {self.capacity} records, {self.capacity * RECORD_SIZE} bytes"
            )

    def __len__(self) -> int:
        """Records waiting to be drained."""
        native = self._open()
        return min(int(native.head - native.tail), self.capacity)

    @property
    def dropped(self) -> int:
        """Records there was no room for, or (mode "last") that were forgotten."""
        native = self._open()
        return int(native.dropped) + max(int(native.head - native.tail) - self.capacity, 0)

    def _open(self) -> Any:
        if self.native == ffi.NULL:
            raise UsageError("the ring is closed: drain it before its machine is")
        return self.native

    def drain(self, most: int | None = None) -> memoryview:
        """Takes out up to ``most`` records, oldest first, as bytes for ``numpy.frombuffer(…, dtype=DTYPE)``."""
        there = len(self)
        wanted = there if most is None else min(most, there)
        records = ffi.new("struct kvmpy_record[]", max(wanted, 1))
        got = lib.kvmpy_ring_drain(self.native, records, wanted)
        return memoryview(ffi.buffer(records, got * RECORD_SIZE))

    def records(self) -> Iterator[Record]:
        """Drains the ring as objects: comfortable, and slower than :meth:`drain`."""
        data = self.drain()
        array = ffi.from_buffer("struct kvmpy_record[]", data)
        for at in range(len(data) // RECORD_SIZE):
            yield Record(array[at])

    def close(self) -> None:
        """Gives back the memory; no vCPU may log to it any more."""
        if self.native != ffi.NULL:
            lib.kvmpy_ring_free(self.native)
            self.native = ffi.NULL
