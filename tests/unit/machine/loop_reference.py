"""What becomes of an access, written a second time: plain Python, byte by byte, with no thought of speed.

``Model`` does to a list of accesses what the run loop in C and the dispatch loop in Python do together; ``World`` is
what both have in common: the devices' answers, and what was asked of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

PIO, MMIO = 0, 1
LAST_PORT = 0xFFFF
ALL_ONES = (1 << 64) - 1
HANDLED, PASS = 0, 1


class Boom(Exception):
    """A handler's own exception."""


@dataclass(frozen=True)
class Spec:
    """A range: ``kind`` is drop, registers, fifo or native (rules), or python; ``device`` stands behind a rule."""

    name: str
    space: int
    first: int
    length: int
    kind: str
    place: str  # python, c, ring
    device: str = ""  # "", "rw", "ro", "wo", "whole"
    value: int = ALL_ONES
    masks: dict[str, bytes] = field(default_factory=dict, hash=False)
    memory: bytes = b""
    capacity: int = 8
    waiting: bytes = b""  # in the guest's half of a fifo

    @property
    def last(self) -> int:
        return self.first + self.length - 1


@dataclass(frozen=True)
class Access:
    """One exit: ``count`` elements of ``size`` bytes; ``data`` is what a write writes, None for a read."""

    space: int
    address: int
    size: int
    count: int
    data: bytes | None


@dataclass(frozen=True)
class Plan:
    """What happens at the calls of these numbers."""

    fails: dict[int, str] = field(default_factory=dict, hash=False)  # raise, none, negative, large
    skips: frozenset[int] = frozenset()  # those of them that aren't tried again
    moves: dict[int, tuple[int | None, str]] = field(default_factory=dict, hash=False)
    """Number of the range (None: the one that is called) and its new place."""


def cut(value: int, size: int) -> int:
    return value & ((1 << (8 * size)) - 1)


class World:
    """Answers depend on who is asked and on how many calls came before, so a call too many changes all that follow."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.calls: list[tuple[object, ...]] = []
        self.move: Callable[[int | str, str], None] = lambda which, place: None

    @property
    def skipped(self) -> bool:
        return len(self.calls) - 1 in self.plan.skips

    def _called(self, kind: str, name: str, *what: object) -> str:
        if len(self.calls) in self.plan.moves:
            number, place = self.plan.moves[len(self.calls)]
            self.move(name if number is None else number, place)
        self.calls.append((kind, name, *what))
        failure = self.plan.fails.get(len(self.calls) - 1, "")
        if failure == "raise":
            raise Boom(len(self.calls))
        return failure

    def _number(self, name: str, size: int) -> int:
        return cut(
            zlib.crc32(name.encode()) * 0x9E3779B97F4A7C15 + len(self.calls) * 0x0101010101010107, size
        )

    def read(self, name: str, offset: int, size: int) -> int:
        failure = self._called("read", name, offset, size)
        bad = {"none": None, "negative": -1, "large": 1 << (8 * size)}
        return bad[failure] if failure in bad else self._number(name, size)  # type: ignore[return-value]

    def write(self, name: str, offset: int, value: int, size: int) -> None:
        self._called("write", name, offset, value, size)

    def read_string(self, name: str, offset: int, size: int, count: int) -> bytes:
        failure = self._called("read_string", name, offset, size, count)
        bad = {"none": None, "negative": b"", "large": bytes(size * count + 1)}
        if failure in bad:
            return bad[failure]  # type: ignore[return-value]
        return b"".join(
            cut(self._number(name, size) + n, size).to_bytes(size, "little") for n in range(count)
        )

    def write_string(self, name: str, offset: int, data: bytes, size: int) -> None:
        self._called("write_string", name, offset, data, size)


def native_rule(offset: int, value: int, size: int, is_write: bool) -> tuple[int, int]:
    """What the native handlers of these tests do: (verdict, value)."""
    if (offset + size) % 3 == 0:
        return PASS, value
    return HANDLED, value if is_write else cut(0xA5A5A5A5A5A5A5A5 + offset, size)


def can_move(spec: Spec, place: str) -> bool:
    """Whether a range can have that place."""
    return (place != "python" or bool(spec.device)) and (place != "c" or spec.kind != "python")


class BadAnswer(Exception):
    """A handler gave what a read can't give."""


