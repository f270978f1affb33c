"""kvmpy.x86.persona: what a guest finds when it looks for its hypervisor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import UsageError
from kvmpy.x86 import persona, pv_features
from kvmpy.x86.cpuid import CpuidTable

DOORBELL = 0xEA
FEATURES = 0x1007EFB


def words(text: bytes) -> tuple[int, ...]:
    padded = text.ljust(12, b"\0")
    return tuple(int.from_bytes(padded[at : at + 4], "little") for at in (0, 4, 8))


def kvm_table() -> CpuidTable:
    """A processor on KVM, as KVM_GET_SUPPORTED_CPUID describes it."""
    table = CpuidTable.preset("minimal")
    table[0x40000000] = (0x40000001, *words(b"KVMKVMKVM"))
    table[0x40000001] = (FEATURES, 0, 0, 0)
    return table


def find(table: CpuidTable, signature: bytes) -> tuple[int, int]:
    """What guests do (Linux's hypervisor_cpuid_base): the block's first and highest leaf, 0 without one."""
    for base in range(0x40000000, 0x40010000, 0x100):
        eax, *rest = table.lookup(base)
        if tuple(rest) == words(signature):
            return base, eax
    return 0, 0


def test_the_default_is_kvm_with_the_hosts_features() -> None:
    table = persona.apply(kvm_table(), "kvm")
    assert find(table, b"KVMKVMKVM") == (0x40000000, 0x40000001)
    assert table.get(0x40000001).eax == FEATURES
    assert table.has("hypervisor")


def test_announce_leaves_what_was_there_in_its_place() -> None:
    table = persona.announce(kvm_table(), DOORBELL, instruction=False)
    assert find(table, b"KVMKVMKVM") == (0x40000000, 0x40000001)
    assert find(table, b"kvmpykvmpyVM") == (0x40000100, 0x40000101)
    assert tuple(table.get(0x40000101)) == (1, DOORBELL, 0, 0)
    persona.announce(table, DOORBELL, instruction=True)
    assert tuple(table.get(0x40000101)) == (1, DOORBELL, 3, 0)
    assert list(persona.blocks(table)) == ["KVMKVMKVM", "kvmpykvmpyVM"]


def test_none_is_no_hypervisor_at_all() -> None:
    table = persona.apply(persona.announce(kvm_table(), DOORBELL, instruction=True), "none")
    assert not any(leaf >> 24 == 0x40 for leaf, _ in table)
    assert not table.has("hypervisor")
    assert persona.blocks(table) == {}


def test_its_own() -> None:
    table = persona.apply(persona.announce(kvm_table(), DOORBELL, instruction=False), "kvmpy")
    assert list(persona.blocks(table)) == ["kvmpykvmpyVM", "KVMKVMKVM"]
    assert tuple(table.get(0x40000001)) == (1, DOORBELL, 0, 0)
    assert table.get(0x40000101).eax == FEATURES  # pvclock is still to be found
    assert table.hypervisor == "kvmpykvmpyVM"


def test_hyperv_without_anything_behind_it_offers_nothing() -> None:
    table = persona.apply(kvm_table(), "hyperv")
    base, top = find(table, b"Microsoft Hv")
    assert (base, top) == (0x40000000, 0x40000005)
    assert table.get(0x40000001).eax == int.from_bytes(b"Hv#1", "little")
    assert tuple(table.get(0x40000003)) == (0, 0, 0, 0)
    assert find(table, b"KVMKVMKVM") == (0x40000100, 0x40000101)
    assert table.get(0x40000101).eax == FEATURES


def test_hyperv_offers_what_kvm_says_it_has() -> None:
    offered = [
        (0x40000003, 0, 0, 0x1E60, 0x30, 0, 0x10),
        (0x4000000A, 0, 0, 1, 0, 0, 0),
        (0x80000000, 0, 0, 9, 9, 9, 9),
    ]
    table = persona.apply(kvm_table(), "hyperv", offered)
    assert find(table, b"Microsoft Hv")[1] == 0x4000000A
    assert tuple(table.get(0x40000003)) == (0x1E60, 0x30, 0, 0x10)
    assert table.get(0x40000001).eax == int.from_bytes(b"Hv#1", "little")
    assert table.get(0x80000000).ebx != 9


def test_xen_is_a_name_without_hypercall_pages() -> None:
    table = persona.apply(kvm_table(), "xen")
    assert find(table, b"XenVMMXenVMM") == (0x40000000, 0x40000004)
    assert table.get(0x40000001).eax == 0x40011
    assert tuple(table.get(0x40000002)) == (0, 0, 0, 0)


@given(
    st.lists(st.sampled_from([name for name in persona.PERSONAS if name != "none"]), min_size=1, max_size=6)
)
def test_the_last_persona_counts(names: list[str]) -> None:
    table = persona.announce(kvm_table(), DOORBELL, instruction=True)
    for name in names:
        persona.apply(table, name)
    direct = persona.apply(persona.announce(kvm_table(), DOORBELL, instruction=True), names[-1])
    assert next(iter(persona.blocks(table))) == next(iter(persona.blocks(direct)))
    assert sorted(persona.blocks(table)) == sorted(persona.blocks(direct))
    base, top = find(table, b"kvmpykvmpyVM")
    assert top == base + 1 and tuple(table.get(top)) == (1, DOORBELL, 3, 0)
    base, top = find(table, b"KVMKVMKVM")
    assert top == base + 1 and table.get(top).eax == FEATURES


def test_unknown_persona() -> None:
    with pytest.raises(UsageError, match="persona 'vmware': one of kvm, kvmpy, none, hyperv, xen"):
        persona.apply(kvm_table(), "vmware")


def test_features_that_are_not_there_are_taken_out() -> None:
    table = persona.apply(kvm_table(), "hyperv")  # KVM's block isn't the first one now
    persona.limit(table, apic=False, hypercalls=True)
    left = table.get(0x40000101).eax
    assert left & (pv_features.CLOCKSOURCE2 | pv_features.CLOCKSOURCE_STABLE)
    assert not left & (1 << 4 | 1 << 6 | 1 << 7 | 1 << 11)
    persona.limit(persona.apply(table, "kvm"), apic=True, hypercalls=False)
    assert not table.get(0x40000001).eax & 1 << 13
    empty = CpuidTable()
    assert persona.limit(empty, apic=False, hypercalls=False) == CpuidTable()


def test_somebody_else_provides_a_clock() -> None:
    table = CpuidTable.preset("minimal")
    persona.provide(table, pv_features.CLOCKSOURCE2)
    assert find(table, b"KVMKVMKVM") == (0x40000000, 0x40000001)
    assert table.get(0x40000001).eax == pv_features.CLOCKSOURCE2
    persona.provide(table, pv_features.CLOCKSOURCE_STABLE)
    assert table.get(0x40000001).eax == pv_features.CLOCKSOURCE2 | pv_features.CLOCKSOURCE_STABLE
