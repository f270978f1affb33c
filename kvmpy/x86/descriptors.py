"""GDT, IDT and TSS: build them, take them apart.

SDM vol. 3 ch. 6.11, 7.2 and 7.7; APM vol. 2 ch. 4.8 and 12.2.
"""

# ruff: noqa: RUF023  (fields are declared in the order they are given, not by name)

from __future__ import annotations

from struct import Struct

from kvmpy.errors import UsageError
from kvmpy.x86 import segments
from kvmpy.x86.record import Record, fill
from kvmpy.x86.segments import Segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PORTS = 0x10000

_GATE_TYPES = {
    (16, "call"): 0x4,
    (32, "task"): 0x5,
    (16, "interrupt"): 0x6,
    (16, "trap"): 0x7,
    (32, "call"): 0xC,
    (32, "interrupt"): 0xE,
    (32, "trap"): 0xF,
    (64, "call"): 0xC,
    (64, "interrupt"): 0xE,
    (64, "trap"): 0xF,
}
_GATE_KINDS = {
    (key[0] == 64, number): key for key, number in _GATE_TYPES.items()
}  # (long mode?, type) -> (bits, kind)


class Gate(Record):
    """An entry of the IDT, or a call gate: where an interrupt, a trap or a far call goes.

    ``bits`` 16, 32 or 64 (64-bit gates take 16 bytes); ``kind`` "interrupt", "trap", "call" or "task" (32
    only, ``offset`` unused); ``ist`` 0-7, 64-bit only; ``parameters`` 0-31, 16- and 32-bit call gates only.
    """

    __slots__ = ("offset", "selector", "bits", "kind", "dpl", "present", "ist", "parameters")
    offset: int
    selector: int
    bits: int
    kind: str
    dpl: int
    present: int
    ist: int
    parameters: int

    def __init__(
        self,
        offset: int,
        selector: int,
        bits: int = 64,
        kind: str = "interrupt",
        dpl: int = 0,
        present: int = 1,
        ist: int = 0,
        parameters: int = 0,
    ) -> None:
        fill(self, "offset", offset)
        fill(self, "selector", selector)
        fill(self, "bits", bits)
        fill(self, "kind", kind)
        fill(self, "dpl", dpl)
        fill(self, "present", present)
        fill(self, "ist", ist)
        fill(self, "parameters", parameters)


def encode_gate(gate: Gate) -> bytes:
    """8 bytes for a 16- or 32-bit gate, 16 for a 64-bit one; UsageError for what the format can't hold."""
    number = _GATE_TYPES.get((gate.bits, gate.kind))
    if number is None:
        raise UsageError(f"there is no {gate.bits}-bit {gate.kind} gate")
    if not 0 <= gate.offset < 1 << gate.bits:
        raise UsageError(f"gate offset {gate.offset:#x} doesn't fit in {gate.bits} bits")
    if gate.bits == 64 and not canonical(gate.offset):
        raise UsageError(f"gate offset {gate.offset:#x} isn't canonical")
    extra, top, name = (gate.ist, 7, "ist") if gate.bits == 64 else (gate.parameters, 31, "parameters")
    if not 0 <= extra <= top or (gate.ist if gate.bits != 64 else gate.parameters):
        raise UsageError(f"a {gate.bits}-bit gate holds {name} 0-{top} only: {gate!r}")
    for field, limit in (("selector", 0xFFFF), ("dpl", 3), ("present", 1)):
        if not 0 <= getattr(gate, field) <= limit:
            raise UsageError(f"gate {field} {getattr(gate, field):#x} is outside 0-{limit:#x}")
    low = gate.offset & 0xFFFF | gate.selector << 16 | extra << 32
    low |= (number | gate.dpl << 5 | gate.present << 7) << 40 | (gate.offset >> 16 & 0xFFFF) << 48
    if gate.bits != 64:
        return low.to_bytes(8, "little")
    return (low | gate.offset >> 32 << 64).to_bytes(16, "little")


def decode_gate(descriptor: bytes) -> Gate:
    """The inverse of `encode_gate`; 16 bytes are read as a long-mode gate. UsageError if it isn't a gate."""
    if len(descriptor) not in (8, 16):
        raise UsageError(f"a gate has 8 or 16 bytes, not {len(descriptor)}")
    long = len(descriptor) == 16
    low = int.from_bytes(descriptor, "little")
    bits, kind = _GATE_KINDS.get((long, low >> 40 & 0x1F), (0, ""))
    if not bits:
        mode = "long" if long else "legacy"
        raise UsageError(f"descriptor type {low >> 40 & 0x1F:#x} isn't a gate in {mode} mode")
    offset = low & 0xFFFF | (low >> 48 & 0xFFFF) << 16
    if long:
        offset |= (low >> 64 & 0xFFFFFFFF) << 32
    return Gate(
        offset=offset,
        selector=low >> 16 & 0xFFFF,
        bits=bits,
        kind=kind,
        dpl=low >> 45 & 3,
        present=low >> 47 & 1,
        ist=low >> 32 & 7 if long else 0,
        parameters=0 if long else low >> 32 & 31,
    )


