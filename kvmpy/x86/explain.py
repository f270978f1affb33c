"""What the manuals forbid in a set of system registers, in words.

KVM answers a bad ``KVM_SET_SREGS`` with a bare EINVAL, and a bad combination it does accept with a failed
entry. The rules are those of SDM vol. 3 ch. 2.5, 4.1, 9.8 and 27.3.1 (checks on guest state), and APM vol.
2 ch. 15.5.1 (canonicalization and consistency checks).
"""

from __future__ import annotations

from itertools import pairwise

from kvmpy.x86 import registers as bits
from kvmpy.x86.descriptors import canonical
from kvmpy.x86.segments import TSS_BUSY, DescriptorTable, Segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kvmpy.x86.entry import EntryState

_LOW32 = 0xFFFFFFFF


def explain_sregs(
    *,
    cr0: int,
    cr3: int = 0,
    cr4: int = 0,
    cr8: int = 0,
    efer: int = 0,
    rflags: int = bits.RFLAGS_FIXED,
    segments: Mapping[str, Segment] | None = None,
    gdt: DescriptorTable | None = None,
    idt: DescriptorTable | None = None,
    physical_bits: int = 52,
) -> list[str]:
    """Every rule these values break, a sentence each, most telling first; empty if none.

    ``segments`` has any of cs, ds, es, fs, gs, ss, tr, ldt. Bits that only need a CPUID feature aren't
    judged.

    >>> explain_sregs(cr0=0x80000001, efer=0x100)
    ['CR0.PG is set but CR4.PAE and EFER.LME disagree: long mode needs PAE', ...]
    """
    long = bool(efer & bits.EFER_LMA)
    found = [*_modes(cr0, cr4, efer), *_control(cr0, cr3, cr4, cr8, efer, physical_bits)]
    found += _flags(rflags, cr0, long)
    for name, table in (("GDT", gdt), ("IDT", idt)):
        if table is not None:
            found += _table(name, table)
    if segments:
        found += _segments(segments, cr0, long, bool(rflags & bits.RFLAGS_VM))
    return found


def explain_entry(state: EntryState) -> list[str]:
    """`explain_sregs` for an entry state, and what else it gets wrong: tables over each other, a bad RIP."""
    found = explain_sregs(
        cr0=state.cr0,
        cr3=state.cr3,
        cr4=state.cr4,
        cr8=state.cr8,
        efer=state.efer,
        rflags=state.reg("rflags"),
        segments=state.segments,
        gdt=state.gdt,
        idt=state.idt,
    )
    rip, width = state.reg("rip"), 57 if state.cr4 & bits.CR4_LA57 else 48
    if state.mode != "long" and rip > _LOW32:
        found.append(f"RIP is {rip:#x}, above 0xffffffff, outside long mode")
    elif not canonical(rip, width):
        found.append(f"RIP {rip:#x} isn't canonical")
    blocks = sorted((start, len(data)) for start, data in state.memory)
    for (start, length), (other, _) in pairwise(blocks):
        if start + length > other:
            found.append(f"the tables at {start:#x} ({length:#x} bytes) and at {other:#x} overlap")
    return found


def _modes(cr0: int, cr4: int, efer: int) -> Iterator[str]:
    paging, pae = cr0 & bits.CR0_PG, cr4 & bits.CR4_PAE
    lme, lma = efer & bits.EFER_LME, efer & bits.EFER_LMA
    if paging and not cr0 & bits.CR0_PE:
        yield "CR0.PG is set but CR0.PE is clear: paging needs protected mode"
    if paging and lme and not pae:
        yield "CR0.PG is set but CR4.PAE and EFER.LME disagree: long mode needs PAE"
    if paging and lme and not lma:
        yield "CR0.PG and EFER.LME are set but EFER.LMA is clear: LMA must be LME and PG"
    if lma and not paging:
        yield "EFER.LMA is set but CR0.PG is clear: LMA must be LME and PG"
    if lma and not lme:
        yield "EFER.LMA is set but EFER.LME is clear: LMA must be LME and PG"


def _control(cr0: int, cr3: int, cr4: int, cr8: int, efer: int, physical_bits: int) -> Iterator[str]:
    if cr0 & bits.CR0_NW and not cr0 & bits.CR0_CD:
        yield "CR0.NW is set but CR0.CD is clear: not write-through needs caches off"
    if cr0 >> 32:
        yield f"CR0 is {cr0:#x}: bits 63-32 must be 0"
    if cr4 & bits.CR4_PCIDE and not efer & bits.EFER_LMA:
        yield "CR4.PCIDE is set outside long mode (EFER.LMA is clear)"
    if cr4 & bits.CR4_CET and not cr0 & bits.CR0_WP:
        yield "CR4.CET is set but CR0.WP is clear"
    for register, value in (("CR4", cr4), ("EFER", efer)):
        unknown = [name[4:] for name in bits.names(register, value) if name.startswith("bit ")]
        if unknown:
            yield f"{register} is {value:#x}: reserved bit {', '.join(unknown)} must be 0"
    if cr3 >> physical_bits:
        yield f"CR3 is {cr3:#x}: physical addresses have {physical_bits} bits"
    if not 0 <= cr8 <= 15:
        yield f"CR8 is {cr8:#x}: the task priority is 0-15"


