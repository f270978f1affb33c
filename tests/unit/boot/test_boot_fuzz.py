"""Hostile images: whatever the bytes, a Payload that fits or an ImageError of one line; never a hang."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import pytest
from boot_images import MIB, Piece, elf, kludge, multiboot_elf
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.boot import FORMATS, BootOptions, load, recognise
from kvmpy.boot.layout import Layout
from kvmpy.errors import ImageError

MEMORY = 4 * MIB
SEEDS = (
    elf([Piece(b"\xf4" * 64, MIB), Piece(b"data", 0x200000, size=0x3000)]),
    elf([Piece(b"\xf4" * 64, MIB)], bits=32),
    elf([Piece(b"\xf4" * 64, MIB, virtual=0xFFFFFFFF80100000)], entry=0xFFFFFFFF80100000),
    multiboot_elf(sections=struct.pack("<10I", 0, 3, 0, 0, 64, 9, 0, 0, 1, 0) * 3, section_count=3),
    kludge(bss_end=MIB + 0x1000),
)
NUMBERS = st.one_of(
    st.sampled_from(
        [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]
    ),
    st.integers(0, (1 << 64) - 1),
)


def check(data: bytes, format: str | None, mode: str | None = None) -> None:
    options = BootOptions(MEMORY, format=format, name="fuzz", append="a", mode=mode)
    try:
        payload = load(data, options)
    except ImageError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
        return
    ram = [chunk for chunk in payload.chunks if chunk.kind == "ram"]
    taken = sorted(
        [(chunk.gpa, chunk.end) for chunk in ram if chunk.length]
        + [(at, at + len(contents)) for at, contents in payload.entry.memory]
    )
    assert taken[0][0] >= 0
    assert taken[-1][1] <= MEMORY
    assert all(first[1] <= second[0] for first, second in pairwise(taken))


@pytest.mark.parametrize("format", list(FORMATS))
@given(data=st.binary(min_size=1, max_size=2048))
@settings(max_examples=60, deadline=None)
def test_any_bytes_in_any_format(format: str, data: bytes) -> None:
    check(data, format)


@given(data=st.binary(max_size=9000))
@settings(max_examples=100, deadline=None)
def test_anything_is_recognised_as_something(data: bytes) -> None:
    assert recognise(data) in FORMATS


@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(
        st.tuples(st.integers(0, 256), st.sampled_from([1, 2, 4, 8]), NUMBERS), min_size=1, max_size=4
    ),
    cut=st.one_of(st.none(), st.integers(1, 5000)),
    mode=st.sampled_from([None, "protected"]),
)
@settings(max_examples=1000, deadline=None)
def test_damaged_headers(
    seed: bytes, changes: list[tuple[int, int, int]], cut: int | None, mode: str | None
) -> None:
    image = bytearray(seed)
    for at, width, number in changes:
        image[at : at + width] = (number & ((1 << width * 8) - 1)).to_bytes(width, "little")
    check(bytes(image[:cut]), None, mode if recognise(bytes(image[:cut])) in ("elf", "multiboot") else None)
    check(bytes(image[:cut]), "elf")


@given(
    fields=st.lists(
        st.one_of(st.integers(MIB - 64, MIB + 256), st.integers(0, 0xFFFFFFFF)), min_size=5, max_size=5
    ),
    before=st.integers(0, 16),
)
@settings(max_examples=300, deadline=None)
def test_hostile_load_addresses(fields: list[int], before: int) -> None:
    header, load_at, load_end, bss_end, entry = fields
    image = kludge(
        before=bytes(4 * before), header=header, load=load_at, load_end=load_end, bss_end=bss_end, entry=entry
    )
    check(image, "multiboot")


@given(
    segments=st.lists(
        st.tuples(st.integers(0, 5 * MIB), st.integers(0, 8192), st.integers(0, 64), NUMBERS),
        min_size=1,
        max_size=12,
    ),
    mode=st.sampled_from(["protected", "long"]),
)
@settings(max_examples=300, deadline=None)
def test_segments_anywhere(segments: list[tuple[int, int, int, int]], mode: str) -> None:
    pieces = [
        Piece(bytes(file_size), physical, virtual=virtual, size=file_size + more)
        for physical, more, file_size, virtual in segments
    ]
    check(elf(pieces, entry=pieces[0].virtual), "elf", mode)


@pytest.mark.parametrize("bits", [32, 64])
def test_as_many_segments_as_can_be_claimed(bits: int) -> None:
    pieces = [Piece(b"", MIB + 4096 * number, size=1) for number in range(512)]
    check(elf(pieces, bits=bits), "elf")
    check(elf(pieces, bits=bits, phnum=65535) + bytes(65536 * 56), "elf")


def test_as_many_sections_as_can_be_claimed() -> None:
    section = struct.pack("<10I", 0, 3, 0, 0, 0, 1, 0, 0, 1, 0)
    check(multiboot_elf(sections=section * 65535, section_count=65535), "multiboot")


@given(
    ram=st.lists(st.tuples(st.integers(0, 64), st.integers(1, 16)), min_size=1, max_size=4),
    taken=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9)), max_size=12),
    length=st.integers(1, 24),
    align=st.sampled_from([1, 2, 8]),
    low=st.integers(0, 40),
    high=st.integers(1, 90),
)
@settings(max_examples=300, deadline=None)
def test_find_gives_the_lowest_free_place(
    ram: Any, taken: Any, length: int, align: int, low: int, high: int
) -> None:
    """Against a search of every address; the unit is 64 KiB, from 1 MiB on, where nothing is reserved."""
    unit, base = 65536, MIB
    ranges, end = [], base
    for gap, size in ram:  # gaps, so that ranges never overlap
        ranges.append((end + gap * unit, size * unit))
        end = ranges[-1][0] + size * unit
    layout = Layout(ranges, "test")
    for start, size in taken:
        if layout.free(base + start * unit, size * unit):
            layout.claim(base + start * unit, size * unit, "something")
    expected = next(
        (
            at
            for at in range(base + low * unit, base + high * unit - length * unit + 1, unit)
            if at % (align * unit) == 0 and layout.free(at, length * unit)
        ),
        None,
    )
    try:
        found = layout.find(
            length * unit, "more", low=base + low * unit, high=base + high * unit, align=align * unit
        )
    except ImageError:
        assert expected is None
    else:
        assert found == expected
