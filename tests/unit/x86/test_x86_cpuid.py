"""CPUID tables: features by name, fields, presets, out-of-range leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import UsageError
from kvmpy.x86 import CpuidTable, Leaf
from kvmpy.x86.cpuid_features import DEPENDS, FEATURES, dependents, resolve

word = st.integers(0, 0xFFFFFFFF)
names = st.sampled_from(sorted(FEATURES))

# a cut-down answer of KVM on an AMD processor
AMD = [
    (0x0, 0, 0, 0x10, 0x68747541, 0x444D4163, 0x69746E65),
    (0x1, 0, 0, 0x00800F12, 0x00020800, 0x7EF8320B, 0x178BFBFF),
    (0x7, 0, 1, 1, 0x209C01A9, 0x0, 0x0),
    (0x7, 1, 1, 0, 0, 0, 0),
    (0xB, 0, 1, 1, 2, 0x100, 0),
    (0xB, 1, 1, 4, 16, 0x201, 0),
    (0xD, 0, 1, 7, 0x340, 0x340, 0),
    (0xD, 1, 1, 0xF, 0, 0, 0),
    (0x40000000, 0, 0, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D),
    (0x40000001, 0, 0, 0x01007AFB, 0, 0, 0),
    (0x80000000, 0, 0, 0x8000001F, 0x68747541, 0x444D4163, 0x69746E65),
    (0x80000001, 0, 0, 0x00800F12, 0, 0x35C233FF, 0x2FD3FBFF),
    (0x80000008, 0, 0, 0x3030, 0x1000, 0, 0),
]


def host() -> CpuidTable:
    return CpuidTable(AMD)


@pytest.mark.parametrize(
    ("feature", "place"),
    [
        ("fpu", (1, 0, "edx", 0)),
        ("apic", (1, 0, "edx", 9)),
        ("sep", (1, 0, "edx", 11)),
        ("fxsr", (1, 0, "edx", 24)),
        ("pbe", (1, 0, "edx", 31)),
        ("vmx", (1, 0, "ecx", 5)),
        ("pcid", (1, 0, "ecx", 17)),
        ("x2apic", (1, 0, "ecx", 21)),
        ("tsc_deadline_timer", (1, 0, "ecx", 24)),
        ("hypervisor", (1, 0, "ecx", 31)),
        ("fsgsbase", (7, 0, "ebx", 0)),
        ("smep", (7, 0, "ebx", 7)),
        ("smap", (7, 0, "ebx", 20)),
        ("avx512vl", (7, 0, "ebx", 31)),
        ("umip", (7, 0, "ecx", 2)),
        ("la57", (7, 0, "ecx", 16)),
        ("rdpid", (7, 0, "ecx", 22)),
        ("pks", (7, 0, "ecx", 31)),
        ("spec_ctrl", (7, 0, "edx", 26)),
        ("arch_capabilities", (7, 0, "edx", 29)),
        ("fred", (7, 1, "eax", 17)),
        ("lam", (7, 1, "eax", 26)),
        ("xsaves", (0xD, 1, "eax", 3)),
        ("kvm_pv_unhalt", (0x40000001, 0, "eax", 7)),
        ("kvm_clocksource_stable", (0x40000001, 0, "eax", 24)),
        ("syscall", (0x80000001, 0, "edx", 11)),
        ("nx", (0x80000001, 0, "edx", 20)),
        ("pdpe1gb", (0x80000001, 0, "edx", 26)),
        ("rdtscp", (0x80000001, 0, "edx", 27)),
        ("lm", (0x80000001, 0, "edx", 29)),
        ("svm", (0x80000001, 0, "ecx", 2)),
        ("topoext", (0x80000001, 0, "ecx", 22)),
        ("invtsc", (0x80000007, 0, "edx", 8)),
        ("amd_ibpb", (0x80000008, 0, "ebx", 12)),
        ("npt", (0x8000000A, 0, "edx", 0)),
        ("vgif", (0x8000000A, 0, "edx", 16)),
        ("vnmi", (0x8000000A, 0, "edx", 25)),
        ("sev_snp", (0x8000001F, 0, "eax", 4)),
        ("autoibrs", (0x80000021, 0, "eax", 8)),
    ],
)
def test_known_places(feature: str, place: tuple[int, int, str, int]) -> None:
    assert FEATURES[feature] == place


def test_the_feature_table_is_sound() -> None:
    assert len(set(FEATURES.values())) == len(FEATURES)
    assert all(0 <= bit < 32 for _, _, _, bit in FEATURES.values())
    for feature, needs in DEPENDS.items():
        assert feature in FEATURES and needs in FEATURES
        assert feature not in dependents(feature), "a feature needs itself"


def test_spelling_does_not_matter() -> None:
    assert [resolve(n) for n in ("SSE4.1", "tsc-deadline", "sse3", "LZCNT", "1GB pages")] == [
        "sse4_1", "tsc_deadline_timer", "pni", "abm", "pdpe1gb",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="did you mean avx2"):
        host().has("avx22")


@given(st.sets(names), st.sets(names))
def test_force_and_hide(forced: set[str], hidden: set[str]) -> None:
    table = CpuidTable(
        [(leaf, subleaf, 1, 0, 0, 0, 0) for leaf, subleaf in {p[:2] for p in FEATURES.values()}]
    )
    for leaf in (0, 0x40000000, 0x80000000):
        table.set(leaf, eax=leaf | 0x21)
    table.force(*sorted(forced))
    assert set(table.features()) == forced
    table.hide(*sorted(hidden), dependents=False)
    assert set(table.features()) == forced - hidden


def test_hiding_takes_what_depends_on_it() -> None:
    table = host().force("avx512f", "avx512vbmi", "fma")
    assert table.has("avx2") and table.has("sse2")
    table.hide("avx")
    assert not any(map(table.has, ("avx", "avx2", "fma", "f16c", "avx512f", "avx512vbmi")))
    assert table.has("xsave") and table.has("sse4_2")
    assert host().hide("avx", dependents=False).has("avx2")


def test_repeated_bits_follow_on_amd_only() -> None:
    table = host().hide("pse36", dependents=False)
    assert not table[1].edx & 1 << 17 and not table[0x80000001].edx & 1 << 17
    assert table.force("pse36")[0x80000001].edx & 1 << 17
    intel = host()
    intel.vendor = "GenuineIntel"
    assert not intel.hide("pse36").force("pse36")[0x80000001].edx & 1 << 17


def test_hiding_does_not_invent_leaves() -> None:
    table = CpuidTable()
    table.hide("svm", "npt", "avx2")
    assert len(table) == 0
    table.force("fred")
    assert table.has("fred") and table[0].eax == 7


entries = st.dictionaries(
    st.tuples(word, st.integers(0, 70)), st.tuples(st.integers(0, 7), word, word, word, word), max_size=20
).map(lambda found: [(*key, *value) for key, value in sorted(found.items())])


@given(entries)
def test_entries_round_trip(given_entries: list[tuple[int, int, int, int, int, int, int]]) -> None:
    table = CpuidTable(reversed(given_entries))
    assert table.entries() == given_entries
    assert table.copy() == table
    assert table.diff(table.copy()) == []


@given(st.text(st.characters(codec="ascii", exclude_characters="\0 "), max_size=12))
def test_texts_round_trip(text: str) -> None:
    table = host()
    table.vendor, table.hypervisor, table.brand = text, text, text * 3
    assert (table.vendor, table.hypervisor, table.brand) == (text, text, text * 3)
    assert table[0x80000000].ebx == table[0].ebx


def test_fields() -> None:
    table = host()
    assert (table.vendor, table.hypervisor) == ("AuthenticAMD", "KVMKVMKVM")
    assert table.signature == (0x17, 1, 2)
    assert (table.physical_bits, table.linear_bits) == (48, 48)
    table.signature = (6, 0x8F, 8)
    assert table[1].eax == 0x000806F8
    assert table.signature == (6, 0x8F, 8)


@given(st.sampled_from([5, 6, 15, 16, 0x19, 0x10E]), st.integers(0, 255), st.integers(0, 15))
def test_signature_round_trip(family: int, model: int, stepping: int) -> None:
    table = CpuidTable()
    if family == 5:
        model &= 15
    table.signature = (family, model, stepping)
    assert table.signature == (family, model, stepping)


def test_bad_fields() -> None:
    table = host()
    for signature in ((0x10F, 0, 0), (6, 256, 0), (6, 0, 16), (5, 16, 0)):
        with pytest.raises(UsageError, match="CPUID"):
            table.signature = signature
    with pytest.raises(UsageError, match="12 ASCII"):
        table.vendor = "x" * 13
    with pytest.raises(UsageError, match="47 ASCII"):
        table.brand = "x" * 48
    with pytest.raises(UsageError, match="32-bit"):
        table.set(1, eax=1 << 32)
    with pytest.raises(UsageError, match="leaf"):
        table.set(-1)
    with pytest.raises(UsageError, match="APIC ID"):
        table.set_processor(-1)


def test_items() -> None:
    table = host()
    assert table[7] == table[7, 0] == Leaf(1, 0x209C01A9) and (7, 1) in table and 2 not in table
    table[2] = (1, 2, 3, 4)
    table[7, 2] = Leaf(edx=1)
    assert tuple(table[2]) == (1, 2, 3, 4) and table.has("psfd")
    flags = {(function, index): flags for function, index, flags, *_ in table.entries()}
    assert flags[2, 0] == 0 and flags[7, 2] == flags[7, 0] == 1
    assert CpuidTable().set(7).entries()[-1][2] == 1, "leaf 7 always has subleaves"
    del table[7]
    assert (7, 0) not in table and (7, 1) not in table and table.get(7) == Leaf()
    with pytest.raises(KeyError):
        table[7]
    with pytest.raises(KeyError):
        del table[7]


def test_setting_a_leaf_raises_the_highest() -> None:
    table = CpuidTable()
    table.set(0x15, eax=1).set(0x80000008, eax=0x3030).set(0x40000010, eax=1)
    assert (table[0].eax, table[0x80000000].eax, table[0x40000000].eax) == (0x15, 0x80000008, 0x40000010)
    table.limit(basic=7, extended=0x80000001)
    assert (table[0].eax, table[0x80000000].eax) == (7, 0x80000001)
    assert 0x15 not in table and 0x80000008 not in table and 0x40000010 in table


def test_lookup_like_the_instruction() -> None:
    table = host()
    assert table.lookup(1) == table[1] and table.lookup(1, 99) == table[1]  # no subleaves: ECX is ignored
    assert table.lookup(7, 99) == Leaf()
    assert table.lookup(0x7FFF) == Leaf()  # AMD: zeros
    table.vendor = "GenuineIntel"
    table.limit(basic=7)
    assert table.lookup(0x7FFF, 0) == table[7]  # Intel: the highest basic leaf
    assert table.lookup(0x80001234) == table[7]
    assert table.lookup(5) == Leaf()


def test_minimal_is_the_same_everywhere() -> None:
    bare = CpuidTable.preset("minimal")
    assert bare.vendor == "GenuineIntel" and bare.has("lm") and bare.has("sse2") and bare.has("hypervisor")
    assert not any(map(bare.has, ("avx", "vmx", "svm", "xsave", "kvm_steal_time", "rdtscp")))
    amd = CpuidTable.preset("minimal", AMD)
    assert amd.vendor == "AuthenticAMD" and (amd.physical_bits, amd.linear_bits) == (48, 48)
    assert amd.features() == [name for name in bare.features() if name == "hypervisor" or host().has(name)]
    assert amd[0x80000001].edx & 1, "AMD repeats fpu"
    old = CpuidTable.preset("minimal", host().hide("nx"))
    assert not old.has("nx")


def test_host_preset() -> None:
    supported = host()
    table = CpuidTable.preset("host", supported)
    assert table == supported and CpuidTable.preset("host", AMD) == supported
    table.hide("avx")
    assert supported.has("avx"), "the preset must not share the host's table"
    with pytest.raises(UsageError, match="supports"):
        CpuidTable.preset("host")
    with pytest.raises(UsageError, match="'guest': one of host, minimal"):
        CpuidTable.preset("guest")


def test_processors_differ_in_their_id_only() -> None:
    first, fourth = host().set_processor(0, 6), host().set_processor(3, 6)
    assert fourth[1].ebx == 3 << 24 | 6 << 16 | 0x0800
    assert fourth.has("ht") and not host().set_processor(0, 1).has("ht")
    assert fourth[0xB, 1] == Leaf(3, 6, 0x201, 3) and fourth[0xB, 0] == Leaf(0, 1, 0x100, 3)
    changed = {line.rsplit(" ", 3)[0] for line in first.diff(fourth)}
    assert changed == {"0x1.0 ebx", "0xb.0 edx", "0xb.1 edx", "0xb.2 edx"}


def test_diff_names_the_register() -> None:
    assert host().diff(host().force("la57")) == ["0x7.0 ecx 0x00000000 -> 0x00010000"]
