"""Segment registers and their 8-byte descriptors (SDM vol. 3 ch. 3.4.5 and 3.5, APM vol. 2 ch. 4.7)."""

# ruff: noqa: RUF023  (fields are declared in the order they are given, not by name)

from __future__ import annotations

from kvmpy.errors import UsageError
from kvmpy.x86.record import Record, fill

# Types of code and data descriptors (s=1), accessed bit set: a load then doesn't write to the GDT.
DATA_READ_WRITE = 0x3
CODE_READ = 0xB
# Types of system descriptors (s=0). In long mode 0x9 and 0xb are the 64-bit TSS, 0xc the 64-bit call gate.
LDT = 0x2
TSS_AVAILABLE = 0x9
TSS_BUSY = 0xB


class Segment(Record):
    """A segment register with its hidden part, field for field what ``struct kvm_segment`` holds.

    ``limit`` is in bytes, the highest valid offset (already expanded when ``g`` is 1), 0 to 0xffffffff.
    ``base`` has up to 64 bits. ``type`` 0-15; ``dpl`` 0-3; the others 0 or 1.
    """

    __slots__ = (
        "selector", "base", "limit", "type", "s", "dpl", "present", "avl", "l", "db", "g", "unusable",
    )  # fmt: skip
    selector: int
    base: int
    limit: int
    type: int
    s: int
    dpl: int
    present: int
    avl: int
    l: int  # noqa: E741  (the manual's name)
    db: int
    g: int
    unusable: int

    def __init__(
        self,
        selector: int = 0,
        base: int = 0,
        limit: int = 0,
        type: int = 0,
        s: int = 0,
        dpl: int = 0,
        present: int = 0,
        avl: int = 0,
        l: int = 0,  # noqa: E741
        db: int = 0,
        g: int = 0,
        unusable: int = 0,
    ) -> None:
        fill(self, "selector", selector)
        fill(self, "base", base)
        fill(self, "limit", limit)
        fill(self, "type", type)
        fill(self, "s", s)
        fill(self, "dpl", dpl)
        fill(self, "present", present)
        fill(self, "avl", avl)
        fill(self, "l", l)
        fill(self, "db", db)
        fill(self, "g", g)
        fill(self, "unusable", unusable)

    @property
    def rpl(self) -> int:
        """Requested privilege level: the low two bits of the selector."""
        return self.selector & 3

    @property
    def is_code(self) -> bool:
        """A code segment (s=1, type bit 3)."""
        return bool(self.s and self.type & 8)


class DescriptorTable(Record):
    """GDTR or IDTR: linear ``base`` and ``limit``, the offset of the last byte (0 to 0xffff)."""

    __slots__ = ("base", "limit")
    base: int
    limit: int

    def __init__(self, base: int = 0, limit: int = 0) -> None:
        fill(self, "base", base)
        fill(self, "limit", limit)


def unusable() -> Segment:
    """A segment register that holds nothing, as LDTR does after loading a null selector."""
    return Segment(unusable=1)


def real(selector: int, *, code: bool = False) -> Segment:
    """A real-mode segment: base is 16 times the selector, limit 64 KiB. ``selector`` 0-0xffff."""
    if not 0 <= selector <= 0xFFFF:
        raise UsageError(f"real-mode segment {selector:#x} is outside 0-0xffff")
    return Segment(selector, selector << 4, 0xFFFF, CODE_READ if code else DATA_READ_WRITE, s=1, present=1)


def flat_code(selector: int, *, bits: int, dpl: int = 0) -> Segment:
    """Readable code from 0; ``bits`` 64, 32 (4 GiB limit) or 16 (64 KiB limit)."""
    if bits == 16:
        return Segment(selector, 0, 0xFFFF, CODE_READ, s=1, dpl=dpl, present=1)
    long = int(bits == 64)
    return Segment(selector, 0, 0xFFFFFFFF, CODE_READ, s=1, dpl=dpl, present=1, l=long, db=1 - long, g=1)


