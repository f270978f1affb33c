"""What those hear who keep something derived from guest memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.machine import watch as watching
from kvmpy.machine.memory import GuestMemory
from kvmpy.machine.watch import Watch, merge

PAGE = 4096


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory() as made:
        made.add(0, 16 * PAGE)
        made.add(0x10000, 16 * PAGE)
        made.add(0x40000, PAGE, readonly=True)
        yield made


def test_hook_hears_of_every_write(memory: GuestMemory) -> None:
    heard: list[tuple[int, int]] = []
    memory.on_write.append(lambda gpa, length: heard.append((gpa, length)))
    memory.write(0x10, b"abc")
    memory.write(0xFFFE, b"abcd")
    memory[5] = 1
    memory[0x20:0x28] = bytes(8)
    memory.fill(0x100, 0x200, 3)
    memory.write_u16(0x30, 7)
    memory.write(0x40000, b"rom", force=True)
    memory.write(0x50, b"")
    memory.read(0, 100)
    with pytest.raises(Exception, match="outside"):
        memory.write(0x30000, b"x")
    assert heard == [(0x10, 3), (0xFFFE, 4), (5, 1), (0x20, 8), (0x100, 0x200), (0x30, 2), (0x40000, 3)]


def test_watch_takes_what_was_written_once(memory: GuestMemory) -> None:
    memory.write(0, b"before")
    watch = memory.watch()
    assert watch.take() == []
    memory.write(0x20, b"22")
    memory.write(0x10, b"1234")
    memory.write(0x12, b"123456")
    assert watch.take() == [(0x10, 8), (0x20, 2)]
    assert watch.take() == []


def test_a_view_counts_for_as_long_as_it_lives(memory: GuestMemory) -> None:
    watch = memory.watch()
    view = memory.view(0x1000, PAGE)
    assert watch.take() == watch.take() == [(0x1000, PAGE)]
    array = numpy.frombuffer(view, "u1")[16:32]
    part = view[1:2]
    del view
    assert watch.take() == [(0x1000, PAGE)]
    del array
    assert watch.take() == [(0x1000, PAGE)]
    del part
    assert watch.take() == [(0x1000, PAGE)], "it could have been written since the last take"
    assert watch.take() == []


def test_a_view_that_came_and_went_counts_once(memory: GuestMemory) -> None:
    watch = memory.watch()
    memory[0x2000:0x2010][:4] = b"code"
    assert watch.take() == [(0x2000, 16)]
    assert watch.take() == []


def test_views_from_before_the_watch_count(memory: GuestMemory) -> None:
    memory.view(0, PAGE)
    kept = memory.view(PAGE, PAGE)[8:]
    watch = memory.watch()
    assert watch.take() == [(PAGE, PAGE)]
    del kept
    assert watch.take() == [(PAGE, PAGE)]
    assert watch.take() == []


def test_what_cannot_be_written_does_not_count(memory: GuestMemory) -> None:
    watch = memory.watch()
    rom = memory.view(0x40000, 16)
    copy = memory[0xFFF0:0x10010]
    assert watch.take() == []
    forced = memory.view(0x40000, 16, force=True)
    assert watch.take() == [(0x40000, 16)]
    del rom, copy, forced


def test_watches_are_independent(memory: GuestMemory) -> None:
    first, second = memory.watch(), memory.watch()
    memory.write(1, b"x")
    assert first.take() == [(1, 1)]
    memory.unwatch(first)
    memory.unwatch(first)
    memory.write(5, b"x")
    view = memory.view(0x100, 1)
    assert first.take() == []
    assert second.take() == [(1, 1), (5, 1), (0x100, 1)]
    memory.unwatch(second)
    assert memory.on_write == []
    del view


def test_records_nobody_takes_stay_small(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_MANY", 16)
    watch = memory.watch()
    places = range(0, 0x10000, 0x100)
    for gpa in places:
        memory.write(gpa, b"x")
        memory.view(gpa + 0x10000, 1)
    assert len(watch._written) <= 16 + 16
    assert len(watch._views) <= 17
    assert len(memory._views._living) <= 65
    taken = watch.take()
    for gpa in [*places, *(place + 0x10000 for place in places)]:
        assert any(start <= gpa < start + length for start, length in taken), hex(gpa)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20))))
def test_merge(ranges: list[tuple[int, int]]) -> None:
    merged = merge(ranges)
    assert {at for gpa, n in ranges for at in range(gpa, gpa + n)} == {
        at for gpa, n in merged for at in range(gpa, gpa + n)
    }
    assert all(gpa + n < following for (gpa, n), (following, _) in pairwise(merged))


@given(
    st.lists(st.tuples(st.integers(0, 1 << 24), st.integers(1, 9000)), min_size=1, max_size=60),
    st.integers(2, 20),
)
def test_a_full_watch_forgets_nothing(ranges: list[tuple[int, int]], many: int) -> None:
    before, watching._MANY = watching._MANY, many
    try:
        watch = Watch([])
        for gpa, length in ranges:
            watch.wrote(gpa, length)
        taken = watch.take()
    finally:
        watching._MANY = before
    assert len(taken) <= many
    for gpa, length in ranges:
        assert any(start <= gpa and gpa + length <= start + size for start, size in taken)