def canonical(address: int, bits: int = 48) -> bool:
    """Whether the upper bits of a 64-bit linear address repeat bit ``bits - 1``."""
    return address >> bits - 1 in (0, (1 << 65 - bits) - 1)


class Gdt:
    """A global (or local) descriptor table under construction; slot 0 is the null descriptor.

    >>> gdt = Gdt()
    >>> hex(gdt.add(segments.flat_code(0, bits=64)))
    '0x8'
    """

    def __init__(self) -> None:
        self._data = bytearray(8)

    def add(self, segment: Segment, *, wide: bool = False) -> int:
        """Append a descriptor and give its selector (RPL 0); ``wide`` for a long-mode TSS or LDT."""
        return self.add_raw(segments.encode(segment, wide=wide))

    def add_raw(self, descriptor: bytes) -> int:
        """Append an encoded descriptor or gate of 8 or 16 bytes."""
        selector = len(self._data)
        if selector + len(descriptor) > 0x10000:
            raise UsageError("a descriptor table holds 8192 descriptors at most")
        self._data += descriptor
        return selector

    def __bytes__(self) -> bytes:
        return bytes(self._data)


def read_descriptors(table: bytes, *, long: bool = False) -> dict[int, Segment | Gate]:
    """Selector to meaning for every descriptor in a GDT or LDT; null ones are left out.

    With ``long`` system descriptors and gates take two slots, as they do when EFER.LMA is set.
    """
    found: dict[int, Segment | Gate] = {}
    position = 0
    while position + 8 <= len(table):
        raw = table[position : position + 8]
        system = not raw[5] & 0x10
        size = 16 if long and system and any(raw) else 8
        raw = table[position : position + size]
        if any(raw) and len(raw) == size:
            gate = system and raw[5] & 0x7 in (4, 5, 6, 7)
            found[position] = decode_gate(raw) if gate else segments.decode(raw, position)
        position += size
    return found


def encode_idt(gates: Mapping[int, Gate], *, vectors: int = 256) -> bytes:
    """An IDT of ``vectors`` (1-256) entries, all gates of one width; the others are not present."""
    widths = {gate.bits == 64 for gate in gates.values()}
    if len(widths) > 1:
        raise UsageError("an IDT can't hold 64-bit and narrower gates at once")
    size = 16 if widths == {True} else 8
    table = bytearray(size * vectors)
    for vector, gate in gates.items():
        if not 0 <= vector < vectors:
            raise UsageError(f"interrupt vector {vector} is outside 0-{vectors - 1}")
        if gate.kind == "call":
            raise UsageError(f"interrupt vector {vector}: a call gate can't be in an IDT")
        table[vector * size : vector * size + size] = encode_gate(gate)
    return bytes(table)