class _Range:
    """A range of the model with what changes."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.place = spec.place
        self.memory = bytearray(spec.memory)
        self.waiting = bytearray(spec.waiting)
        self.written = bytearray()
        self.dropped = 0
        self.count = 0


class Model:
    """The reference. ``records`` is what the rings hold: (address, value, size, is write, name of the range)."""

    def __init__(self, specs: list[Spec], world: World, trace: bool) -> None:
        self.world = world
        self.trace = trace
        self.ranges = {spec.name: _Range(spec) for spec in specs}
        self.unowned = 0
        self._logs = False
        world.move = self._move
        self.records: list[tuple[int, int, int, bool, str | None]] = []

    def _move(self, which: int | str, place: str) -> None:
        names = list(self.ranges)
        range_ = self.ranges[which if isinstance(which, str) else names[which % len(names)]]
        if can_move(range_.spec, place):
            range_.place = place

    def owner(self, space: int, address: int) -> _Range | None:
        if space == PIO and address > LAST_PORT:
            return None
        for range_ in self.ranges.values():
            spec = range_.spec
            if spec.space == space and spec.first <= address <= spec.last:
                return range_
        return None

    def run(self, access: Access) -> bytes:
        """All of an access; the bytes the guest has got, or has written."""
        data = bytearray(access.data or bytes(access.size * access.count))
        is_write = access.data is not None
        done = 0
        while done < access.count:
            at = slice(done * access.size, (done + 1) * access.size)
            if self._divided(access):
                for offset in range(at.start, at.stop):
                    address = access.address + offset - at.start
                    data[offset : offset + 1] = self._one(
                        access.space, address, 1, data[offset : offset + 1], is_write
                    )
                done += 1
                continue
            range_ = self.owner(access.space, access.address)
            rest = access.count - done
            if range_ is not None and rest > 1 and self._goes_whole(range_, access, is_write):
                rest_of = slice(at.start, access.count * access.size)
                data[rest_of] = self._string(range_, access, bytes(data[rest_of]), rest, is_write)
                done += rest
                continue
            data[at] = self._one(access.space, access.address, access.size, data[at], is_write)
            done += 1
        return bytes(data)

    def _divided(self, access: Access) -> bool:
        if access.size not in (1, 2, 4, 8):
            return True
        owners = {id(self.owner(access.space, access.address + n)) for n in range(access.size)}
        return len(owners) > 1

    def _to_python(self, range_: _Range, offset: int, size: int, is_write: bool) -> bool:
        spec = range_.spec
        if range_.place == "python":
            return True
        if spec.kind == "registers":
            bit = 2 if is_write else 1
            return any(byte & bit for byte in spec.masks["to_python"][offset : offset + size])
        if spec.kind == "native":
            return native_rule(offset, 0, size, is_write)[0] == PASS
        return False

    def _goes_whole(self, range_: _Range, access: Access, is_write: bool) -> bool:
        """A native handler passes on each element by itself."""
        if range_.spec.device != "whole" or (range_.place != "python" and range_.spec.kind == "native"):
            return False
        return self._to_python(range_, access.address - range_.spec.first, access.size, is_write)

    def _string(self, range_: _Range, access: Access, data: bytes, count: int, is_write: bool) -> bytes:
        self._logs = self._is_logged(range_)
        size, offset = access.size, access.address - range_.spec.first
        answers = self._whole(range_.spec.name, offset, size, data, count, is_write)
        for at in range(0, len(answers), size):
            value = int.from_bytes(answers[at : at + size], "little")
            self._settle(range_, access.address, value, size, is_write)
        return answers

    def _whole(self, name: str, offset: int, size: int, data: bytes, count: int, is_write: bool) -> bytes:
        def call() -> bytes:
            if is_write:
                self.world.write_string(name, offset, data, size)
                return data
            answer = self.world.read_string(name, offset, size, count)
            if not isinstance(answer, bytes) or len(answer) != size * count:
                raise BadAnswer
            return answer

        return self._ask(call, data if is_write else b"\xff" * (size * count))

    def _ask(self, call: Callable[[], bytes], otherwise: bytes) -> bytes:
        """A handler in Python, until it succeeds or is skipped."""
        while True:
            try:
                return call()
            except (Boom, BadAnswer):
                if self.world.skipped:
                    return otherwise

    def _one(self, space: int, address: int, size: int, data: bytes, is_write: bool) -> bytes:
        range_ = self.owner(space, address)
        value = int.from_bytes(data, "little") if is_write else 0
        self._logs = self._is_logged(range_)
        if range_ is None:
            answer = value if is_write else cut(ALL_ONES, size)
        elif self._to_python(range_, address - range_.spec.first, size, is_write):
            answer = self._in_python(range_, address - range_.spec.first, value, size, is_write)
        else:
            answer = self._in_c(range_, address - range_.spec.first, value, size, is_write)
        self._settle(range_, address, answer, size, is_write)
        return bytes(data) if is_write else answer.to_bytes(size, "little")

    def _is_logged(self, range_: _Range | None) -> bool:
        """Decided before a handler runs, which may move the range."""
        return self.trace or (range_ is not None and range_.place == "ring")

    def _settle(self, range_: _Range | None, address: int, value: int, size: int, is_write: bool) -> None:
        if range_ is None:
            self.unowned += 1
        else:
            range_.count += 1
        if self._logs:
            self.records.append((address, value, size, is_write, range_.spec.name if range_ else None))

    def _in_python(self, range_: _Range, offset: int, value: int, size: int, is_write: bool) -> int:
        name, device = range_.spec.name, range_.spec.device
        if device in ("", "ro" if is_write else "wo"):
            return value if is_write else cut(ALL_ONES, size)

        def call() -> bytes:
            if is_write:
                self.world.write(name, offset, value, size)
                return value.to_bytes(8, "little")
            answer = self.world.read(name, offset, size)
            if answer is None or not 0 <= answer < 1 << (8 * size):
                raise BadAnswer
            return answer.to_bytes(8, "little")

        otherwise = value if is_write else cut(ALL_ONES, size)
        return int.from_bytes(self._ask(call, otherwise.to_bytes(8, "little")), "little")

    def _in_c(self, range_: _Range, offset: int, value: int, size: int, is_write: bool) -> int:
        kind = range_.spec.kind
        if kind == "python":  # in the ring without a rule
            return value if is_write else cut(ALL_ONES, size)
        if kind == "drop":
            return value if is_write else cut(range_.spec.value, size)
        if kind == "native":
            return native_rule(offset, value, size, is_write)[1]
        if kind == "fifo":
            return self._fifo(range_, value, size, is_write)
        return self._registers(range_, offset, value, size, is_write)

    @staticmethod
    def _registers(range_: _Range, offset: int, value: int, size: int, is_write: bool) -> int:
        masks, answer = range_.spec.masks, 0
        for n in range(size):
            at = offset + n
            old, byte = range_.memory[at], value >> (8 * n) & 0xFF
            if is_write:
                clear = masks["clear_write"][at] & byte
                writable = masks["writable"][at]
                range_.memory[at] = ((old & ~writable) | (byte & writable)) & ~clear
            else:
                answer |= (old & masks["readable"][at]) << (8 * n)
                range_.memory[at] = old & ~masks["clear_read"][at]
        return value if is_write else answer

    @staticmethod
    def _fifo(range_: _Range, value: int, size: int, is_write: bool) -> int:
        if is_write:
            data = value.to_bytes(size, "little")
            room = range_.spec.capacity - len(range_.written)
            range_.written += data[:room]
            range_.dropped += len(data[room:])
            return value
        there = bytes(range_.waiting[:size])
        del range_.waiting[:size]
        empty = cut(range_.spec.value, size).to_bytes(size, "little")
        return int.from_bytes(there + empty[len(there) :], "little")