def _flags(rflags: int, cr0: int, long: bool) -> Iterator[str]:
    if not rflags & bits.RFLAGS_FIXED:
        yield f"RFLAGS is {rflags:#x}: bit 1 must be 1"
    reserved = rflags & ~0x3F7FD7
    if reserved:
        yield f"RFLAGS is {rflags:#x}: reserved bits {reserved:#x} must be 0"
    if rflags & bits.RFLAGS_VM and long:
        yield "RFLAGS.VM is set in long mode"
    if rflags & bits.RFLAGS_VM and not cr0 & bits.CR0_PE:
        yield "RFLAGS.VM is set but CR0.PE is clear"


def _table(name: str, table: DescriptorTable) -> Iterator[str]:
    if not 0 <= table.limit <= 0xFFFF:
        yield f"{name} limit {table.limit:#x} is outside 0-0xffff"
    if not canonical(table.base, 57):
        yield f"{name} base {table.base:#x} isn't canonical"


def _segments(segments: Mapping[str, Segment], cr0: int, long: bool, vm86: bool) -> Iterator[str]:
    protected = cr0 & bits.CR0_PE and not vm86
    for name, segment in segments.items():
        if not segment.unusable:
            yield from _limits(name.upper(), segment, long)
            if vm86 and name in ("cs", "ds", "es", "fs", "gs", "ss"):
                yield from _vm86(name.upper(), segment)
    cs = segments.get("cs")
    if cs:
        yield from _code(cs, long, bool(protected))
    if protected and not long:
        yield from _data(segments, only_stack=False)
    elif protected:
        yield from _data(segments, only_stack=True)
    if "tr" in segments:
        yield from _task(segments["tr"], long)
    ldt = segments.get("ldt")
    if ldt and not ldt.unusable and (ldt.type != 2 or ldt.s or not ldt.present):
        given = f"type {ldt.type:#x}, s={ldt.s}, present={ldt.present}"
        yield f"LDT has {given}: type 2, s=0, present=1, or unusable"


def _limits(name: str, segment: Segment, long: bool) -> Iterator[str]:
    if segment.limit > 0xFFFFF and not segment.g:
        yield f"{name} limit {segment.limit:#x} is above 0xfffff but g=0"
    if segment.limit & 0xFFF != 0xFFF and segment.g:
        yield f"{name} limit {segment.limit:#x} doesn't end in 0xfff but g=1"
    if name in ("CS", "DS", "ES", "SS") or not long:
        if segment.base > _LOW32:
            yield f"{name} base {segment.base:#x} is above 0xffffffff"
    elif not canonical(segment.base, 57):
        yield f"{name} base {segment.base:#x} isn't canonical"


def _vm86(name: str, segment: Segment) -> Iterator[str]:
    if segment.base != segment.selector << 4 or segment.limit != 0xFFFF or segment.dpl != 3:
        yield f"{name} in virtual-8086 mode must have base selector * 16, limit 0xffff and dpl 3: {segment}"


def _code(cs: Segment, long: bool, protected: bool) -> Iterator[str]:
    if cs.l and not long:
        yield "CS.L is set but EFER.LMA is clear: 64-bit code needs long mode"
    if cs.l and cs.db and long:
        yield "CS.L and CS.D are both set: 64-bit code has D=0"
    if cs.unusable or not cs.present or not cs.s:
        given = f"unusable={cs.unusable}, present={cs.present}, s={cs.s}"
        yield f"CS must be usable, present and a code segment: {given}"
    elif protected and cs.type not in (9, 11, 13, 15):
        yield f"CS has type {cs.type:#x}: accessed code is 9, 0xb, 0xd or 0xf"
    elif protected and cs.type in (9, 11) and cs.dpl != cs.rpl:
        yield f"CS has dpl {cs.dpl} but its selector {cs.selector:#x} says ring {cs.rpl}"


def _data(segments: Mapping[str, Segment], *, only_stack: bool) -> Iterator[str]:
    cs, ss = segments.get("cs"), segments.get("ss")
    if ss and not ss.unusable:
        if ss.type not in (3, 7) or not ss.s:
            yield f"SS has type {ss.type:#x}, s={ss.s}: a stack is accessed writable data, 3 or 7, s=1"
        if cs and cs.dpl != ss.dpl and cs.type in (9, 11):
            yield f"SS has dpl {ss.dpl} but CS {cs.dpl}: they must be equal"
    for name in () if only_stack else ("ds", "es", "fs", "gs"):
        segment = segments.get(name)
        if not segment or segment.unusable:
            continue
        if not segment.s or not segment.present or not segment.type & 1:
            yield f"{name.upper()} must be present, accessed (type bit 0) and s=1, or unusable: {segment}"
        elif segment.type & 8 and not segment.type & 2:
            yield f"{name.upper()} holds code that can't be read (type {segment.type:#x})"


def _task(tr: Segment, long: bool) -> Iterator[str]:
    kinds = (TSS_BUSY,) if long else (3, TSS_BUSY)
    if tr.unusable:
        yield "TR is unusable: VM entry needs a busy TSS in TR even if the guest never uses it"
    elif tr.type not in kinds or tr.s or not tr.present:
        names = " or ".join(f"{kind:#x}" for kind in kinds)
        given = f"type {tr.type:#x}, s={tr.s}, present={tr.present}"
        yield f"TR has {given}: a busy TSS is type {names}, s=0, present=1"
    elif tr.selector & 4:
        yield f"TR selector {tr.selector:#x} points into the LDT"
