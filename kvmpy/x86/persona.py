"""Personas: which hypervisor a guest sees in CPUID leaves 0x40000000 and up.

The leaves come in blocks of 0x100, each with a signature of 12 characters and its highest leaf in EAX; a guest looks at
0x40000000, 0x40000100, … for one it knows (Microsoft's "Requirements for implementing the Microsoft hypervisor
interface"; kernel documentation, "KVM CPUID bits"). So a machine can be several at once: the persona is the first.

============  ==================  =================================================================================
persona       first block         what else
============  ==================  =================================================================================
``kvm``       "KVMKVMKVM"         features: those of the table given, see :func:`limit`
``kvmpy``     "kvmpykvmpyVM"      KVM's block behind it
``none``      nothing             no block at all, and CPUID.1:ECX bit 31 is clear
``hyperv``    "Microsoft Hv"      interface "Hv#1"; the leaves given in ``hyperv``, else no feature at all: a guest sees
                                  the name and finds that it can use nothing. KVM's block behind it
``xen``       "XenVMMXenVMM"      version 4.17, no hypercall pages, no features: the name only. KVM's block behind it
============  ==================  =================================================================================

The ``kvmpy`` block says how a guest reaches the machine's own hypercalls (:mod:`kvmpy.machine.hypercalls`):

=====  ====  ==================================================================
leaf   reg   holds
=====  ====  ==================================================================
B      EAX   the block's highest leaf, B + 1
B      rest  the signature
B + 1  EAX   version of the interface, 1
B + 1  EBX   port of the doorbell; 0: there is none
B + 1  ECX   bit 0: VMCALL works, bit 1: VMMCALL works
=====  ====  ==================================================================
"""

from __future__ import annotations

from kvmpy.errors import UsageError
from kvmpy.x86.cpuid import CpuidTable, Leaf
from kvmpy.x86.pv_features import limited

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Block = list[tuple[int, tuple[int, int, int, int]]]  # leaves counted from the block's first

PERSONAS = ("kvm", "kvmpy", "none", "hyperv", "xen")
FIRST, STEP, BLOCKS = 0x40000000, 0x100, 16
KVM, KVMPY, HYPERV, XEN = "KVMKVMKVM", "kvmpykvmpyVM", "Microsoft Hv", "XenVMMXenVMM"
INTERFACE = 1
VMCALL, VMMCALL = 1, 2
XEN_VERSION = 4 << 16 | 17


def blocks(table: CpuidTable) -> dict[str, int]:
    """The hypervisor blocks of a table: signature to first leaf, in the order a guest finds them."""
    found = {}
    for base in range(FIRST, FIRST + BLOCKS * STEP, STEP):
        if (base, 0) in table:
            leaf = table.get(base)
            raw = b"".join(word.to_bytes(4, "little") for word in (leaf.ebx, leaf.ecx, leaf.edx))
            found[raw.rstrip(b"\0").decode("latin-1")] = base
    return found


def announce(table: CpuidTable, doorbell: int, *, instruction: bool) -> CpuidTable:
    """Adds kvmpy's block, behind those that are there; returns the table. ``instruction``: VMCALL and VMMCALL work."""
    found = _take(table)
    found[KVMPY] = _kvmpy(doorbell, instruction)
    return _put(table, found)


def apply(table: CpuidTable, persona: str, hyperv: Iterable[tuple[int, ...]] = ()) -> CpuidTable:
    """Makes a persona the first that a guest finds; returns the table. It may be called again with another one.

    ``hyperv``: the entries of KVM_GET_SUPPORTED_HV_CPUID, for the persona of that name. kvmpy's own block stays unless
    the persona is "none". Raises UsageError for a name that isn't in PERSONAS.
    """
    if persona not in PERSONAS:
        raise UsageError(f"persona {persona!r}: one of {', '.join(PERSONAS)}")
    found = _take(table)
    for stranger in (HYPERV, XEN):
        found.pop(stranger, None)
    table.force("hypervisor")
    if persona == "none":
        table.hide("hypervisor")
        return table
    made = {KVM: _kvm(0), KVMPY: _kvmpy(0, False), HYPERV: _hyperv(hyperv), XEN: _xen()}
    name = {"kvm": KVM, "kvmpy": KVMPY, "hyperv": HYPERV, "xen": XEN}[persona]
    first = {name: found.pop(name, made[name])}
    return _put(table, {**first, **found})


