"""How C answers an access by itself: Python's side of native/rules.c.

A rule is made once and may serve several ranges. It owns the memory the C code works on, so it must outlive every
table it stands in; the bus sees to that.
"""

from __future__ import annotations

from kvmpy._native import ffi, lib
from kvmpy.errors import BusError
from kvmpy.machine.pinned import pinned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ALL_ONES = (1 << 64) - 1
FIFO_LIMIT = 1 << 30


def own_lines(kind: str, size: int) -> Any:
    """``size`` bytes of zeroed C memory as a ``kind``, freed with the result. It shares no cache line with anything
    else: vCPUs that use different rules don't wait for each other. MemoryError if there is none."""
    lines = lib.kvmpy_lines_zeroed(size)
    if lines == ffi.NULL:
        raise MemoryError(f"no memory for {size} bytes of a rule")
    return ffi.gc(ffi.cast(kind, lines), lib.kvmpy_lines_free, size)


class Rule:
    """Something the C loop can do with an access; ``native`` is its ``struct kvmpy_rule``."""

    kind = "rule"

    def __init__(self, number: int, value: int = 0) -> None:
        if not 0 <= value <= ALL_ONES:
            raise BusError(f"{self.kind}: value {value:#x} doesn't fit in 64 bits")
        self.native: Any = own_lines("struct kvmpy_rule *", ffi.sizeof("struct kvmpy_rule"))
        self.native.kind = number
        self.native.value = value

    def check(self, first: int, last: int) -> None:
        """BusError if this rule can't serve a range of that size."""

    def logging(self) -> Rule:
        """The same rule, and every access goes to the ring as well."""
        copy = _Logged(self)
        copy.native.logged = 1
        return copy


class _Logged(Rule):
    """A copy of another rule's C half; the other is kept, for the memory it owns."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule.native.kind)
        self.kind = rule.kind
        self.rule = rule
        ffi.memmove(self.native, rule.native, ffi.sizeof("struct kvmpy_rule"))


class Python(Rule):
    """No rule: every access returns to Python."""

    kind = "python"

    def __init__(self) -> None:
        super().__init__(lib.KVMPY_RULE_PYTHON)


class Drop(Rule):
    """Writes are ignored; reads give ``value``, cut to their size (all ones: what an empty bus reads as)."""

    kind = "drop"

    def __init__(self, value: int = ALL_ONES) -> None:
        super().__init__(lib.KVMPY_RULE_CONSTANT, value)


class Count(Drop):
    """Like :class:`Drop`; the reason to choose it is the range's ``count``."""

    kind = "count"


class Registers(Rule):
    """Register memory of ``length`` bytes, served in C at any width and alignment.

    Each mask is one byte per byte of memory; :mod:`kvmpy.devices.registers` makes them from a declaration.

    ``readable``     bits that a guest's read shows, the others read as 0; all by default
    ``writable``     bits that a guest's write replaces
    ``clear_write``  bits that a guest's write clears where it writes ones
    ``clear_read``   bits that a guest's read clears, after it has seen them
    ``to_python``    1: a read here has a side effect, 2: a write has one, 3: both
    """

    kind = "registers"
    MASKS = ("readable", "writable", "clear_write", "clear_read", "to_python")
    LIMIT = 1 << 24
    PAD = 8  # so that eight bytes can be loaded wherever an access begins

    def __init__(self, length: int, memory: Any = None, **masks: bytes) -> None:
        super().__init__(lib.KVMPY_RULE_REGISTERS)
        if not 0 < length <= self.LIMIT:
            raise BusError(f"{self.kind} of {length} bytes: 1 to {self.LIMIT} are possible")
        self._registers: Any = ffi.new("struct kvmpy_registers *")
        self._registers.length = length
        self._memory = own_lines("uint8_t *", length + self.PAD) if memory is None else pinned(memory)
        self._registers.memory = self._memory
        self._masks = {}
        for name in self.MASKS:
            given = masks.get(name, b"\xff" * length if name == "readable" else b"")
            mask = ffi.new("uint8_t[]", length + self.PAD)
            ffi.memmove(mask, given, min(length, len(given)))
            setattr(self._registers, name, mask)
            self._masks[name] = mask
        self.native.registers = self._registers
        self.length = length

    @property
    def memory(self) -> memoryview:
        """What the registers hold; writing to it is what the device's own hardware would do."""
        return memoryview(ffi.buffer(self._memory, self.length)).cast("B")

    def check(self, first: int, last: int) -> None:
        if last - first + 1 > self.length:
            raise BusError(
                f"{self.kind} of {self.length} bytes can't serve {first:#x}-{last:#x}, {last - first + 1} bytes"
            )


def of_device(device: Any) -> Registers:
    """The rule for a RegisterFile (kvmpy.devices.registers); it works on the device's own memory.

    Raises BusError if every access has a side effect, so that there is nothing for C to do.
    """
    if all(byte == 3 for byte in device.MASKS["to_python"]):
        raise BusError(f"{device.name}: every register has side effects in Python: C has nothing to serve")
    return Registers(device.LENGTH, device.memory, **device.MASKS)


