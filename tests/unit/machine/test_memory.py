"""Guest memory by guest physical address, with a list in place of an engine."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import psutil
import pytest

from kvmpy.errors import GuestMemoryError, UsageError
from kvmpy.machine.backing import Backing, anonymous, file, memfd
from kvmpy.machine.memory import LOG_DIRTY, READONLY, GuestMemory

PAGE = 4096
GIB = 1 << 30


class Engine:
    """Remembers what it was told, as an engine would map it."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int, int]] = []
        self.addresses: dict[int, int] = {}
        self.fail: Exception | None = None

    def __call__(self, slot: int, flags: int, gpa: int, size: int, address: int) -> None:
        if self.fail:
            raise self.fail
        self.calls.append((slot, flags, gpa, size))
        self.addresses[slot] = address


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def memory(engine: Engine) -> Iterator[GuestMemory]:
    """RAM 0-0xffff, RAM 0x10000-0x1ffff next to it, a hole, ROM 0x40000-0x40fff."""
    with GuestMemory(engine) as made:
        made.add(0, 16 * PAGE, name="low")
        made.add(0x10000, memfd(16 * PAGE), name="high")
        made.add(0x40000, PAGE, readonly=True, name="rom")
        yield made


def says(what: str) -> pytest.RaisesExc[GuestMemoryError]:
    return pytest.raises(GuestMemoryError, match="^" + re.escape(what))


# Slots and the engine


def test_engine_hears_of_slots(memory: GuestMemory, engine: Engine) -> None:
    assert engine.calls == [(0, 0, 0, 0x10000), (1, 0, 0x10000, 0x10000), (2, READONLY, 0x40000, PAGE)]
    assert [engine.addresses[slot.number] for slot in memory.slots] == [slot.address for slot in memory.slots]
    assert memory.size == 0x21000
    assert memory.end == 0x41000
    assert str(memory.slots[2]) == "slot 2 (rom, 0x40000-0x40fff)"


def test_removed_numbers_are_used_again(memory: GuestMemory, engine: Engine) -> None:
    memory.remove(memory.slots[1])
    assert engine.calls[-1] == (1, 0, 0x10000, 0)
    assert 0x10000 not in memory
    with says("read of 1 byte at 0x10000 is outside guest memory; the nearest is slot 0 (low, 0x0-0xffff)"):
        memory.read(0x10000, 1)
    slot = memory.add(0x80000, PAGE, log_dirty=True)
    assert engine.calls[-1] == (1, LOG_DIRTY, 0x80000, PAGE)
    assert slot.log_dirty
    assert not slot.readonly
    assert [slot.gpa for slot in memory.slots] == [0, 0x40000, 0x80000]


def test_dirty_logging_can_be_changed(memory: GuestMemory, engine: Engine) -> None:
    rom = memory.slots[2]
    memory.set_log_dirty(rom, True)
    assert engine.calls[-1] == (2, READONLY | LOG_DIRTY, 0x40000, PAGE)
    count = len(engine.calls)
    memory.set_log_dirty(rom, True)
    assert len(engine.calls) == count
    memory.set_log_dirty(rom, False)
    assert engine.calls[-1] == (2, READONLY, 0x40000, PAGE)


def test_late_engine_hears_of_all(memory: GuestMemory, engine: Engine) -> None:
    late = Engine()
    memory.connect(late)
    assert late.calls == engine.calls
    memory.disconnect()
    memory.close()
    assert late.calls == engine.calls


def test_close_tells_a_connected_engine(memory: GuestMemory, engine: Engine) -> None:
    del engine.calls[:]
    memory.close()
    memory.close()
    assert engine.calls == [(0, 0, 0, 0), (1, 0, 0x10000, 0), (2, 0, 0x40000, 0)]
    assert memory.closed
    assert repr(memory) == "<GuestMemory closed>"


