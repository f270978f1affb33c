"""Bits of the control registers, EFER and RFLAGS, by the manuals' names.

SDM vol. 3 ch. 2.3 and 2.5, APM vol. 2 ch. 3.
"""

from __future__ import annotations

from kvmpy.errors import UsageError

CR0_PE = 1 << 0
CR0_MP = 1 << 1
CR0_EM = 1 << 2
CR0_TS = 1 << 3
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_AM = 1 << 18
CR0_NW = 1 << 29
CR0_CD = 1 << 30
CR0_PG = 1 << 31

CR4_VME = 1 << 0
CR4_PVI = 1 << 1
CR4_TSD = 1 << 2
CR4_DE = 1 << 3
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_MCE = 1 << 6
CR4_PGE = 1 << 7
CR4_PCE = 1 << 8
CR4_OSFXSR = 1 << 9
CR4_OSXMMEXCPT = 1 << 10
CR4_UMIP = 1 << 11
CR4_LA57 = 1 << 12
CR4_VMXE = 1 << 13
CR4_SMXE = 1 << 14
CR4_FSGSBASE = 1 << 16
CR4_PCIDE = 1 << 17
CR4_OSXSAVE = 1 << 18
CR4_KL = 1 << 19
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
CR4_PKE = 1 << 22
CR4_CET = 1 << 23
CR4_PKS = 1 << 24
CR4_UINTR = 1 << 25
CR4_LASS = 1 << 27
CR4_LAM_SUP = 1 << 28
CR4_FRED = 1 << 32

EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11
EFER_SVME = 1 << 12
EFER_LMSLE = 1 << 13
EFER_FFXSR = 1 << 14
EFER_TCE = 1 << 15
EFER_MCOMMIT = 1 << 17
EFER_INTWB = 1 << 18
EFER_UAIE = 1 << 20
EFER_AUTOIBRS = 1 << 21

RFLAGS_CF = 1 << 0
RFLAGS_FIXED = 1 << 1
RFLAGS_PF = 1 << 2
RFLAGS_AF = 1 << 4
RFLAGS_ZF = 1 << 6
RFLAGS_SF = 1 << 7
RFLAGS_TF = 1 << 8
RFLAGS_IF = 1 << 9
RFLAGS_DF = 1 << 10
RFLAGS_OF = 1 << 11
RFLAGS_IOPL = 3 << 12
RFLAGS_NT = 1 << 14
RFLAGS_RF = 1 << 16
RFLAGS_VM = 1 << 17
RFLAGS_AC = 1 << 18
RFLAGS_VIF = 1 << 19
RFLAGS_VIP = 1 << 20
RFLAGS_ID = 1 << 21

GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
"""The general registers in the order of ``struct kvm_regs``; ``rip`` and ``rflags`` follow them there."""

REGISTERS = (*GENERAL, "rip", "rflags")
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")


def bits(register: str) -> dict[str, int]:
    """Name to mask of every named bit of ``register``: "cr0", "cr4", "efer" or "rflags" (any case)."""
    prefix = register.upper() + "_"
    if prefix not in ("CR0_", "CR4_", "EFER_", "RFLAGS_"):
        raise UsageError(f"no bit names for register {register!r}: one of cr0, cr4, efer, rflags")
    return {name[len(prefix) :]: value for name, value in globals().items() if name.startswith(prefix)}


def names(register: str, value: int) -> list[str]:
    """The bits set in ``value``, lowest first; unnamed ones as ``bit N``, IOPL as ``IOPL=n``.

    >>> names("cr0", 0x80000011)
    ['PE', 'ET', 'PG']
    """
    masks = {mask: name for name, mask in bits(register).items()}
    found: list[str] = []
    for position in range(value.bit_length()):
        if not value >> position & 1:
            continue
        if register.lower() == "rflags" and position in (1, 12, 13):
            if position != 1 and not any(name.startswith("IOPL") for name in found):
                found.append(f"IOPL={value >> 12 & 3}")
            continue
        found.append(masks.get(1 << position, f"bit {position}"))
    return found


def describe(register: str, value: int) -> str:
    """One line for people: ``0x80000011 [PE ET PG]``."""
    return f"{value:#x} [{' '.join(names(register, value))}]"


def value(register: str, *set_bits: str) -> int:
    """The inverse of `names`: ``value("cr0", "PE", "PG")``; UsageError for a name the register lacks."""
    masks = bits(register)
    result = 0
    for name in set_bits:
        if name.upper() not in masks:
            raise UsageError(f"{register} has no bit {name!r}: one of {', '.join(masks)}")
        result |= masks[name.upper()]
    return result