def decode_idt(table: bytes, *, long: bool) -> dict[int, Gate]:
    """Vector to gate for every present entry that is a gate."""
    size = 16 if long else 8
    found: dict[int, Gate] = {}
    for vector in range(len(table) // size):
        raw = table[vector * size : vector * size + size]
        if raw[5] & 0x80 and (long, raw[5] & 0x1F) in _GATE_KINDS:
            found[vector] = decode_gate(raw)
    return found


def io_bitmap(allowed: Iterable[range]) -> bytes:
    """An I/O permission bitmap (SDM vol. 1 ch. 19.5.2) that lets ring 3 use the ports in ``allowed``.

    8192 bytes and the 0xff the processor insists on. UsageError for ports outside 0-0xffff.
    """
    denied = (1 << PORTS) - 1
    for ports in allowed:
        if len(ports) and (min(ports[0], ports[-1]) < 0 or max(ports[0], ports[-1]) >= PORTS):
            raise UsageError(f"I/O ports {ports} are outside 0-0xffff")
        if ports.step == 1:
            denied &= ~((1 << len(ports)) - 1 << ports.start)
        else:
            for port in ports:
                denied &= ~(1 << port)
    return denied.to_bytes(PORTS // 8, "little") + b"\xff"


_TSS64 = Struct("<I3QQ7QQHH")
_TSS32 = Struct("<HH" + "IHH" * 3 + "11I" + "HH" * 7 + "HH")


class Tss64(Record):
    """A 64-bit TSS: stacks for entering rings 0-2, seven interrupt stacks, an optional I/O bitmap.

    ``rsp`` three addresses, ``ist`` up to seven (IST1 first), ``bitmap`` from `io_bitmap` or empty: none,
    every port access of ring 3 with IOPL < 3 faults. The TSS descriptor's limit is ``len(bytes(tss)) - 1``.
    """

    SIZE = 104
    __slots__ = ("rsp", "ist", "bitmap")
    rsp: tuple[int, ...]
    ist: tuple[int, ...]
    bitmap: bytes

    def __init__(self, rsp: Iterable[int] = (), ist: Iterable[int] = (), bitmap: bytes = b"") -> None:
        rsp, ist = tuple(rsp), tuple(ist)
        if len(rsp) > 3 or len(ist) > 7:
            raise UsageError(
                f"a 64-bit TSS has 3 ring stacks and 7 interrupt stacks, not {len(rsp)} and {len(ist)}"
            )
        fill(self, "rsp", rsp + (0,) * (3 - len(rsp)))
        fill(self, "ist", ist + (0,) * (7 - len(ist)))
        fill(self, "bitmap", bytes(bitmap))

    def __bytes__(self) -> bytes:
        return _TSS64.pack(0, *self.rsp, 0, *self.ist, 0, 0, self.SIZE) + self.bitmap

    @classmethod
    def decode(cls, data: bytes) -> Tss64:
        """From memory up to the TSS limit; UsageError if shorter than 104 bytes."""
        if len(data) < cls.SIZE:
            raise UsageError(f"a 64-bit TSS has at least {cls.SIZE} bytes, not {len(data)}")
        fields = _TSS64.unpack_from(data)
        base = fields[-1]
        return cls(fields[1:4], fields[5:12], data[base:] if cls.SIZE <= base < len(data) else b"")


_TSS32_REGISTERS = ("cr3", "eip", "eflags", "eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_TSS32_SELECTORS = ("es", "cs", "ss", "ds", "fs", "gs", "ldt")


class Tss32(Record):
    """A 32-bit TSS: (ss, esp) for entering rings 0-2, an optional I/O bitmap, a hardware task's state.

    ``stacks`` up to three pairs (selector, stack pointer), ring 0 first. ``task`` register names (cr3, eip,
    eflags, eax … edi, es … gs, ldt) to values, only needed for hardware task switches. ``link`` is the
    previous task.
    """

    SIZE = 104
    __slots__ = ("stacks", "bitmap", "task", "link", "trap")
    stacks: tuple[tuple[int, int], ...]
    bitmap: bytes
    task: tuple[tuple[str, int], ...]
    link: int
    trap: int

    def __init__(
        self,
        stacks: Iterable[tuple[int, int]] = (),
        bitmap: bytes = b"",
        task: Mapping[str, int] | Iterable[tuple[str, int]] = (),
        link: int = 0,
        trap: int = 0,
    ) -> None:
        stacks, task = tuple(stacks), dict(task)
        if len(stacks) > 3:
            raise UsageError(f"a 32-bit TSS has 3 ring stacks, not {len(stacks)}")
        unknown = set(task) - set(_TSS32_REGISTERS + _TSS32_SELECTORS)
        if unknown:
            raise UsageError(f"a 32-bit TSS has no field {', '.join(sorted(unknown))}")
        fill(self, "stacks", stacks + ((0, 0),) * (3 - len(stacks)))
        fill(self, "bitmap", bytes(bitmap))
        fill(self, "task", tuple(sorted((name, number) for name, number in task.items() if number)))
        fill(self, "link", link)
        fill(self, "trap", trap)

    def __bytes__(self) -> bytes:
        task = dict(self.task)
        fields = [self.link, 0]
        for selector, pointer in self.stacks:
            fields += [pointer, selector, 0]
        fields += [task.get(name, 0) for name in _TSS32_REGISTERS]
        for name in _TSS32_SELECTORS:
            fields += [task.get(name, 0), 0]
        return _TSS32.pack(*fields, self.trap, self.SIZE) + self.bitmap

    @classmethod
    def decode(cls, data: bytes) -> Tss32:
        """From memory up to the TSS limit; UsageError if shorter than 104 bytes."""
        if len(data) < cls.SIZE:
            raise UsageError(f"a 32-bit TSS has at least {cls.SIZE} bytes, not {len(data)}")
        fields = _TSS32.unpack_from(data)
        stacks = [(fields[3 + 3 * ring], fields[2 + 3 * ring]) for ring in range(3)]
        task = dict(zip(_TSS32_REGISTERS, fields[11:22], strict=True))
        task.update(zip(_TSS32_SELECTORS, fields[22:36:2], strict=True))
        base = fields[-1]
        bitmap = data[base:] if cls.SIZE <= base < len(data) else b""
        return cls(stacks, bitmap, task, link=fields[0], trap=fields[-2] & 1)
