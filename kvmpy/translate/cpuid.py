"""What the translator's CPU can do, as a CPUID table: Unicorn's own answer, less what it only half has."""

from __future__ import annotations

import struct

from kvmpy._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmpy._native import CData

    Entry = tuple[int, int, int, int, int, int, int]

MOST = 256
_ENTRY = struct.Struct("<7I12x")
INDEXED = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
LEAVES = ((0x0, 0), (0x1, 0), (0x2, 0), (0x4, 4), (0x7, 1), (0xD, 2))
EXTENDED = range(0x80000000, 0x80000009)
HYPERVISOR = 0x40000000
SIGNATURE = b"KVMPYTRANSL8"

# Bits to hide, by function: (eax, ebx, ecx, edx). AVX and what needs it: translated as SSE, or #UD.
# MONITOR and MWAIT end in a halt; the TSC deadline and x2APIC need a local APIC that is the engine's.
_HIDDEN = {
    0x1: (
        0,
        0,
        1 << 3 | 1 << 12 | 1 << 17 | 1 << 21 | 1 << 24 | 1 << 27 | 1 << 28 | 1 << 29,
        1 << 7 | 1 << 14,
    ),
    0x7: (0, 1 << 5 | 1 << 10 | 1 << 20, 1 << 3 | 1 << 9 | 1 << 10, 0),
    0x80000001: (0, 0, 1 << 2 | 1 << 11 | 1 << 16, 0),
}
X87_AND_SSE = 3
XSAVE_SIZE = 576


def supported(vcpu: CData) -> list[Entry]:
    """The table, made by asking a ``struct kvmpy_vcpu *`` of this engine: (function, index, flags, eax, …)."""
    entries: list[Entry] = []
    for function, subleaves in LEAVES:
        for index in range(max(subleaves, 1)):
            entries.append(_entry(vcpu, function, index, INDEXED if subleaves else 0))
    words = [int.from_bytes(SIGNATURE[at : at + 4], "little") for at in (0, 4, 8)]
    entries.append((HYPERVISOR, 0, 0, HYPERVISOR, *words))  # type: ignore[arg-type]
    entries.extend(_entry(vcpu, function, 0, 0) for function in EXTENDED)
    return entries


def _entry(vcpu: CData, function: int, index: int, flags: int) -> Entry:
    registers = ffi.new("uint32_t[4]")
    lib.kvmpy_translate_native_cpuid(vcpu, function, index, registers)
    eax, ebx, ecx, edx = (
        value & ~hidden for value, hidden in zip(registers, _HIDDEN.get(function, (0, 0, 0, 0)), strict=True)
    )
    if function == 0xD:
        eax, ebx, ecx, edx = (X87_AND_SSE, XSAVE_SIZE, XSAVE_SIZE, 0) if index == 0 else (eax & 1, 0, 0, 0)
    return (function, index, flags, eax, ebx, ecx, edx)


def pack(entries: Iterable[Entry]) -> CData:
    """A ``struct kvm_cpuid2 *`` of these entries."""
    data = b"".join(_ENTRY.pack(*entry) for entry in entries)
    count = len(data) // _ENTRY.size
    table = ffi.new("struct kvm_cpuid2 *", {"nent": count, "entries": count})
    ffi.memmove(table.entries, data, len(data))
    return table


def unpack(table: CData) -> list[Entry]:
    """The entries of a ``struct kvm_cpuid2 *``."""
    return list(_ENTRY.iter_unpack(ffi.buffer(table.entries, table.nent * _ENTRY.size)))
