"""Patterns of exits: matching, wildcards, their text, and two lists side by side. No engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.testing import (
    ANY,
    Exit,
    ExitList,
    Hlt,
    In,
    InternalError,
    MmioRead,
    MmioWrite,
    Out,
    Rdmsr,
    Shutdown,
    Wrmsr,
)
from kvmpy.testing.diff import align, matches, side_by_side
from kvmpy.testing.exits import KINDS, parse


@pytest.mark.parametrize(
    ("seen", "pattern"),
    [
        (Out(0x80, 3, 1), Out(0x80)),
        (Out(0x80, 3, 1), Out(0x80, 3)),
        (Out(0x80, 3, 1), Out(0x80, 3, 1)),
        (Out(0x80, 3, 1), Out(ANY, 3)),
        (Out(0x80, 3, 1), Out(range(0x80, 0x90), {3, 4})),
        (Out(0x80, 3, 1, vcpu=1), Out(0x80, vcpu=1)),
        (In(0x60, 0xFF, 1), In({0x60})),
        (MmioWrite(0xE0000000, 1, 4), MmioWrite(0xE0000000)),
        (Hlt(vcpu=3), Hlt()),
        (Hlt(), ANY),
        (Exit("NMI"), Exit("NMI")),
    ],
)
def test_matches(seen: Exit, pattern: Exit) -> None:
    assert seen == pattern
    assert pattern == seen
    assert ExitList([seen]) == [pattern]


@pytest.mark.parametrize(
    ("seen", "pattern"),
    [
        (Out(0x80, 3, 1), Out(0x81)),
        (Out(0x80, 3, 1), Out(0x80, 4)),
        (Out(0x80, 3, 1), Out(0x80, 3, 2)),
        (Out(0x80, 3, 1), In(0x80, 3, 1)),
        (Out(0x80, 3, 1), Out(range(0x81, 0x90))),
        (Out(0x80, 3, 1), Out(0x80, {4, 5})),
        (Out(0x80, 3, 1, vcpu=1), Out(0x80, vcpu=0)),
        (MmioRead(0x80, 3, 4), MmioWrite(0x80, 3, 4)),
        (Rdmsr(0x10, 3, 8), Wrmsr(0x10, 3, 8)),
        (Hlt(), Shutdown()),
        (Hlt(vcpu=1), Hlt(vcpu=2)),
        (Exit("NMI"), Exit("INTR")),
    ],
)
def test_does_not_match(seen: Exit, pattern: Exit) -> None:
    assert seen != pattern
    assert pattern != seen
    assert ExitList([seen]) != [pattern]


@pytest.mark.parametrize(
    ("exit_", "text"),
    [
        (Out(0x80), "Out(0x80)"),
        (Out(0x80, 3), "Out(0x80, 0x3)"),
        (Out(0x80, 3, 1), "Out(0x80, 0x3)"),
        (Out(0x80, 3, 2), "Out(0x80, 0x3, size=2)"),
        (In(ANY, {4, 3}), "In(ANY, {0x3, 0x4})"),
        (In(range(16), ANY, 1), "In(range(0x0, 0x10))"),
        (MmioWrite(0x1000, 1, 4), "MmioWrite(0x1000, 0x1)"),
        (MmioWrite(0x1000, 1, 1), "MmioWrite(0x1000, 0x1, size=1)"),
        (Hlt(vcpu=1), "Hlt()"),
        (InternalError(), "InternalError()"),
        (Exit("NMI"), "Exit('NMI')"),
    ],
)
def test_text_and_back(exit_: Exit, text: str) -> None:
    assert repr(exit_) == text
    assert parse(text) == exit_


@pytest.mark.parametrize(
    "text", ["", "Out", "Out(", "Foo(1)", "Out(x)", "Out(1, 2, 3, 4)", "__import__('os')", "1 + 1"]
)
def test_what_is_no_exit(text: str) -> None:
    with pytest.raises(ValueError, match=r"exit|positional|malformed"):
        parse(text)


def test_every_kind_is_exported() -> None:
    import kvmpy.testing

    assert set(KINDS) <= set(kvmpy.testing.__all__)


EXITS = st.one_of(st.builds(Out, st.integers(0, 3), st.integers(0, 1)), st.builds(Hlt))


@given(st.lists(EXITS, max_size=8))
def test_a_list_matches_itself_and_dots(exits: list[Exit]) -> None:
    assert matches(exits, exits)
    assert matches(exits, [...])
    assert matches(exits, [..., *exits, ...])
    assert not matches(exits, [*exits, Hlt()])
    for cut in range(len(exits)):
        assert matches(exits, [*exits[:cut], ..., *exits[cut + 1 :]])


@given(st.lists(EXITS, max_size=6), st.lists(st.one_of(EXITS, st.just(...)), max_size=5))
def test_dots_match_as_a_regular_expression_would(seen: list[Exit], expected: list[object]) -> None:
    import re

    names: list[Exit] = []

    def letter(exit_: object) -> str:
        for at, known in enumerate(names):
            if known == exit_:
                return chr(97 + at)
        names.append(exit_)  # type: ignore[arg-type]
        return chr(96 + len(names))

    text = "".join(map(letter, seen))
    pattern = "".join(".*" if each is ... else letter(each) for each in expected)
    assert matches(seen, expected) is (re.fullmatch(pattern, text) is not None)


@given(st.lists(EXITS, max_size=8), st.lists(EXITS, max_size=8))
def test_alignment_has_every_exit_once_and_in_order(seen: list[Exit], expected: list[Exit]) -> None:
    rows = align(seen, expected)
    assert [i for i, _ in rows if i is not None] == list(range(len(seen)))
    assert [j for _, j in rows if j is not None] == list(range(len(expected)))


def test_one_missing_exit_is_one_marked_row() -> None:
    seen = [Out(0x80, n, 1) for n in range(30)]
    summary, lines = side_by_side(seen, seen[:10] + seen[11:])
    assert summary == "first difference at 10: 30 seen, 29 expected"
    assert [line for line in lines if line.startswith("!")] == ["!    10  Out(0x80, 0xa)  -"]
    assert len(lines) < 12


@pytest.mark.parametrize("size", [500, 5000])
def test_long_lists_that_differ_everywhere_take_no_time(size: int) -> None:
    seen = [Out(0x80, n, 1) for n in range(size)]
    expected = [Out(0x81, n, 1) for n in range(size + 1)]
    summary, lines = side_by_side(seen, expected)
    assert summary == f"first difference at 0: {size} seen, {size + 1} expected"
    assert 10 < len(lines) < 100


def test_the_end_is_told() -> None:
    assert side_by_side([], [Hlt()]) == (
        "first difference at the end (0): 0 seen, 1 expected",
        ["         seen  expected", "!        -     Hlt()"],
    )
