"""Page tables: the builder held against the walker, the walker against entries written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.errors import UsageError
from kvmpy.x86 import Mapping, PageTables, TranslationFault, mapped, translate
from kvmpy.x86.paging import GIB1, KIB4, MIB2, MIB4, SCHEMES, identity

AT = 0x10000
NX = 1 << 63
PE_PG_WP = 0x80010001

Control = dict[str, int]


def control(scheme: str, **changes: int) -> Control:
    base = {
        "32-bit": {"cr4": 0x10, "efer": 0},
        "pae": {"cr4": 0x20, "efer": 0x800},
        "4-level": {"cr4": 0x20, "efer": 0xD00},
        "5-level": {"cr4": 0x1020, "efer": 0xD00},
    }[scheme]
    return {"cr0": PE_PG_WP, "cr3": AT, **base, **changes}


def reader(data: bytes, at: int = AT) -> Callable[[int, int], bytes]:
    def read(address: int, length: int) -> bytes:
        assert at <= address and address + length <= at + len(data), f"outside the tables: {address:#x}"
        return data[address - at : address - at + length]

    return read


def memory(entries: dict[int, int], width: int = 8) -> Callable[[int, int], bytes]:
    """Guest memory of zeros but for these entries."""

    def read(address: int, length: int) -> bytes:
        return b"".join(
            entries.get(at, 0).to_bytes(width, "little") for at in range(address, address + length, width)
        )

    return read


# builder against walker


@st.composite
def layouts(draw: st.DrawFn, scheme: str) -> list[Mapping]:
    """Mappings that don't overlap: each starts some way behind the one before."""
    kind = SCHEMES[scheme]
    half = 1 << kind.virtual_bits - 1
    top = 1 << kind.virtual_bits
    place = draw(st.sampled_from([0, half - (1 << 34), half])) if kind.canonical_bits else 0
    found = []
    for _ in range(draw(st.integers(1, 5))):
        size = draw(st.sampled_from([None, *kind.leaves]))
        unit = size or KIB4
        place = -(-(place + draw(st.integers(0, 600)) * KIB4) // unit) * unit
        length = unit * draw(st.integers(1, 3 if unit > KIB4 else 1200))
        if (place < half < place + length and kind.canonical_bits) or place + length > top:
            break
        limit = 32 if kind.entry_bytes == 4 else 40
        physical = draw(st.integers(0, ((1 << limit) - length) // unit)) * unit
        if not size and draw(st.booleans()):
            physical = place & (1 << limit - 1) - 1  # aligned alike, so that large pages get used
        high = (1 << 64) - top if kind.canonical_bits and place >= half else 0
        found.append(
            Mapping(
                place + high,
                physical,
                length,
                writable=draw(st.booleans()),
                user=draw(st.booleans()),
                executable=draw(st.booleans()) if kind.nx else True,
                page_size=size,
                global_page=draw(st.booleans()),
                cache=draw(st.sampled_from(["write-back", "write-through", "uncached"])),
            )
        )
        place += length
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_walker_finds_what_the_builder_mapped(scheme: str, data: st.DataObject) -> None:
    maps = data.draw(layouts(scheme))
    cap = data.draw(st.sampled_from(SCHEMES[scheme].leaves))
    tables = PageTables(scheme, page_size=cap)
    for mapping in maps:
        tables.map(mapping)
    encoded = tables.encode(AT)
    assert len(encoded) == tables.size
    read, state = reader(encoded), control(scheme)
    for mapping in maps:
        offset = data.draw(st.integers(0, mapping.length - 1))
        for probe in {0, mapping.length - 1, offset}:
            found = translate(read, mapping.virtual + probe, user=mapping.user, **state)
            assert found.physical == mapping.physical + probe
            assert (found.writable, found.user, found.executable) == (
                mapping.writable,
                mapping.user,
                mapping.executable,
            )
            assert found.page_size == mapping.page_size if mapping.page_size else found.page_size <= cap
    for mapping in maps:
        for outside in (mapping.virtual - 1, mapping.end):
            inside = any(m.virtual <= outside < m.end for m in maps)
            if inside or not 0 <= outside < 1 << (64 if SCHEMES[scheme].canonical_bits else 32):
                continue
            with pytest.raises(TranslationFault):
                translate(read, outside, **state)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_listing_shows_exactly_what_was_mapped(scheme: str, data: st.DataObject) -> None:
    maps = data.draw(layouts(scheme))
    tables = PageTables(scheme) if scheme != "32-bit" else PageTables(scheme, page_size=MIB4)
    for mapping in maps:
        tables.map(mapping)
    listed = list(mapped(reader(tables.encode(AT)), **control(scheme)))
    assert sum(m.length for m in listed) == sum(m.length for m in maps)
    assert all(one.end <= two.virtual for one, two in pairwise(listed))
    for piece in listed:
        mine = tables.find(piece.virtual)
        assert mine is not None and piece.physical - piece.virtual == mine.physical - mine.virtual
        assert (piece.writable, piece.user, piece.executable, piece.cache, piece.global_page) == (
            mine.writable,
            mine.user,
            mine.executable,
            mine.cache,
            mine.global_page,
        )


def test_listing_joins_only_what_continues() -> None:
    tables = PageTables("4-level", page_size=KIB4)
    for mapping in (
        Mapping(0x1000, 0x5000, 0x2000),
        Mapping(0x3000, 0x7000, 0x1000),
        Mapping(0x4000, 0x9000, 0x1000),
        Mapping(0x5000, 0xA000, 0x1000, writable=False),
        Mapping(0x7000, 0xB000, 0x1000, writable=False),
    ):
        tables.map(mapping)
    listed = [str(m) for m in mapped(reader(tables.encode(AT)), **control("4-level"))]
    assert listed == [
        "0x1000-0x3fff -> 0x5000",
        "0x4000-0x4fff -> 0x9000",
        "0x5000-0x5fff -> 0xa000",
        "0x7000-0x7fff -> 0xb000",
    ]


def test_where_physical_memory_is_seen() -> None:
    tables = PageTables()
    tables.map(Mapping(0x1000, 0x400000, 0x2000))
    assert (tables.virtual_of(0x401000, 0x1000), tables.virtual_of(0x401000, 0x1001)) == (0x2000, None)
    tables.map(Mapping(0x400000, 0x400000, 0x2000))
    assert tables.virtual_of(0x401000, 0x1000) == 0x401000, "the identity map comes first"


# pinned bytes


def words(data: bytes, page: int, width: int = 8) -> list[int]:
    raw = data[page * KIB4 : (page + 1) * KIB4]
    return [int.from_bytes(raw[at : at + width], "little") for at in range(0, KIB4, width)]


def test_four_level_two_mib_entries() -> None:
    tables = PageTables("4-level", page_size=MIB2, touched=False)
    tables.map(Mapping(0, 0, 2 * MIB2))
    tables.map(Mapping(0xFFFF_FFFF_8000_0000, 0x40_0000, MIB2, writable=False, user=True, executable=False))
    data = tables.encode(AT)
    assert tables.size == 5 * KIB4
    root = words(data, 0)
    assert root[0] == 0x11007 and root[511] == 0x12007 and sum(map(bool, root)) == 2
    assert words(data, 1)[0] == 0x13007 and words(data, 2)[510] == 0x14007
    assert words(data, 3)[:3] == [0x83, 0x200083, 0]
    assert words(data, 4)[0] == NX | 0x400085


def test_four_kib_and_one_gib_entries() -> None:
    tables = PageTables("4-level", page_size=GIB1)
    tables.map(Mapping(GIB1, 4 * GIB1, GIB1, global_page=True))
    tables.map(Mapping(0x1000, 0x5000, 0x1000, cache="uncached"))
    data = tables.encode(AT)
    assert words(data, 1)[1] == 0x1_0000_01E3
    assert words(data, 3)[1] == 0x507B


def test_thirty_two_bit_entries() -> None:
    tables = PageTables("32-bit", page_size=MIB4)
    tables.map(Mapping(0, 0, MIB4))
    tables.map(Mapping(0xFFC0_0000, 0x3000, 0x2000))
    tables.map(Mapping(MIB4, 0x12_0040_0000, MIB4))  # PSE-36: bits 39-32 of the address in bits 20-13
    data = tables.encode(AT)
    root = words(data, 0, 4)
    assert (root[0], root[1], root[1023]) == (0xE3, 0x004240E3, 0x11027)
    assert words(data, 1, 4)[:3] == [0x3063, 0x4063, 0]
    found = translate(reader(data), 0x40_1234, **control("32-bit"))
    assert (found.physical, found.page_size) == (0x12_0040_1234, MIB4)


def test_pae_root_entries_have_only_the_present_bit() -> None:
    tables = PageTables("pae", page_size=MIB2)
    tables.map(Mapping(3 * GIB1, 0, MIB2))
    root = words(tables.encode(AT), 0)
    assert root[:4] == [0, 0, 0, 0x11001] and not any(root[4:])


def test_five_levels_reach_further() -> None:
    tables = PageTables("5-level")
    tables.map(Mapping(1 << 50, 0, MIB2))
    assert translate(reader(tables.encode(AT)), (1 << 50) + 5, **control("5-level")).physical == 5
    with pytest.raises(UsageError, match="canonical"):
        PageTables("4-level").map(Mapping(1 << 50, 0, MIB2))


# the walker against entries by hand


def long_tables(leaf: int, level: int = 1, flags: int = 7) -> Callable[[int, int], bytes]:
    """Virtual 0 through one entry a level; the ``level`` one is ``leaf``."""
    places = {4: 0x10000, 3: 0x11000, 2: 0x12000, 1: 0x13000}
    entries = {places[n]: places[n - 1] | flags for n in (4, 3, 2)}
    entries[places[level]] = leaf
    return memory(entries)


@pytest.mark.parametrize(
    ("leaf", "level", "access", "code", "blamed"),
    [
        (0, 1, {}, 0, 1),
        (0, 4, {"write": True}, 2, 4),
        (0, 3, {"user": True}, 4, 3),
        (0, 1, {"execute": True}, 0x10, 1),
        (0x5005, 1, {"write": True, "user": True}, 7, 0),
        (0x5005, 1, {"write": True}, 3, 0),
        (0x5003, 1, {"user": True}, 5, 0),
        (NX | 0x5007, 1, {"execute": True, "user": True}, 0x15, 0),
        (0x13087, 4, {}, 9, 4),  # PS in the root is reserved
        (0x202087, 2, {}, 9, 2),  # address bit below 2 MiB
        (0x100087, 3, {"user": True}, 0xD, 3),  # below 1 GiB
    ],
)
def test_page_fault_error_codes(
    leaf: int, level: int, access: dict[str, bool], code: int, blamed: int
) -> None:
    with pytest.raises(TranslationFault) as caught:
        translate(long_tables(leaf, level), 0, **control("4-level"), **access)
    assert (caught.value.vector, caught.value.error_code, caught.value.level) == (14, code, blamed)


def test_rights_are_those_of_all_levels_together() -> None:
    found = translate(long_tables(0x5007, flags=1), 0x123, **control("4-level"))
    assert (found.physical, found.writable, found.user) == (0x5123, False, False)
    assert [entry for _, entry in found.entries] == [0x11001, 0x12001, 0x13001, 0x5007]
    found = translate(long_tables(0x5007, flags=7 | NX), 0, **control("4-level"))
    assert not found.executable and found.writable and found.user


def test_supervisor_writes_read_only_pages_without_wp() -> None:
    read = long_tables(0x5001)
    assert translate(read, 0, **control("4-level", cr0=0x80000001), write=True).physical == 0x5000
    with pytest.raises(TranslationFault, match=r"CR0\.WP"):
        translate(read, 0, **control("4-level"), write=True)


def test_smep_and_smap() -> None:
    read, smep, smap = long_tables(0x5007), 1 << 20, 1 << 21
    for changes, access in (({"cr4": 0x20 | smep}, {"execute": True}), ({"cr4": 0x20 | smap}, {})):
        with pytest.raises(TranslationFault) as caught:
            translate(read, 0, **control("4-level", **changes), **access)
        assert caught.value.error_code == (0x11 if access else 1)
        assert translate(read, 0, **control("4-level", **changes), user=True, **access).physical == 0x5000
    ac = control("4-level", cr4=0x20 | smap)
    assert translate(read, 0, **ac, rflags=0x40002).physical == 0x5000


def test_no_execute_is_reserved_without_nxe() -> None:
    with pytest.raises(TranslationFault) as caught:
        translate(long_tables(NX | 0x5007), 0, **control("4-level", efer=0x500))
    assert caught.value.error_code == 9


def test_physical_bits_are_reserved_above_the_width() -> None:
    read = long_tables(1 << 40 | 0x5007)
    assert translate(read, 0, **control("4-level"), physical_bits=41).physical == 1 << 40 | 0x5000
    with pytest.raises(TranslationFault, match="reserved bits 0x10000000000"):
        translate(read, 0, **control("4-level"), physical_bits=40)


def test_large_pages_without_pse_are_tables() -> None:
    read = memory({AT: 0x12083, 0x12000: 0x5003}, 4)
    assert translate(read, 0x10, **control("32-bit", cr4=0)).physical == 0x5010
    with pytest.raises(
        TranslationFault
    ):  # with PSE it is a 4 MiB page with address bits 12-20 set, bit 21 clear
        translate(memory({AT: 0x200083}, 4), 0, **control("32-bit"))


def test_pae_root_ignores_no_permissions_but_checks_reserved_bits() -> None:
    read = memory({AT: 0x12001, 0x12000: 0x200087})
    assert translate(read, 5, **control("pae"), user=True, write=True).physical == 0x200005
    with pytest.raises(TranslationFault) as caught:
        translate(memory({AT: 0x12003, 0x12000: 0x87}), 0, **control("pae"))
    assert caught.value.error_code == 9


def test_addresses_that_are_no_addresses() -> None:
    with pytest.raises(TranslationFault) as caught:
        translate(memory({}), 1 << 47, **control("4-level"))
    assert (caught.value.vector, caught.value.address) == (13, 1 << 47)
    with pytest.raises(UsageError, match="64-bit"):
        translate(memory({}), -1, **control("4-level"))
    with pytest.raises(UsageError, match="4 GiB"):
        translate(memory({}), 1 << 32, **control("pae"))


def test_paging_off_is_identity() -> None:
    assert translate(memory({}), 0x12345678, cr0=1, cr3=0, cr4=0, efer=0, write=True).physical == 0x12345678
    assert list(mapped(memory({}), cr0=1, cr3=0, cr4=0, efer=0)) == []


def test_error_of_the_memory_comes_through() -> None:
    def read(address: int, length: int) -> bytes:
        raise IndexError(address)

    with pytest.raises(IndexError):
        translate(read, 0, **control("4-level"))


# the builder's refusals


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        (Mapping(0x100, 0, 0x1000), "multiples of 0x1000"),
        (Mapping(0, 0x800, 0x1000), "multiples of 0x1000"),
        (Mapping(0, 0, 0), "multiples"),
        (Mapping(0, 0, -0x1000), "multiples"),
        (Mapping(0x1000, 0, MIB2, page_size=MIB2), "multiples of 0x200000"),
        (Mapping(0, 0, MIB4, page_size=MIB4), "no pages of 0x400000"),
        (Mapping((1 << 47) - 0x1000, 0, 0x2000), "canonical"),
        (Mapping(1 << 47, 0, 0x1000), "canonical"),
        (Mapping((1 << 64) - 0x1000, 0, 0x2000), "canonical"),
        (Mapping(-0x1000, 0, 0x1000), "canonical"),
        (Mapping(0, 1 << 52, 0x1000), "physical addresses end at 0x10000000000000"),
        (Mapping(0, -0x1000, 0x1000), "physical addresses"),
        (Mapping(0x200000, 0, 0x1000), "overlaps 0x200000-0x3fffff -> 0x600000"),
        (Mapping(0x1FF000, 0, 0x2000), "overlaps"),
        (Mapping(0x3FF000, 0, 0x1000), "overlaps"),
        (Mapping(0, 0, 0x1000, cache="odd"), "cache 'odd'"),
    ],
)
def test_bad_mappings(mapping: Mapping, words: str) -> None:
    tables = PageTables("4-level")
    tables.map(Mapping(0x200000, 0x600000, 0x200000))
    before = tables.encode(AT)
    with pytest.raises(UsageError, match=words):
        tables.map(mapping)
    assert tables.encode(AT) == before


@pytest.mark.parametrize(
    ("scheme", "mapping", "words"),
    [
        ("32-bit", Mapping(0, 0, 0x1000, executable=False), "non-executable"),
        ("32-bit", Mapping(0, 1 << 32, 0x1000), "end at 0x100000000 "),
        ("32-bit", Mapping(0, 1 << 40, MIB4), "end at 0x10000000000 "),
        ("32-bit", Mapping(0xFFFFF000, 0, 0x2000), "outside 0-0xffffffff"),
        ("pae", Mapping(1 << 32, 0, 0x1000), "outside 0-0xffffffff"),
    ],
)
def test_bad_legacy_mappings(scheme: str, mapping: Mapping, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PageTables(scheme, page_size=SCHEMES[scheme].leaves[0]).map(mapping)


def test_other_refusals() -> None:
    with pytest.raises(UsageError, match="no paging scheme '3-level'"):
        PageTables("3-level")
    with pytest.raises(UsageError, match="0x1000, 0x200000, 0x40000000"):
        PageTables("4-level", page_size=MIB4)
    for address in (0x800, -0x1000, 1 << 52):
        with pytest.raises(UsageError, match="page-aligned"):
            PageTables().encode(address)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5 * GIB1), st.sampled_from([(s, p) for s, k in SCHEMES.items() for p in k.leaves]))
def test_identity_covers_ram_and_devices(memory_size: int, kind: tuple[str, int]) -> None:
    scheme, page_size = kind
    if page_size == KIB4:
        memory_size %= 64 * MIB2
    maps = identity(memory_size, page_size=page_size, scheme=scheme)
    assert maps[0].virtual == 0 if maps else memory_size == 0
    assert all(m.virtual == m.physical for m in maps)
    assert all(one.end == two.virtual for one, two in pairwise(maps))
    narrow = scheme in ("32-bit", "pae")
    assert maps[-1].end >= (4 * GIB1 if narrow else max(memory_size, 4 * GIB1))
    assert not narrow or maps[-1].end == 4 * GIB1
    tables = PageTables(scheme, page_size=page_size)
    for mapping in maps:
        tables.map(mapping)
    assert tables.size <= 1 << 20