def test_what_the_engine_refuses_changes_nothing(memory: GuestMemory, engine: Engine) -> None:
    before = memory.slots
    engine.fail = OSError("no")
    with anonymous(PAGE) as spare:
        for change in (
            lambda: memory.add(0x80000, PAGE),
            lambda: memory.add(0x80000, spare),
            lambda: memory.remove(memory.slots[0]),
            lambda: memory.set_log_dirty(memory.slots[0], True),
        ):
            with pytest.raises(OSError, match="no"):
                change()
        assert not spare.closed
    assert memory.slots == before
    assert not memory.slots[0].log_dirty
    assert memory.read(0, 1) == b"\0"
    with pytest.raises(OSError, match="no"):
        memory.close()
    assert all(slot.backing.closed for slot in before)


@pytest.mark.parametrize(
    ("gpa", "size", "other"),
    [
        (0, PAGE, "slot 0 (low, 0x0-0xffff)"),
        (0xF000, 2 * PAGE, "slot 0 (low, 0x0-0xffff)"),
        (0x1F000, PAGE, "slot 1 (high, 0x10000-0x1ffff)"),
        (0x3F000, 3 * PAGE, "slot 2 (rom, 0x40000-0x40fff)"),
        (0x40000, PAGE, "slot 2 (rom, 0x40000-0x40fff)"),
    ],
)
def test_overlap_names_both(memory: GuestMemory, gpa: int, size: int, other: str) -> None:
    with says(f"new slot 3 (more, {gpa:#x}-{gpa + size - 1:#x}) overlaps {other}"):
        memory.add(gpa, size, name="more")
    memory.add(0x20000, PAGE)
    memory.add(0x3F000, PAGE)


@pytest.mark.parametrize(
    ("gpa", "message"),
    [
        (100, "ram: address 0x64 is not a multiple of the page size 4096"),
        (-PAGE, "ram: address -0x1000 is not a multiple of the page size 4096"),
        (1 << 52, "ram: 0x10000000000000-0x10000000000fff ends beyond 0xfffffffffffff"),
    ],
)
def test_bad_slot_addresses(memory: GuestMemory, gpa: int, message: str) -> None:
    with says(message):
        memory.add(gpa, PAGE)
    memory.add((1 << 52) - PAGE, PAGE)
    assert memory[(1 << 52) - 1] == 0


def test_bad_slots(memory: GuestMemory, tmp_path: Path) -> None:
    for size in (0, -PAGE, 100):
        with pytest.raises(UsageError):
            memory.add(0x80000, size)
    with says("new slot 3 (ram, 0x80000-0x8ffff): its backing is in guest memory already"):
        memory.add(0x80000, memory.slots[0].backing)
    closed = anonymous(PAGE)
    closed.close()
    with says("new slot 3 (ram, 0x80000-0x80fff): its backing is closed"):
        memory.add(0x80000, closed)
    (tmp_path / "rom").write_bytes(bytes(PAGE))
    with (
        file(tmp_path / "rom", readonly=True) as rom,
        says(
            "new slot 3 (ram, 0x80000-0x80fff): its backing is read-only, so the slot must be too (readonly=True)"
        ),
    ):
        memory.add(0x80000, rom)
    gone = memory.slots[0]
    memory.remove(gone)
    for change in (lambda: memory.remove(gone), lambda: memory.set_log_dirty(gone, True)):
        with says("slot 0 (low, 0x0-0xffff) is not in this guest memory (any more)"):
            change()


def test_slots_run_out() -> None:
    with GuestMemory(max_slots=2) as memory:
        memory.add(0, PAGE)
        memory.add(PAGE, PAGE)
        with says("new slot 2 (ram, 0x2000-0x2fff): all 2 slots are in use; remove one"):
            memory.add(2 * PAGE, PAGE)


