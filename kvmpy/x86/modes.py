"""Which mode a processor is in, and which kind of paging it uses (SDM vol. 3 ch. 2.2 and 4.1.1)."""

from __future__ import annotations

from kvmpy.x86 import registers as bits
from kvmpy.x86.record import Record, fill
from kvmpy.x86.segments import Segment


class Mode(Record):
    """``name`` real, vm86, protected, compatibility or long; ``bits`` of its code: 16, 32 or 64."""

    __slots__ = ("name", "bits")  # noqa: RUF023  (the order they are given in)
    name: str
    bits: int

    def __init__(self, name: str, bits: int) -> None:
        fill(self, "name", name)
        fill(self, "bits", bits)

    def __str__(self) -> str:
        return f"{self.name} mode, {self.bits}-bit code"


def cpu_mode(cr0: int, efer: int, cs: Segment, rflags: int = bits.RFLAGS_FIXED) -> Mode:
    """The mode that decides how the instructions at CS:RIP are decoded.

    >>> from kvmpy.x86.segments import flat_code
    >>> str(cpu_mode(0x80000011, 0x500, flat_code(8, bits=64)))
    'long mode, 64-bit code'
    """
    width = 32 if cs.db else 16
    if not cr0 & bits.CR0_PE:
        return Mode("real", width)
    if efer & bits.EFER_LMA:
        return Mode("long", 64) if cs.l else Mode("compatibility", width)
    if rflags & bits.RFLAGS_VM:
        return Mode("vm86", 16)
    return Mode("protected", width)


def paging_mode(cr0: int, cr4: int, efer: int) -> str:
    """One of "none", "32-bit", "pae", "4-level", "5-level": the last four are keys of `paging.SCHEMES`."""
    if not cr0 & bits.CR0_PG:
        return "none"
    if not cr4 & bits.CR4_PAE:
        return "32-bit"
    if not efer & bits.EFER_LMA:
        return "pae"
    return "5-level" if cr4 & bits.CR4_LA57 else "4-level"


def entry_mode(cr0: int, efer: int) -> str:
    """The coarse mode an entry state is named after: "real", "protected" or "long"."""
    if efer & bits.EFER_LMA:
        return "long"
    return "protected" if cr0 & bits.CR0_PE else "real"