class Latch(Registers):
    """Reads give what was last written, byte by byte; before that, bytes of ``fill``."""

    kind = "latch"

    def __init__(self, length: int, fill: int = 0) -> None:
        if not 0 <= fill <= 0xFF:
            raise BusError(f"latch: fill {fill:#x} isn't a byte, 0 to 0xff")
        super().__init__(length, writable=b"\xff" * max(min(length, self.LIMIT), 0))
        self.memory[:] = bytes([fill]) * length


class Fifo(Rule):
    """A queue of bytes each way: what the guest writes Python takes in bulk, what it reads Python has put in.

    ``capacity`` bytes each, a power of two up to 1 GiB. A full queue drops what the guest writes and counts it;
    an empty one reads as ``empty``.
    """

    kind = "fifo"

    def __init__(self, capacity: int = 65536, empty: int = ALL_ONES) -> None:
        super().__init__(lib.KVMPY_RULE_FIFO, empty)
        if not 0 < capacity <= FIFO_LIMIT or capacity & (capacity - 1):
            raise BusError(f"fifo of {capacity} bytes: the capacity is a power of two from 1 to {FIFO_LIMIT}")
        self._in = self._queue(capacity)
        self._out = self._queue(capacity)
        setattr(self.native, "in", self._in)
        self.native.out = self._out

    def _queue(self, capacity: int) -> Any:
        queue = own_lines("struct kvmpy_fifo *", ffi.sizeof("struct kvmpy_fifo") + capacity)
        queue.capacity = capacity
        queue.bytes = ffi.cast("uint8_t *", queue + 1)
        return queue

    def put(self, data: bytes) -> int:
        """Gives ``data`` to the guest; returns how many bytes found room."""
        return int(lib.kvmpy_fifo_push(self._in, ffi.from_buffer(data), len(data)))

    def take(self, most: int | None = None) -> bytes:
        """What the guest has written since the last time, up to ``most`` bytes."""
        there = int(self._out.head - self._out.tail)
        wanted = there if most is None else min(most, there)
        buffer = ffi.new("uint8_t[]", max(wanted, 1))
        return bytes(ffi.buffer(buffer, lib.kvmpy_fifo_pop(self._out, buffer, wanted)))

    @property
    def dropped(self) -> int:
        """Bytes the guest wrote while the queue was full."""
        return int(self._out.dropped)


class Native(Rule):
    """A C function of the ABI in native/kvmpy_handler.h owns the range.

    ``function`` is one of: "path/to/library.so:symbol", a cffi function pointer of type ``kvmpy_handler *``, a
    Numba ``@cfunc`` (anything with an integer ``address``), or an address. ``context`` is handed to it unchanged: an
    address or cffi pointer.

    Raises BusError: library or symbol missing, another ABI version.
    """

    kind = "native"

    def __init__(self, function: Any, context: Any = None) -> None:
        super().__init__(lib.KVMPY_RULE_NATIVE)
        self._keep = (function, context)
        self.native.handler = self._resolve(function)
        if context is not None:
            try:
                self.native.context = ffi.cast("void *", context)
            except TypeError:
                raise BusError(
                    f"native handler: context {context!r}: it is an address or a cffi pointer"
                ) from None

    def _resolve(self, function: Any) -> Any:
        if isinstance(function, str):
            return self._from_library(function)
        if not isinstance(function, (int, ffi.CData)):
            function = getattr(function, "address", None)
        wrong = isinstance(function, bool) or not function
        if wrong or (isinstance(function, int) and not 0 < function <= ALL_ONES):
            raise BusError(
                "native handler: give 'library.so:symbol', a cffi function pointer, a Numba cfunc or an address"
            )
        return ffi.cast("kvmpy_handler *", function)

    def _from_library(self, where: str) -> Any:
        path, _, symbol = where.rpartition(":")
        if not path or not symbol:
            raise BusError(f"native handler {where!r}: say 'path/to/library.so:symbol'")
        library = lib.kvmpy_library_open((path if "/" in path else f"./{path}").encode())
        if library == ffi.NULL:
            raise BusError(f"native handler {where}: {ffi.string(lib.kvmpy_library_error()).decode()}")
        abi = ffi.cast("uint32_t *", _symbol(library, "kvmpy_handler_abi", where))[0]
        if abi != lib.KVMPY_HANDLER_ABI:
            raise BusError(
                f"native handler {where}: built for ABI {abi}, this kvmpy has {lib.KVMPY_HANDLER_ABI}:"
                " compile it again with this version's kvmpy_handler.h"
            )
        return ffi.cast("kvmpy_handler *", _symbol(library, symbol, where))


def _symbol(library: Any, name: str, where: str) -> Any:
    address = lib.kvmpy_library_symbol(library, name.encode())
    if address == ffi.NULL:
        raise BusError(f"native handler {where}: the library has no symbol {name!r}")
    return address