def test_ram_goes_around_the_hole(engine: Engine) -> None:
    with GuestMemory(engine) as memory:
        memory.add_ram(5 * GIB)
        assert engine.calls == [(0, 0, 0, 3 * GIB), (1, 0, 4 * GIB, 2 * GIB)]
        memory.write_u32(6 * GIB - 4, 0x12345678)
        assert memory.read_u32(6 * GIB - 4) == 0x12345678
        with says(
            "read of 1 byte at 0xc0000000 is outside guest memory; the nearest is slot 0 (ram, 0x0-0xbfffffff)"
        ):
            memory.read(3 * GIB, 1)
        with says(
            "write of 1 byte at 0xffffffff is outside guest memory; the nearest is slot 1 (high ram, 0x1000000"
        ):
            memory.write(4 * GIB - 1, b"x")


def test_ram_of_other_making(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with path.open("wb") as stream:
        stream.truncate(3 * GIB + 2 * PAGE)
        stream.seek(3 * GIB)
        stream.write(b"high")
    with GuestMemory() as memory:
        memory.add_ram(3 * GIB + 2 * PAGE, lambda length, offset: file(path, length, offset=offset))
        assert memory.read(4 * GIB, 4) == b"high"


def test_ram_is_all_there_or_not_at_all(engine: Engine) -> None:
    def fail(length: int, offset: int) -> Backing:
        if offset:
            raise OSError("disk")
        return anonymous(length)

    with GuestMemory(engine) as memory:
        with pytest.raises(OSError, match="disk"):
            memory.add_ram(4 * GIB, fail)
        assert memory.slots == ()
        memory.add(4 * GIB, PAGE)
        with pytest.raises(GuestMemoryError, match="overlaps"):
            memory.add_ram(4 * GIB)
        assert len(memory.slots) == 1


# Bytes


def test_bytes_and_numbers(memory: GuestMemory) -> None:
    memory.write(0x100, b"hello")
    assert memory.read(0x100, 5) == b"hello"
    assert memory[0x101] == ord("e")
    memory[0x101] = ord("a")
    assert bytes(memory[0x100:0x105]) == b"hallo"
    memory[0x100:0x105] = bytearray(b"HELLO")
    memory.write_u64(0x200, 0x1122334455667788)
    assert memory.read(0x200, 8) == bytes.fromhex("8877665544332211")
    assert [memory.read_u8(0x200), memory.read_u16(0x200), memory.read_u32(0x200)] == [
        0x88,
        0x7788,
        0x55667788,
    ]
    memory.write_u8(0x200, 1)
    memory.write_u16(0x202, 0x203)
    memory.write_u32(0x204, 0x4050607)
    assert memory.read_u64(0x200) == 0x0405060702037701


def test_access_goes_across_slots_that_adjoin(memory: GuestMemory) -> None:
    memory.write(0xFFFC, b"abcdefgh")
    assert memory.read(0xFFFC, 8) == b"abcdefgh"
    assert memory.read(0x10000, 4) == b"efgh"
    assert memory[0xFFFC:0x10004] == b"abcdefgh"
    assert isinstance(memory[0xFFFC:0x10004], bytes)
    memory[0xFFFE:0x10002] = b"WXYZ"
    assert memory.read(0xFFFC, 8) == b"abWXYZgh"
    assert memory.read_u64(0xFFFC) == int.from_bytes(b"abWXYZgh", "little")
    memory.write_u32(0xFFFE, 0)
    memory.fill(0xFFFC, 2, 0x2E)
    assert memory.read(0xFFFC, 8) == b"..\0\0\0\0gh"
    assert memory.read(0, 0x20000).count(0) == 0x20000 - 4


def test_views_copy_nothing(memory: GuestMemory) -> None:
    view = memory[0x1000:0x2000]
    assert isinstance(view, memoryview)
    assert view.nbytes == PAGE
    memory.write(0x1ABC, b"from memory")
    assert bytes(view[0xABC:0xAC7]) == b"from memory"
    view[:4] = b"view"
    assert memory.read(0x1000, 4) == b"view"
    array = numpy.frombuffer(memory.view(0x1000, PAGE), dtype="<u4")
    array[1] = 0xAABBCCDD
    assert memory.read_u32(0x1004) == 0xAABBCCDD
    assert array.flags.writeable
    assert memory.address(0x1000) == array.ctypes.data
    assert memory.address(0x10000, 16) == memory.slots[1].address


def test_any_contiguous_buffer_can_be_written(memory: GuestMemory) -> None:
    numbers = numpy.arange(6, dtype="<u2").reshape(2, 3)
    for gpa in (0x100, 0xFFFA):
        memory.write(gpa, numbers)
        assert memory.read(gpa, 12) == numbers.tobytes()
    memory[0x100:0x10C] = numbers + 1
    assert memory.read_u16(0x100) == 1
    memory.write(0x100, memory[0x10000:0x10010])
    memory.write(0xFFFF, numpy.empty(0, dtype="u4"))


def test_readonly_slots(memory: GuestMemory) -> None:
    rom = "slot 2 (rom, 0x40000-0x40fff) is read-only; force=True writes it"
    with says(f"write of 3 bytes at 0x40000: {rom}"):
        memory.write(0x40000, b"rom")
    with says(f"write of 1 byte at 0x40000: {rom}"):
        memory[0x40000] = 1
    with says(f"fill of 16 bytes at 0x40010: {rom}"):
        memory.fill(0x40010, 16)
    view = memory.view(0x40000, 16)
    assert view.readonly
    memory.write(0x40000, b"rom", force=True)
    memory.fill(0x40010, 1, 0xFF, force=True)
    memory.view(0x40011, 1, force=True)[0] = 9
    assert bytes(view[:4]) == b"rom\0"
    assert memory.read(0x40010, 2) == b"\xff\x09"


def test_readonly_file_takes_no_writes_at_all(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "rom").write_bytes(b"R" * PAGE)
    memory.add(0x50000, file(tmp_path / "rom", readonly=True), readonly=True, name="file")
    assert memory.view(0x50000, 4, force=True).readonly
    message = "at 0x50000: the file behind slot 3 (file, 0x50000-0x50fff) is mapped read-only"
    with says(f"write of 1 byte {message}"):
        memory.write(0x50000, b"x", force=True)
    with says(f"fill of 4096 bytes {message}"):
        memory.fill(0x50000, PAGE, force=True)
    assert memory.read(0x50FFF, 1) == b"R"


def test_nothing_is_written_by_a_failing_write(memory: GuestMemory) -> None:
    memory.add(0x41000, PAGE)
    memory.fill(0x1FFF0, 16, 0x55)
    for attempt in (
        lambda: memory.write(0x1FFF8, bytes(16)),
        lambda: memory.fill(0x1FFF8, 16),
        lambda: memory.write(0x40FF8, b"x" * 16),
    ):
        with pytest.raises(GuestMemoryError):
            attempt()
    assert memory.read(0x1FFF0, 16) == b"\x55" * 16
    assert memory.read(0x40FF0, 32) == bytes(32)


LOW, HIGH, ROM = "slot 0 (low, 0x0-0xffff)", "slot 1 (high, 0x10000-0x1ffff)", "slot 2 (rom, 0x40000-0x40fff)"


@pytest.mark.parametrize(
    ("gpa", "length", "complaint"),
    [
        (-1, 1, f" of 1 byte at -0x1 is outside guest memory; the nearest is {LOW}"),
        (-1, 2, f" of 2 bytes at -0x1 is outside guest memory; the nearest is {LOW}"),
        (0x20000, 1, f" of 1 byte at 0x20000 is outside guest memory; the nearest is {HIGH}"),
        (0x1FFFF, 2, f" of 2 bytes at 0x1ffff leaves guest memory at 0x20000; the nearest is {HIGH}"),
        (
            0x8000,
            0x38000,
            f" of 229376 bytes at 0x8000 leaves guest memory at 0x20000; the nearest is {HIGH}",
        ),
        (0x3FFFF, 4, f" of 4 bytes at 0x3ffff is outside guest memory; the nearest is {ROM}"),
        (0x41000, 8, f" of 8 bytes at 0x41000 is outside guest memory; the nearest is {ROM}"),
        (1 << 80, 1, f" of 1 byte at {1 << 80:#x} is outside guest memory; the nearest is {ROM}"),
        (
            0x100,
            1 << 60,
            f" of {1 << 60} bytes at 0x100 leaves guest memory at 0x20000; the nearest is {HIGH}",
        ),
    ],
)
def test_outside(memory: GuestMemory, gpa: int, length: int, complaint: str) -> None:
    accesses: list[tuple[str, Callable[[], object]]] = [
        ("read", lambda: memory.read(gpa, length)),
        ("read", lambda: memory[gpa : gpa + length]),
        ("view", lambda: memory.view(gpa, length)),
        ("fill", lambda: memory.fill(gpa, length)),
        ("address", lambda: memory.address(gpa, length)),
    ]
    if length < 1 << 20:
        accesses.append(("write", lambda: memory.write(gpa, bytes(length))))
    for verb, access in accesses:
        with says(verb + complaint):
            access()


def test_bad_accesses(memory: GuestMemory) -> None:
    bad: list[tuple[str, Callable[[], object]]] = [
        ("read at 0x10: a length of -1 bytes; the least is 0", lambda: memory.read(0x10, -1)),
        ("view at 0x10: a length of -1 bytes", lambda: memory.view(0x10, -1)),
        ("fill at 0x10: a length of -1 bytes", lambda: memory.fill(0x10, -1)),
        ("fill at 0x10: 256 is not a byte (0-255)", lambda: memory.fill(0x10, 1, 256)),
        ("memory[0x20:0x10]: a range goes up from its start by 1", lambda: memory[0x20:0x10]),
        ("memory[0x0:0x10] step 2: a range goes up", lambda: memory[0:0x10:2]),
        ("memory[0x0:0x10] takes 16 bytes, not 3", lambda: memory.__setitem__(slice(0, 16), b"abc")),
        ("memory[0x0:0x10] takes bytes, not the int 3", lambda: memory.__setitem__(slice(0, 16), 3)),
        ("write at 0x0: 256 is not in 0-0xff, what 8 bits hold", lambda: memory.__setitem__(0, 256)),
        ("write at 0x0: -1 is not in 0-0xffff, what 16 bits hold", lambda: memory.write_u16(0, -1)),
        (
            "write at 0x0: 4294967296 is not in 0-0xffffffff, what 32 bits hold",
            lambda: memory.write_u32(0, 1 << 32),
        ),
        (f"view of 8 bytes at 0xfffc spans {LOW} and {HIGH}; read()", lambda: memory.view(0xFFFC, 8)),
        (f"address of 8 bytes at 0xfffc spans {LOW} and {HIGH}", lambda: memory.address(0xFFFC, 8)),
    ]
    for message, access in bad:
        with says(message):
            access()
    with pytest.raises(TypeError):
        iter(memory)


def test_nothing_touches_nothing(memory: GuestMemory) -> None:
    for gpa in (0, 0x20000, 1 << 60):
        assert memory.read(gpa, 0) == b""
        memory.write(gpa, b"")
        memory.fill(gpa, 0)
        assert bytes(memory[gpa:gpa]) == b""


def test_no_memory_at_all() -> None:
    memory = GuestMemory()
    with says("read of 4 bytes at 0x1000: there is no guest memory at all; add a slot first"):
        memory.read(0x1000, 4)
    assert (memory.size, memory.end, 0 in memory, memory.find(b"x")) == (0, 0, False, -1)
    memory.close()
    for access in (
        lambda: memory.read(0, 1),
        lambda: memory.write(0, b"x"),
        lambda: memory.view(0, 1),
        lambda: memory.fill(0, 1),
        lambda: memory.add(0, PAGE),
        lambda: memory.add_ram(PAGE),
        lambda: memory.connect(print),
        memory.watch,
    ):
        with says("guest memory is closed"):
            access()


def test_membership(memory: GuestMemory) -> None:
    inside = [0, 0xFFFF, 0x10000, 0x1FFFF, 0x40000, 0x40FFF]
    outside = [-1, 0x20000, 0x3FFFF, 0x41000, 1 << 70]
    assert all(gpa in memory for gpa in inside)
    assert not any(gpa in memory for gpa in outside)


def test_find(memory: GuestMemory) -> None:
    memory.write(0x123, b"needle")
    memory.write(0xFFFD, b"needle")
    memory.write(0x1FFF0, b"needle")
    memory.write(0x40FFA, b"needle", force=True)
    found, start = [], 0
    while (at := memory.find(b"needle", start)) >= 0:
        found.append(at)
        start = at + 1
    assert found == [0x123, 0xFFFD, 0x1FFF0, 0x40FFA]
    assert memory.find(b"needle", 0x124, 0x10002) == -1
    assert memory.find(b"needle", 0x124, 0x10003) == 0xFFFD
    assert memory.find(b"needles") == -1


@pytest.mark.parametrize("over", range(7))
def test_find_at_the_edge_of_a_slot(memory: GuestMemory, over: int) -> None:
    memory.write(0xFFFA + over, b"needle")
    assert memory.find(b"needle") == 0xFFFA + over
    assert memory.find(b"needle", 0xFFFA + over) == 0xFFFA + over
    assert memory.find(b"needle", 0xFFFB + over) == -1


def test_find_over_three_slots() -> None:
    with GuestMemory() as memory:
        for gpa in (0, PAGE, 2 * PAGE):
            memory.add(gpa, anonymous(PAGE))
        pattern = b"<" + b"-" * PAGE + b">"
        memory.write(PAGE - 1, pattern)
        assert memory.find(pattern) == PAGE - 1
        assert memory.find(pattern, PAGE) == -1


def test_filling_with_zeros_gives_pages_back() -> None:
    with GuestMemory() as memory:
        memory.add(0, 4 << 20)
        memory.add(4 << 20, memfd(4 << 20))
        memory.fill(0, 8 << 20, 0xEE)
        before = psutil.Process().memory_info().rss
        memory.fill(100, (8 << 20) - 200)
        assert psutil.Process().memory_info().rss < before - (7 << 20)
        assert memory.read(0, 101) == b"\xee" * 100 + b"\0"
        assert memory.read((8 << 20) - 101, 101) == b"\0" + b"\xee" * 100
        assert memory.read(0, 8 << 20).count(0) == (8 << 20) - 200


def test_filling_where_pages_cannot_be_given_back() -> None:
    with GuestMemory() as memory:
        slot = memory.add(0, 4 << 20)
        slot.backing.zap = 9999
        memory.fill(0, 4 << 20, 0xEE)
        memory.fill(100, (4 << 20) - 200)
        assert memory.read(0, 4 << 20) == b"\xee" * 100 + bytes((4 << 20) - 200) + b"\xee" * 100


def test_memory_aligned_to_huge_pages_starts_inside_its_mapping() -> None:
    with GuestMemory() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        slot = memory.add(0x5000, anonymous(4 << 20, huge="thp", phase=0x5000))
        assert slot.backing.offset > 0
        last = 0x5000 + (4 << 20) - 4
        memory.write(0x5000, b"first")
        memory.write(last, b"last")
        view = memory.view(0x5000, 4 << 20)
        assert (bytes(view[:5]), bytes(view[-4:])) == (memory.read(0x5000, 5), memory.read(last, 4))
        assert bytes(view[:5]) + bytes(view[-4:]) == b"firstlast"
        assert (memory.find(b"first"), memory.find(b"last")) == (0x5000, last)
        assert memory.address(last) == slot.address + (4 << 20) - 4
        memory.fill(0x5000, 4 << 20)
        assert memory.read(0x5000, 4 << 20) == bytes(4 << 20)


# Lifetime


def test_views_outlive_memory(engine: Engine) -> None:
    memory = GuestMemory(engine)
    slot = memory.add(0, 1 << 20)
    kept = [memory.view(0, 16), memory[PAGE : 2 * PAGE], numpy.frombuffer(memory.view(0, PAGE), "u1")[8:16]]
    memory.write(8, b"12345678")
    memory.remove(slot)
    memory.close()
    assert bytes(kept[0][8:]) == bytes(kept[2]) == b"12345678"
    kept[2][:] = 0x21
    assert bytes(kept[0][8:]) == b"!" * 8


def test_forgotten_memory_is_a_warning() -> None:
    memory = GuestMemory()
    memory.add_ram(1 << 20)
    with pytest.warns(ResourceWarning, match="<Backing anonymous 1 MiB"):
        del memory
        gc.collect()


def test_forgotten_until_the_end_of_the_process_is_a_warning() -> None:
    script = "from kvmpy.machine.memory import GuestMemory; m = GuestMemory(); m.add_ram(1 << 20)"
    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, check=True
    )
    assert "ResourceWarning: <Backing" in run.stderr
    assert "Exception ignored" not in run.stderr