def flat_data(selector: int, *, bits: int = 32, dpl: int = 0) -> Segment:
    """Writable data from 0; ``bits`` 32 (4 GiB limit, long mode uses it too) or 16 (64 KiB limit)."""
    if bits == 16:
        return Segment(selector, 0, 0xFFFF, DATA_READ_WRITE, s=1, dpl=dpl, present=1)
    return Segment(selector, 0, 0xFFFFFFFF, DATA_READ_WRITE, s=1, dpl=dpl, present=1, db=1, g=1)


def task(selector: int, base: int, limit: int, *, busy: bool = True) -> Segment:
    """TR: a 32-bit TSS, or in long mode a 64-bit one. VM entry on VT-x insists that TR is busy."""
    return Segment(selector, base, limit, TSS_BUSY if busy else TSS_AVAILABLE, present=1)


def encode(segment: Segment, *, wide: bool = False) -> bytes:
    """The descriptor for ``segment``: 8 bytes, or 16 for a system descriptor in long mode (``wide``).

    An unusable segment is the null descriptor. UsageError where the value doesn't fit the format: a limit
    that isn't a multiple of 4 KiB less one with ``g=1``, above 0xfffff with ``g=0``, a base too wide.
    """
    if segment.unusable:
        return bytes(16 if wide else 8)
    if wide and segment.s:
        raise UsageError("only system descriptors (s=0) have 16 bytes")
    _check(segment, wide)
    limit = segment.limit >> 12 if segment.g else segment.limit
    base = segment.base & 0xFFFFFFFF
    access = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3
    low = limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40
    low |= (limit >> 16) << 48 | flags << 52 | (base >> 24) << 56
    if not wide:
        return low.to_bytes(8, "little")
    return (low | segment.base >> 32 << 64).to_bytes(16, "little")


def _check(segment: Segment, wide: bool) -> None:
    if not 0 <= segment.base < 1 << (64 if wide else 32):
        width = 64 if wide else 32
        raise UsageError(f"segment base {segment.base:#x} doesn't fit the descriptor's {width} bits")
    if not 0 <= segment.limit <= 0xFFFFFFFF:
        raise UsageError(f"segment limit {segment.limit:#x} is outside 0-0xffffffff")
    if segment.g and segment.limit & 0xFFF != 0xFFF:
        raise UsageError(f"segment limit {segment.limit:#x} with g=1 must end in 0xfff")
    if not segment.g and segment.limit > 0xFFFFF:
        raise UsageError(f"segment limit {segment.limit:#x} above 0xfffff needs g=1")
    for name in ("type", "dpl", "s", "present", "avl", "l", "db", "g"):
        top = {"type": 15, "dpl": 3}.get(name, 1)
        if not 0 <= getattr(segment, name) <= top:
            raise UsageError(f"segment {name} {getattr(segment, name)} is outside 0-{top}")


def decode(descriptor: bytes, selector: int = 0) -> Segment:
    """The segment register that loading ``selector`` from this 8- or 16-byte descriptor would give.

    A descriptor of zeros is an unusable segment. UsageError for any other length.
    """
    if len(descriptor) not in (8, 16):
        raise UsageError(f"a descriptor has 8 or 16 bytes, not {len(descriptor)}")
    if not any(descriptor):
        return Segment(selector, unusable=1)
    low = int.from_bytes(descriptor[:8], "little")
    g = low >> 55 & 1
    limit = low & 0xFFFF | (low >> 48 & 0xF) << 16
    base = low >> 16 & 0xFFFFFF | (low >> 56) << 24
    if len(descriptor) == 16:
        base |= int.from_bytes(descriptor[8:12], "little") << 32
    return Segment(
        selector=selector,
        base=base,
        limit=limit << 12 | 0xFFF if g else limit,
        type=low >> 40 & 0xF,
        s=low >> 44 & 1,
        dpl=low >> 45 & 3,
        present=low >> 47 & 1,
        avl=low >> 52 & 1,
        l=low >> 53 & 1,
        db=low >> 54 & 1,
        g=g,
    )
