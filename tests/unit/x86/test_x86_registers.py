"""Register bits, modes, the manuals' rules in words, MSR names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import UsageError
from kvmpy.x86 import Segment, cpu_mode, explain_sregs, long_mode, msrs, paging_mode, registers, segments
from kvmpy.x86.segments import DescriptorTable

REGISTERS = ("cr0", "cr4", "efer", "rflags")
LONG = {"cr0": 0x80010033, "cr4": 0x620, "efer": 0xD01}


@pytest.mark.parametrize(
    ("register", "value", "expected"),
    [
        ("cr0", 0x80050033, "PE MP ET NE WP AM PG"),
        ("cr0", 0x60000010, "ET NW CD"),
        ("cr4", 0x3006B0, "PSE PAE PGE OSFXSR OSXMMEXCPT SMEP SMAP"),
        ("efer", 0xD01, "SCE LME LMA NXE"),
        ("rflags", 0x3202, "IF IOPL=3"),
        ("rflags", 0x10246, "PF ZF IF RF"),
        ("cr4", 1 << 63, "bit 63"),
        ("cr0", 0, ""),
    ],
)
def test_names(register: str, value: int, expected: str) -> None:
    assert " ".join(registers.names(register, value)) == expected
    assert registers.describe(register, value) == f"{value:#x} [{expected}]"


@given(st.sampled_from(REGISTERS), st.data())
def test_value_is_the_inverse_of_names(register: str, data: st.DataObject) -> None:
    known = [name for name in registers.bits(register) if name not in ("FIXED", "IOPL")]
    chosen = data.draw(st.lists(st.sampled_from(known), unique=True))
    assert sorted(registers.names(register, registers.value(register, *chosen))) == sorted(chosen)


def test_bits_of_a_register_do_not_overlap() -> None:
    for register in REGISTERS:
        masks = registers.bits(register).values()
        assert sum(masks) == __import__("functools").reduce(int.__or__, masks)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="cr0 has no bit 'XX'"):
        registers.value("cr0", "XX")
    with pytest.raises(UsageError, match="'cr3'"):
        registers.names("cr3", 0)


CODE16, CODE32, CODE64 = (segments.flat_code(8, bits=width) for width in (16, 32, 64))


@pytest.mark.parametrize(
    ("cr0", "efer", "cs", "rflags", "expected"),
    [
        (0x10, 0, segments.real(0, code=True), 2, ("real", 16)),
        (0x10, 0, CODE32, 2, ("real", 32)),
        (0x11, 0, CODE16, 2, ("protected", 16)),
        (0x11, 0, CODE32, 2, ("protected", 32)),
        (0x11, 0, CODE32, 0x20002, ("vm86", 16)),
        (0x80000011, 0x500, CODE32, 2, ("compatibility", 32)),
        (0x80000011, 0x500, CODE16, 2, ("compatibility", 16)),
        (0x80000011, 0x500, CODE64, 2, ("long", 64)),
        (0x11, 0x100, CODE64, 2, ("protected", 16)),  # L means nothing before LMA
    ],
)
def test_cpu_mode(cr0: int, efer: int, cs: Segment, rflags: int, expected: tuple[str, int]) -> None:
    mode = cpu_mode(cr0, efer, cs, rflags)
    assert (mode.name, mode.bits) == expected


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer", "expected"),
    [
        (0x11, 0x20, 0x500, "none"),
        (0x80000011, 0x10, 0, "32-bit"),
        (0x80000011, 0x20, 0, "pae"),
        (0x80000011, 0x20, 0x500, "4-level"),
        (0x80000011, 0x1020, 0x500, "5-level"),
    ],
)
def test_paging_mode(cr0: int, cr4: int, efer: int, expected: str) -> None:
    assert paging_mode(cr0, cr4, efer) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cr4": 0x600}, "CR0.PG is set but CR4.PAE and EFER.LME disagree"),
        ({"cr0": 0x80010032}, "CR0.PG is set but CR0.PE is clear"),
        ({"efer": 0x901}, "EFER.LMA is clear"),
        ({"efer": 0xC01}, "EFER.LME is clear"),
        ({"cr0": 0x10033}, "EFER.LMA is set but CR0.PG is clear"),
        ({"cr0": 0xA0010033}, "CR0.NW is set but CR0.CD is clear"),
        ({"cr0": 0x1_80010033}, "bits 63-32"),
        ({"cr4": 0x620 | 1 << 15}, "reserved bit 15"),
        ({"efer": 0xD01 | 1 << 9}, "EFER is 0xf01: reserved bit 9"),
        ({"cr4": 0x620 | 1 << 23, "cr0": 0x80000033}, "CR4.CET is set but CR0.WP is clear"),
        ({"cr3": 1 << 52}, "physical addresses have 52 bits"),
        ({"cr8": 16}, "CR8"),
        ({"rflags": 0}, "bit 1 must be 1"),
        ({"rflags": 0xA}, "reserved bits 0x8"),
        ({"rflags": 0x20002}, "RFLAGS.VM is set in long mode"),
        ({"gdt": DescriptorTable(0, 0x10000)}, "GDT limit"),
        ({"idt": DescriptorTable(1 << 60, 0)}, "IDT base"),
    ],
)
def test_forbidden_combinations_are_named(changes: dict[str, int], words: str) -> None:
    assert explain_sregs(**LONG) == []
    found = explain_sregs(**{**LONG, **changes})  # type: ignore[arg-type]
    assert any(words in line for line in found), found


def test_pcid_needs_long_mode() -> None:
    assert any("PCIDE" in line for line in explain_sregs(cr0=0x11, cr4=1 << 17))


GOOD = long_mode(0, memory_size=1 << 20).segments


@pytest.mark.parametrize(
    ("name", "segment", "words"),
    [
        ("cs", CODE64.replace(db=1), "CS.L and CS.D"),
        ("cs", CODE64.replace(present=0), "CS must be usable"),
        ("cs", CODE64.replace(type=3), "CS has type 0x3"),
        ("cs", CODE64.replace(dpl=3), "CS has dpl 3"),
        ("ss", GOOD["ss"].replace(dpl=3), "SS has dpl 3 but CS 0"),
        ("ss", GOOD["ss"].replace(type=1), "SS has type 0x1"),
        ("tr", GOOD["tr"].replace(type=9), "TR has type 0x9"),
        ("tr", segments.unusable(), "TR is unusable"),
        ("tr", GOOD["tr"].replace(selector=0x44), "points into the LDT"),
        ("ldt", Segment(present=1, type=3), "LDT has type 0x3"),
        ("ds", GOOD["ds"].replace(limit=0x1000), "doesn't end in 0xfff"),
        ("ds", GOOD["ds"].replace(g=0), "g=0"),
        ("ds", GOOD["ds"].replace(base=1 << 32), "DS base"),
        ("fs", GOOD["fs"].replace(base=1 << 60), "FS base"),
    ],
)
def test_bad_segments_are_named(name: str, segment: Segment, words: str) -> None:
    assert explain_sregs(**LONG, segments=GOOD) == []
    found = explain_sregs(**LONG, segments={**GOOD, name: segment})
    assert any(words in line for line in found), found


def test_bad_legacy_segments_are_named() -> None:
    flat = {"cs": CODE32, "ds": segments.flat_data(0x10)}
    assert explain_sregs(cr0=0x11, segments=flat) == []
    old_task = segments.task(0x40, 0, 0x2B).replace(type=3)
    assert explain_sregs(cr0=0x11, segments={**flat, "tr": old_task}) == []
    for bad, words in (
        ({"cs": CODE64}, "needs long mode"),
        ({"ds": flat["ds"].replace(type=2)}, "accessed"),
        ({"ds": flat["ds"].replace(type=9)}, "can't be read"),
    ):
        assert any(words in line for line in explain_sregs(cr0=0x11, segments={**flat, **bad})), words
    found = explain_sregs(cr0=0x11, rflags=0x20002, segments={"cs": segments.real(0x10, code=True)})
    assert any("virtual-8086" in line for line in found)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("EFER", 0xC0000080),
        ("IA32_EFER", 0xC0000080),
        ("msr_ia32_efer", 0xC0000080),
        ("TSC", 0x10),
        ("apic_base", 0x1B),
        ("SYSENTER_EIP", 0x176),
        ("PAT", 0x277),
        ("MTRR_PHYSMASK9", 0x213),
        ("MC3_STATUS", 0x40D),
        ("PERFEVTSEL7", 0x18D),
        ("TSC_DEADLINE", 0x6E0),
        ("X2APIC_ICR", 0x830),
        ("X2APIC_IRR7", 0x827),
        ("XSS", 0xDA0),
        ("VMX_TRUE_ENTRY_CTLS", 0x490),
        ("KVM_SYSTEM_TIME_NEW", 0x4B564D01),
        ("MSR_KVM_PV_EOI_EN", 0x4B564D04),
        ("KERNEL_GS_BASE", 0xC0000102),
        ("TSC_AUX", 0xC0000103),
        ("TSC_RATIO", 0xC0000104),
        ("AMD64_TSC_RATIO", 0xC0000104),
        ("VM_HSAVE_PA", 0xC0010117),
        ("F15H_PERF_CTR5", 0xC001020B),
        ("HV_SINT15", 0x4000009F),
        ("0x1234", 0x1234),
        (0x10, 0x10),
    ],
)
def test_msr_numbers(name: str | int, number: int) -> None:
    assert msrs.number(name) == number


def test_msr_names_come_back() -> None:
    assert len(set(msrs.MSRS.values())) == len(msrs.MSRS)
    for name, number in msrs.MSRS.items():
        assert msrs.name(number) == name and msrs.number(name) == msrs.number(f"IA32_{name}") == number
    assert msrs.name(0x12345) == "0x12345"


def test_unknown_msrs() -> None:
    with pytest.raises(UsageError, match="did you mean LSTAR"):
        msrs.number("LSTR")
    for bad in (-1, 1 << 32, "0x100000000", "-1"):
        with pytest.raises(UsageError, match="32-bit"):
            msrs.number(bad)
