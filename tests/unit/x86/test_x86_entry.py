"""Entry states: pinned values, tables that agree with the registers, placement, refusals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.errors import GuestMemoryError, KvmpyError, UsageError
from kvmpy.x86 import (
    EntryState,
    Mapping,
    Segment,
    Tss32,
    Tss64,
    cpu_mode,
    explain_entry,
    layout,
    long_mode,
    protected_mode,
    real_mode,
    reset_vector,
    startup_ipi,
    translate,
)
from kvmpy.x86.descriptors import decode_idt, read_descriptors

MIB = 1 << 20


class Ram:
    """Guest memory with the tables of an entry state written to it."""

    def __init__(self, state: EntryState, size: int) -> None:
        self.data = bytearray(size)
        for address, data in state.memory:
            assert address + len(data) <= size, "tables outside memory"
            self.data[address : address + len(data)] = data
        self.state = state

    def read(self, address: int, length: int) -> bytes:
        assert address + length <= len(self.data)
        return bytes(self.data[address : address + length])

    def physical(self, virtual: int, **access: bool) -> int:
        s = self.state
        return translate(self.read, virtual, cr0=s.cr0, cr3=s.cr3, cr4=s.cr4, efer=s.efer, **access).physical

    def linear(self, virtual: int, length: int) -> bytes:
        return self.read(self.physical(virtual), length)


def assert_consistent(state: EntryState, size: int, ring: int = 0) -> Ram:
    """Every protected or long start must be legal, and reloading a selector must give the same segment."""
    assert explain_entry(state) == []
    ram, long = Ram(state, size), state.mode == "long"
    gdt = read_descriptors(ram.linear(state.gdt.base, state.gdt.limit + 1), long=long)
    for name, segment in state.segments.items():
        if segment.unusable:
            continue
        entry = gdt[segment.selector & ~7]
        assert isinstance(entry, Segment)
        if name == "tr":
            assert entry.type == 9, "the guest must be able to load the TSS itself"
            entry = entry.replace(type=0xB)
        assert entry.replace(selector=segment.selector) == segment, name
    assert state.segments["cs"].rpl == ring
    assert ram.physical(state.reg("rip"), user=ring == 3, execute=True) >= 0
    return ram


def test_real_mode() -> None:
    state = real_mode(0x1234, 0x5678, sp=0x7C00, dl=0x80, ds=0x9000, regs={"rax": 0xAA55})
    cs = state.segments["cs"]
    assert (state.mode, cs.selector, cs.base, cs.limit, cs.type) == ("real", 0x1234, 0x12340, 0xFFFF, 0xB)
    assert (state.reg("rip"), state.reg("rsp"), state.reg("rdx"), state.reg("rax")) == (
        0x5678,
        0x7C00,
        0x80,
        0xAA55,
    )
    assert state.segments["ds"].base == 0x90000 and state.segments["es"].base == 0
    assert state.cr0 == 0x10
    assert state.reg("rflags") == 2
    assert state.memory == []
    assert state.idt.base == 0 and state.idt.limit == 0x3FF
    assert real_mode(0, 0, interrupts=True).reg("rflags") == 0x202
    assert explain_entry(state) == []


def test_reset_vector_is_sixteen_bytes_below_four_gib() -> None:
    state = reset_vector(signature=0x806F8)
    assert state.segments["cs"].base + state.reg("rip") == 0xFFFFFFF0
    assert (state.segments["cs"].selector, state.cr0, state.reg("rdx")) == (0xF000, 0x60000010, 0x806F8)
    assert explain_entry(state) == []


def test_startup_ipi() -> None:
    state = startup_ipi(0x9A)
    assert state.segments["cs"].base + state.reg("rip") == 0x9A000
    with pytest.raises(UsageError, match="0-0xff"):
        startup_ipi(0x100)


@pytest.mark.parametrize("change", [{"cs": 0x10000}, {"ip": -1}, {"sp": 0x10000}, {"dl": 0x100}, {"ss": -1}])
def test_real_mode_refuses(change: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="outside 0-"):
        real_mode(**{"cs": 0, "ip": 0, **change})


def test_registers_are_checked() -> None:
    with pytest.raises(UsageError, match="no register 'eax'"):
        real_mode(0, 0, regs={"eax": 1})
    with pytest.raises(UsageError, match="rax"):
        real_mode(0, 0, regs={"rax": 1 << 64})


def test_long_mode_pinned() -> None:
    state = long_mode(0x100000, memory_size=64 * MIB)
    control = state.cr0, state.cr4, state.efer
    assert control == (0x80010033, 0x620, 0xD01)
    assert (state.cr3, state.reg("rsp"), state.reg("rip")) == (0x99000, 0x80000, 0x100000)
    assert {name: s.selector for name, s in state.segments.items()} == {
        "cs": 8, "ds": 16, "es": 16, "fs": 16, "gs": 16, "ss": 16, "tr": 0x40, "ldt": 0,
    }  # fmt: skip
    assert str(cpu_mode(state.cr0, state.efer, state.segments["cs"])) == "long mode, 64-bit code"
    ram = assert_consistent(state, 64 * MIB)
    for address in (0, 64 * MIB - 1, 0xFEE00000, 0xFFFFFFF0):
        assert ram.physical(address, write=True) == address
    assert all(at >= layout.TABLES_START and at + len(d) <= layout.TABLES_END for at, d in state.memory)


@pytest.mark.parametrize("page_size", [4096, 2 * MIB, 1024 * MIB])
@pytest.mark.parametrize("ring", [0, 3])
def test_long_mode_page_sizes(page_size: int, ring: int) -> None:
    state = long_mode(0x100000, memory_size=64 * MIB, page_size=page_size, ring=ring)
    ram = assert_consistent(state, 64 * MIB, ring)
    found = translate(ram.read, 0x100000, cr0=state.cr0, cr3=state.cr3, cr4=state.cr4, efer=state.efer)
    assert found.page_size == page_size and found.user == (ring == 3)


def test_long_mode_five_levels() -> None:
    state = long_mode(0x100000, memory_size=64 * MIB, levels=5)
    assert state.cr4 & 1 << 12
    assert_consistent(state, 64 * MIB)
    with pytest.raises(UsageError, match="4 or 5"):
        long_mode(0, memory_size=MIB, levels=3)


def test_ring_three_ports() -> None:
    def bitmap(state: EntryState) -> bytes:
        ram, tr = Ram(state, 16 * MIB), state.segments["tr"]
        return Tss64.decode(ram.linear(tr.base, tr.limit + 1)).bitmap

    every = long_mode(0x100000, memory_size=16 * MIB, ring=3, ports=True)
    assert bitmap(every) == bytes(8192) + b"\xff"
    some = long_mode(0x100000, memory_size=16 * MIB, ring=3, ports=[range(0x3F8, 0x400)])
    assert bitmap(some)[0x7E:0x81] == b"\xff\x00\xff"
    none = long_mode(0x100000, memory_size=16 * MIB, ring=3)
    assert bitmap(none) == b"" and none.segments["tr"].limit == 0x67
    for state in (every, some, none):
        ram = assert_consistent(state, 16 * MIB, 3)
        tss = Tss64.decode(ram.linear(state.segments["tr"].base, 104))
        stack_page = tss.rsp[0] - 0x1000
        assert all(not state.collides(a, 1) for a in (stack_page, tss.rsp[0] - 1)), (
            "its stack lies in a table"
        )


def test_selectors_suit_syscall_and_sysenter() -> None:
    state = long_mode(0x100000, memory_size=16 * MIB)
    ram = Ram(state, 16 * MIB)
    gdt = read_descriptors(ram.linear(state.gdt.base, state.gdt.limit + 1), long=True)

    def kind(selector: int) -> tuple[bool, int, int]:
        entry = gdt[selector]
        assert isinstance(entry, Segment)
        return entry.is_code, entry.l, entry.dpl

    star_kernel, star_user, sysenter = layout.CODE, layout.USER_CODE, layout.CODE
    assert kind(star_kernel) == (True, 1, 0) and kind(star_kernel + 8) == (False, 0, 0)
    assert kind(star_user + 16) == (True, 1, 3) and kind(star_user + 8) == (False, 0, 3)
    assert kind(sysenter + 32) == (True, 1, 3) and kind(sysenter + 40) == (False, 0, 3)
    assert gdt[layout.CODE_NARROW].db == 1 and gdt[layout.CODE_NARROW].l == 0  # type: ignore[union-attr]


def test_idt_from_handlers() -> None:
    state = long_mode(0x100000, memory_size=16 * MIB, idt={3: 0x2000, 14: 0xFFFF_8000_0000_0000})
    ram = assert_consistent(state, 16 * MIB)
    gates = decode_idt(ram.linear(state.idt.base, state.idt.limit + 1), long=True)
    assert {v: (g.offset, g.selector, g.dpl) for v, g in gates.items()} == {
        3: (0x2000, 8, 3),
        14: (0xFFFF_8000_0000_0000, 8, 0),
    }
    assert state.idt.limit == 0xFFF


def test_higher_half_map_shows_the_descriptors_too() -> None:
    high = 0xFFFF_FFFF_8000_0000
    state = long_mode(high + 0x1000, memory_size=MIB, map=[Mapping(high, 0, MIB)], stack=high + 0x8000)
    assert state.gdt.base == high + state.memory[0][0]
    assert_consistent(state, MIB)
    lonely = long_mode(high, memory_size=MIB, map=[Mapping(high, 0, 0x1000, executable=True)])
    ram = assert_consistent(lonely, MIB)
    with pytest.raises(KvmpyError):
        ram.physical(0x1000)


def test_global_pages_switch_pge_on() -> None:
    state = long_mode(0, memory_size=MIB, map=[Mapping(0, 0, MIB, global_page=True)])
    assert state.cr4 & 1 << 7


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("kind", ["flat", "4M", "4K", "pae", "pae-4K"])
def test_protected_mode(kind: str, ring: int) -> None:
    options: dict[str, dict[str, object]] = {
        "flat": {},
        "4M": {"paging": True},
        "4K": {"paging": True, "page_size": 4096},
        "pae": {"paging": True, "pae": True},
        "pae-4K": {"paging": True, "pae": True, "page_size": 4096},
    }
    state = protected_mode(0x100000, memory_size=16 * MIB, ring=ring, ports=True, **options[kind])  # type: ignore[arg-type]
    ram = assert_consistent(state, 16 * MIB, ring)
    assert state.cr0 == (0x33 if kind == "flat" else 0x80010033)
    assert state.cr4 == {"f": 0x600, "4": 0x610, "p": 0x620}[kind[0]]
    assert str(cpu_mode(state.cr0, state.efer, state.segments["cs"])) == "protected mode, 32-bit code"
    tr = state.segments["tr"]
    tss = Tss32.decode(ram.linear(tr.base, tr.limit + 1))
    assert tss.stacks[0][0] == layout.DATA and tss.bitmap == bytes(8192) + b"\xff"
    assert ram.physical(0xFEE00000, write=True, user=ring == 3) == 0xFEE00000


def test_protected_mode_refuses() -> None:
    with pytest.raises(UsageError, match="paging=True"):
        protected_mode(0, pae=True)
    with pytest.raises(UsageError, match="entry"):
        protected_mode(1 << 32)
    with pytest.raises(UsageError, match="no pages of 0x200000"):
        protected_mode(0, paging=True, page_size=2 * MIB)
    with pytest.raises(UsageError, match="stack"):
        protected_mode(0, stack=1 << 32)


@pytest.mark.parametrize(
    ("entry", "options", "error", "words"),
    [
        (1 << 47, {}, UsageError, "canonical"),
        (5 << 30, {}, UsageError, "isn't in any mapping"),
        (0, {"ring": 1}, UsageError, "ring 1"),
        (0, {"memory_size": 0}, UsageError, "memory size 0"),
        (0, {"memory_size": -4096}, UsageError, "memory size -4096"),
        (0, {"page_size": 8192}, UsageError, "no pages of 0x2000"),
        (0, {"tables_at": 0x1234}, UsageError, "multiple of 0x1000"),
        (0, {"tables_at": 64 * MIB}, GuestMemoryError, "0x4000000 bytes of memory"),
        (0, {"tables_at": 64 * MIB - 0x1000}, GuestMemoryError, "don't fit"),
        (0, {"memory_size": 0x4000}, GuestMemoryError, "no room for"),
        (0, {"stack": 1 << 50}, UsageError, "canonical"),
        (0, {"map": [Mapping(0, 0, 0x1000, executable=False)]}, UsageError, "isn't executable"),
        (0, {"map": [Mapping(0, 0, 0x1000)], "ring": 3}, UsageError, "isn't a user page"),
        (0, {"map": [Mapping(0, 0, MIB), Mapping(0x1000, 0, 0x1000)]}, UsageError, "overlaps"),
        (0, {"map": [Mapping(0, 0x800, 0x1000)]}, UsageError, "multiples"),
        (0, {"ports": [range(0x10001)]}, UsageError, "outside 0-0xffff"),
    ],
)
def test_long_mode_refuses(
    entry: int, options: dict[str, object], error: type[KvmpyError], words: str
) -> None:
    with pytest.raises(error, match=words):
        long_mode(entry, **{"memory_size": 64 * MIB, **options})  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(8, 64 * 256),
    st.lists(st.tuples(st.integers(0, 64 * MIB), st.integers(0, 4 * MIB)), max_size=5),
    st.sampled_from([4096, 2 * MIB, 1024 * MIB]),
    st.sampled_from([0, 3]),
)
def test_tables_keep_clear_of_the_image(
    pages: int, avoid: list[tuple[int, int]], page_size: int, ring: int
) -> None:
    size = pages * 4096
    try:
        state = long_mode(0, memory_size=size, avoid=avoid, page_size=page_size, ring=ring)
    except GuestMemoryError:
        return
    for start, length in avoid:
        assert not length or state.collides(start, length) is None
    for at, data in state.memory:
        assert at + len(data) <= layout.LEGACY_START or at >= layout.HIGH_MEMORY
    stack = state.reg("rsp")
    assert 0 < stack <= size and not state.collides(stack - 64, 64)
    assert_consistent(state, size, ring)


@pytest.mark.parametrize(
    ("memory_size", "avoid", "expected"),
    [
        (64 * MIB, [], 0x9B000),
        (64 * MIB, [(0x9E000, 1)], 0x9A000),
        (64 * MIB, [(0x100000, 0x1000)], 0x9B000),
        (64 * MIB, [(0x1000, 0x9E000)], 64 * MIB - 0x4000),
        (64 * MIB, [(0x1000, 0x9E000), (63 * MIB, MIB)], 63 * MIB - 0x4000),
        (64 * MIB, [(0x82000, 0x1D000)], 64 * MIB - 0x4000),
        (MIB, [(0x80000, 0x1F000)], 0x7C000),
        (0x10000, [], 0xC000),
        (0x10000, [(0xE000, 0x100)], 0xA000),
    ],
)
def test_placement(memory_size: int, avoid: list[tuple[int, int]], expected: int) -> None:
    assert layout.place_tables(0x4000, memory_size, avoid) == expected


@pytest.mark.parametrize(
    ("memory_size", "taken", "expected"),
    [
        (64 * MIB, [], 0x80000),
        (0x10000, [(0xC000, 0x4000)], 0xC000),
        (64 * MIB, [(0x1000, 0x7F000)], 0x9F000),
        (64 * MIB, [(0x1000, 0x9E000)], 64 * MIB),
        (64 * MIB, [(0x1000, 0x9E000), (63 * MIB, MIB)], 63 * MIB),
        (0x4000, [(0x2000, 0x2000)], 0x2000),
        (0x8000, [(0x1000, 0x7000)], 0x1000),
    ],
)
def test_default_stack(memory_size: int, taken: list[tuple[int, int]], expected: int) -> None:
    assert layout.default_stack(memory_size, taken) == expected


def test_stack_keeps_clear_of_the_image() -> None:
    state = long_mode(0x1000, memory_size=64 * MIB, avoid=[(0x1000, 0x90000)])
    assert state.reg("rsp") > 0x91000 + layout.STACK_ROOM - 1
    assert_consistent(state, 64 * MIB)


def test_no_room() -> None:
    with pytest.raises(GuestMemoryError, match="no room for 0x4000"):
        layout.place_tables(0x4000, 64 * MIB, [(0, 64 * MIB)])
    with pytest.raises(GuestMemoryError, match="no room for a stack"):
        layout.default_stack(64 * MIB, [(0, 64 * MIB)])


def test_explain_entry_sees_overlapping_tables() -> None:
    state = long_mode(0, memory_size=MIB)
    state.memory.append((state.memory[0][0] + 8, b"xx"))
    assert any("overlap" in line for line in explain_entry(state))


def test_importing_entry_states_pulls_in_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys; from kvmpy.x86 import long_mode; long_mode(0, memory_size=1<<20); print(*sys.modules)"
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True
    )
    after = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(after.stdout.split()) - set(before.stdout.split())
    heavy = {"typing", "re", "enum", "dataclasses", "inspect", "ctypes", "json", "collections", "functools"}
    assert not loaded & heavy
    assert {"kvmpy.x86.cpuid", "kvmpy.x86.walker", "kvmpy.x86.msrs", "kvmpy.x86.explain"}.isdisjoint(loaded)
