"""Descriptors, gates and TSS: pinned bytes from the manuals, and round trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import UsageError
from kvmpy.x86 import descriptors, segments
from kvmpy.x86.descriptors import Gate, Gdt, Tss32, Tss64
from kvmpy.x86.segments import Segment

bit = st.integers(0, 1)


@st.composite
def segment(draw: st.DrawFn, system: bool = False) -> Segment:
    g = draw(bit)
    limit = draw(st.integers(0, 0xFFFFF))
    return Segment(
        selector=draw(st.integers(0, 0xFFFF)),
        base=draw(st.integers(0, (1 << (64 if system else 32)) - 1)),
        limit=limit << 12 | 0xFFF if g else limit,
        type=draw(st.integers(0, 15)),
        s=0 if system else 1,
        dpl=draw(st.integers(0, 3)),
        present=draw(bit),
        avl=draw(bit),
        l=draw(bit),
        db=draw(bit),
        g=g,
    )


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        # the values every boot loader writes into its GDT
        (segments.flat_code(8, bits=32), 0x00CF9B000000FFFF),
        (segments.flat_data(0x10), 0x00CF93000000FFFF),
        (segments.flat_code(8, bits=64), 0x00AF9B000000FFFF),
        (segments.flat_code(0x1B, bits=64, dpl=3), 0x00AFFB000000FFFF),
        (segments.flat_data(0x23, dpl=3), 0x00CFF3000000FFFF),
        (segments.flat_code(8, bits=16), 0x00009B000000FFFF),
        (segments.flat_data(8, bits=16), 0x000093000000FFFF),
        (segments.task(0x40, 0x12345678, 0x67, busy=False), 0x1200893456780067),
        (segments.unusable(), 0),
    ],
)
def test_known_descriptors(made: Segment, expected: int) -> None:
    assert segments.encode(made) == expected.to_bytes(8, "little")


def test_wide_descriptor_holds_the_whole_base() -> None:
    tss = segments.task(0x40, 0xFFFF_8000_1234_5678, 0x67, busy=False)
    low, high = 0x1200893456780067, 0xFFFF8000
    assert segments.encode(tss, wide=True) == low.to_bytes(8, "little") + high.to_bytes(8, "little")


@given(segment())
def test_segment_round_trip(made: Segment) -> None:
    assert segments.decode(segments.encode(made), made.selector) == made


@given(segment(system=True))
def test_system_segment_round_trip(made: Segment) -> None:
    if made == Segment(made.selector):
        return  # all zero is the null descriptor
    assert segments.decode(segments.encode(made, wide=True), made.selector) == made


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Segment(limit=0x100000, present=1), "needs g=1"),
        (Segment(limit=0x1000, g=1, present=1), "must end in 0xfff"),
        (Segment(base=1 << 32, present=1), "32 bits"),
        (Segment(limit=1 << 32, g=1, present=1), "0-0xffffffff"),
        (Segment(type=16, present=1), "type 16"),
        (Segment(dpl=4, present=1), "dpl 4"),
    ],
)
def test_what_does_not_fit_is_refused(bad: Segment, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        segments.encode(bad)


def test_code_can_not_be_wide() -> None:
    with pytest.raises(UsageError, match="16 bytes"):
        segments.encode(segments.flat_code(8, bits=64), wide=True)
    with pytest.raises(UsageError, match="8 or 16"):
        segments.decode(bytes(7))


def test_segments_are_values() -> None:
    one = segments.flat_code(8, bits=64)
    assert one == segments.flat_code(8, bits=64) and hash(one) == hash(segments.flat_code(8, bits=64))
    assert one.replace(dpl=3) != one and one.replace(dpl=3).replace(dpl=0) == one
    with pytest.raises(AttributeError, match="can't be changed"):
        one.base = 1
    with pytest.raises(TypeError):
        one.replace(colour=1)
    with pytest.raises(UsageError, match="0-0xffff"):
        segments.real(0x10000)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        # 0x8e00 and 0xef00: the access words of every tutorial's interrupt gate and ring-3 trap gate
        (Gate(0x12345678, 8, 32), "7856 0800 008e 3412"),
        (Gate(0x12345678, 8, 32, "trap", dpl=3), "7856 0800 00ef 3412"),
        (Gate(0, 0x28, 32, "task"), "0000 2800 0085 0000"),
        (Gate(0x1234, 8, 16), "3412 0800 0086 0000"),
        (Gate(0x1234, 8, 16, "call", parameters=3), "3412 0800 0384 0000"),
        (Gate(0xFFFF_8000_1234_5678, 8, ist=2), "7856 0800 028e 3412 0080ffff 00000000"),
    ],
)
def test_known_gates(gate: Gate, expected: str) -> None:
    assert descriptors.encode_gate(gate) == bytes.fromhex(expected)
    assert descriptors.decode_gate(bytes.fromhex(expected)) == gate


@st.composite
def gates(draw: st.DrawFn, bits: int | None = None) -> Gate:
    bits = bits or draw(st.sampled_from([16, 32, 64]))
    kind = draw(st.sampled_from(["interrupt", "trap"] + (["task"] if bits == 32 else [])))
    offset = draw(st.integers(0, (1 << min(bits, 47)) - 1))
    if bits == 64 and draw(st.booleans()):
        offset |= 0xFFFF_8000_0000_0000
    return Gate(
        offset,
        draw(st.integers(0, 0xFFFF)),
        bits,
        kind,
        draw(st.integers(0, 3)),
        draw(bit),
        ist=draw(st.integers(0, 7)) if bits == 64 else 0,
        parameters=0 if bits == 64 else draw(st.integers(0, 31)),
    )


@given(gates())
def test_gate_round_trip(gate: Gate) -> None:
    assert descriptors.decode_gate(descriptors.encode_gate(gate)) == gate


@given(st.dictionaries(st.integers(0, 255), gates(64)))
def test_idt_round_trip(table: dict[int, Gate]) -> None:
    present = {vector: gate for vector, gate in table.items() if gate.present}
    assert descriptors.decode_idt(descriptors.encode_idt(table), long=True) == present


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (Gate(0x10000, 8, 16), "16 bits"),
        (Gate(1 << 47, 8), "canonical"),
        (Gate(0, 8, ist=8), "ist 0-7"),
        (Gate(0, 8, 32, ist=1), "parameters 0-31 only"),
        (Gate(0, 8, 64, "task"), "no 64-bit task gate"),
        (Gate(0, 0x10000), "selector"),
    ],
)
def test_bad_gates(gate: Gate, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        descriptors.encode_gate(gate)


def test_bad_idts() -> None:
    with pytest.raises(UsageError, match="outside 0-31"):
        descriptors.encode_idt({32: Gate(0, 8)}, vectors=32)
    with pytest.raises(UsageError, match="at once"):
        descriptors.encode_idt({0: Gate(0, 8), 1: Gate(0, 8, 32)})
    with pytest.raises(UsageError, match="call gate"):
        descriptors.encode_idt({0: Gate(0, 8, 32, "call")})
    with pytest.raises(UsageError, match="isn't a gate"):
        descriptors.decode_gate(segments.encode(segments.flat_data(0)))


def test_gdt_gives_selectors_and_reads_back() -> None:
    gdt = Gdt()
    code = gdt.add(segments.flat_code(0, bits=64))
    tss = gdt.add(segments.task(0, 0xFFFF_8000_0000_1000, 0x67, busy=False), wide=True)
    data = gdt.add(segments.flat_data(0))
    gate = gdt.add_raw(descriptors.encode_gate(Gate(0x1000, 8, 64, "call", dpl=3)))
    assert (code, tss, data, gate) == (0x08, 0x10, 0x20, 0x28)
    found = descriptors.read_descriptors(bytes(gdt), long=True)
    assert list(found) == [0x08, 0x10, 0x20, 0x28]
    assert isinstance(found[tss], Segment) and found[tss].base == 0xFFFF_8000_0000_1000
    assert found[gate] == Gate(0x1000, 8, 64, "call", dpl=3)


def test_gdt_has_a_limit() -> None:
    gdt = Gdt()
    for _ in range(8191):
        gdt.add(segments.unusable())
    with pytest.raises(UsageError, match="8192"):
        gdt.add(segments.unusable())


def test_tss64_fields_are_where_the_manual_has_them() -> None:
    raw = bytes(Tss64([0x1111, 0x2222, 0x3333], [0x4444, 0, 0, 0, 0, 0, 0x7777]))
    assert len(raw) == 104
    at = {offset: int.from_bytes(raw[offset : offset + 8], "little") for offset in (4, 12, 20, 36, 84)}
    assert at == {4: 0x1111, 12: 0x2222, 20: 0x3333, 36: 0x4444, 84: 0x7777}
    assert raw[102:104] == (104).to_bytes(2, "little")  # the I/O map lies behind the limit: no port allowed


def test_tss32_fields_are_where_the_manual_has_them() -> None:
    raw = bytes(
        Tss32([(0x10, 0x9000)], task={"cr3": 0xC0C0, "eip": 0xE1, "edi": 0xD1, "gs": 0x65, "ldt": 0x1D})
    )
    words = [int.from_bytes(raw[offset : offset + 4], "little") for offset in range(0, 104, 4)]
    assert (words[1], words[2], words[7], words[8]) == (0x9000, 0x10, 0xC0C0, 0xE1)
    assert (words[17], words[23], words[24], words[25]) == (0xD1, 0x65, 0x1D, 104 << 16)


@given(
    st.lists(st.integers(0, (1 << 64) - 1), max_size=3),
    st.lists(st.integers(0, (1 << 64) - 1), max_size=7),
    st.booleans(),
)
def test_tss64_round_trip(rsp: list[int], ist: list[int], ports: bool) -> None:
    tss = Tss64(rsp, ist, descriptors.io_bitmap([range(0x3F8, 0x400)]) if ports else b"")
    assert Tss64.decode(bytes(tss)) == tss


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)), max_size=3),
    st.dictionaries(st.sampled_from(["cr3", "eip", "eflags", "esp", "edi"]), st.integers(0, 0xFFFFFFFF)),
    st.dictionaries(st.sampled_from(["es", "cs", "ldt"]), st.integers(0, 0xFFFF)),
    st.integers(0, 0xFFFF),
)
def test_tss32_round_trip(
    stacks: list[tuple[int, int]], registers: dict[str, int], selectors: dict[str, int], link: int
) -> None:
    tss = Tss32(stacks, b"\xff" * 9, {**registers, **selectors}, link, trap=1)
    assert Tss32.decode(bytes(tss)) == tss


def test_bad_tss() -> None:
    with pytest.raises(UsageError, match="7 interrupt stacks"):
        Tss64(ist=range(8))
    with pytest.raises(UsageError, match="3 ring stacks"):
        Tss32([(0, 0)] * 4)
    with pytest.raises(UsageError, match="no field rax"):
        Tss32(task={"rax": 1})
    for kind in (Tss32, Tss64):
        with pytest.raises(UsageError, match="at least 104"):
            kind.decode(bytes(103))


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 300)), max_size=4))
def test_io_bitmap_clears_exactly_the_allowed_ports(ranges: list[tuple[int, int]]) -> None:
    allowed = [range(first, min(first + length, 0x10000)) for first, length in ranges]
    bitmap = descriptors.io_bitmap(allowed)
    assert len(bitmap) == 8193 and bitmap[-1] == 0xFF
    expected = {port for ports in allowed for port in ports}
    assert {port for port in range(0x10000) if not bitmap[port >> 3] >> (port & 7) & 1} == expected


def test_io_bitmap_limits() -> None:
    assert descriptors.io_bitmap([range(0x10000)])[:-1] == bytes(8192)
    assert descriptors.io_bitmap([range(0x60, 0x65, 4)])[12] == 0xFF & ~0x11
    for ports in (range(0xFFFF, 0x10001), range(-1, 1)):
        with pytest.raises(UsageError, match="outside 0-0xffff"):
            descriptors.io_bitmap([ports])