def limit(table: CpuidTable, *, apic: bool, hypercalls: bool) -> CpuidTable:
    """Takes out KVM features that this machine doesn't have: without a local APIC in the kernel, or where KVM's own
    hypercalls don't work. Returns the table."""
    base = blocks(table).get(KVM)
    if base is not None:
        table.set(base + 1, eax=limited(table.get(base + 1).eax, apic=apic, hypercalls=hypercalls))
    return table


def provide(table: CpuidTable, features: int) -> CpuidTable:
    """Adds KVM features that somebody else provides, such as a pvclock, and KVM's block if there is none."""
    base = blocks(table).get(KVM)
    if base is None:
        found = _take(table)
        return _put(table, {KVM: _kvm(features), **found})
    return table.set(base + 1, eax=table.get(base + 1).eax | features)


def _take(table: CpuidTable) -> dict[str, Block]:
    """Takes all blocks out of a table; signature to leaves."""
    found = {}
    for name, base in blocks(table).items():
        leaves = [leaf for leaf, _ in table if base <= leaf < base + STEP]
        found[name] = [(leaf - base, tuple(table.get(leaf))) for leaf in leaves]
    for leaf in {leaf for leaf, _ in table if FIRST <= leaf < FIRST + BLOCKS * STEP}:
        del table[leaf]
    return found  # type: ignore[return-value]


def _put(table: CpuidTable, found: Mapping[str, Block]) -> CpuidTable:
    """Puts blocks one behind the other; each says what its highest leaf is."""
    for number, (name, leaves) in enumerate(found.items()):
        base = FIRST + number * STEP
        words = [
            int.from_bytes(name.encode("latin-1").ljust(12, b"\0")[at : at + 4], "little") for at in (0, 4, 8)
        ]
        table[base] = Leaf(base + max(offset for offset, _ in leaves), *words)
        for offset, registers in leaves:
            if offset:
                table[base + offset] = Leaf(*registers)
    return _tops(table, len(found))


def _tops(table: CpuidTable, count: int) -> CpuidTable:
    """CpuidTable.set() raises the first block's highest leaf with each leaf put behind it: that is undone, it last."""
    for base in reversed(range(FIRST, FIRST + count * STEP, STEP)):
        table.set(base, eax=max(leaf for leaf, _ in table if base <= leaf < base + STEP))
    return table


def _kvm(features: int) -> Block:
    return [(0, (0, 0, 0, 0)), (1, (features, 0, 0, 0))]


def _kvmpy(doorbell: int, instruction: bool) -> Block:
    return [(0, (0, 0, 0, 0)), (1, (INTERFACE, doorbell, VMCALL | VMMCALL if instruction else 0, 0))]


def _hyperv(entries: Iterable[tuple[int, ...]]) -> Block:
    """Hypervisor Top Level Functional Specification, 2.4: identity, interface, version, features, …"""
    given = {entry[0] - FIRST: tuple(entry[3:7]) for entry in entries if FIRST < entry[0] < FIRST + STEP}
    interface = int.from_bytes(b"Hv#1", "little")
    leaves = {0: (0, 0, 0, 0), 2: (0, 0, 0, 0), 3: (0, 0, 0, 0), 4: (0, 0, 0, 0), 5: (0, 0, 0, 0), **given}
    leaves[1] = (interface, 0, 0, 0)
    return sorted(leaves.items())  # type: ignore[arg-type]


def _xen() -> Block:
    """Xen's public header arch-x86/cpuid.h: version; hypercall pages and their MSR; time; features of an HVM guest."""
    return [
        (0, (0, 0, 0, 0)),
        (1, (XEN_VERSION, 0, 0, 0)),
        (2, (0, 0, 0, 0)),
        (3, (0, 0, 0, 0)),
        (4, (0, 0, 0, 0)),
    ]