@pytest.mark.slow
def test_thousands_of_memories_leave_nothing_behind() -> None:
    process = psutil.Process()

    def life() -> None:
        with GuestMemory(Engine()) as memory:
            memory.add_ram(16 << 20)
            memory.add(GIB, memfd(1 << 20))
            memory.watch()
            memory.view(0, PAGE)[0] = 1
            memory.write(GIB, b"x")

    def held() -> tuple[int, int]:
        return process.num_fds(), len(Path("/proc/self/maps").read_text().splitlines())

    gc.collect()
    life()
    fds, maps, size = *held(), process.memory_info().rss
    gc.disable()  # Nothing may need the collector of cycles.
    try:
        for _ in range(2000):
            life()
        now = held()
    finally:
        gc.enable()
    assert now[0] == fds
    assert abs(now[1] - maps) < 20
    assert process.memory_info().rss < size + (4 << 20)


def test_slots_come_and_go_while_others_read() -> None:
    stop = threading.Event()
    seen: list[object] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(memory.read(0x1FF8, 8))
            with pytest.raises(GuestMemoryError):
                memory.read(0x100000, 8)

    with GuestMemory() as memory:
        memory.add(0x1000, PAGE)
        memory.write(0x1FF8, b"constant")
        reader = threading.Thread(target=read)
        reader.start()
        try:
            for _ in range(300):
                before, after = memory.add(0, PAGE), memory.add(0x2000, PAGE)
                memory.remove(before)
                memory.remove(after)
        finally:
            stop.set()
            reader.join()
    assert set(seen) == {b"constant"}


def test_importing_is_light() -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONNOUSERSITE": "1"}
    site = [path for path in sys.path if path.endswith("site-packages")]
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], *site])

    def imported(what: str) -> set[str]:
        script = f"import sys, {what}; print(*sys.modules)"
        command = [sys.executable, "-S", "-c", script]
        return set(
            subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.split()
        )

    heavy = {
        "dataclasses",
        "inspect",
        "typing",
        "re",
        "ctypes",
        "json",
        "psutil",
        "pathlib",
        "warnings",
        "numpy",
    }
    # What threading itself needs depends on the version of Python.
    assert heavy.isdisjoint(imported("kvmpy.machine.memory") - imported("threading"))
