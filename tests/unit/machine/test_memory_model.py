"""Random slots, holes and accesses, against a dictionary of bytes."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kvmpy.errors import GuestMemoryError
from kvmpy.machine.backing import anonymous, memfd
from kvmpy.machine.memory import GuestMemory

PAGE = 4096
PAGES = 12
addresses = st.one_of(
    st.integers(-2, PAGES * PAGE + 2),
    st.builds(lambda page, off: page * PAGE + off, st.integers(0, PAGES), st.integers(-6, 6)),
)
lengths = st.one_of(
    st.integers(0, 16), st.integers(0, 3 * PAGE), st.sampled_from([PAGE, 2 * PAGE, 16 * PAGE])
)


class MemoryModel(RuleBasedStateMachine):
    """``self.bytes`` holds each byte of memory by address, ``self.rom`` the addresses that take no plain write."""

    @initialize()
    def start(self) -> None:
        self.engine: dict[int, tuple[int, int, int]] = {}
        self.memory = GuestMemory(self.told)
        self.watch = self.memory.watch()
        self.bytes: dict[int, int] = {}
        self.rom: set[int] = set()
        self.written: set[int] = set()
        self.viewed: set[int] = set()

    def told(self, slot: int, flags: int, gpa: int, size: int, address: int) -> None:
        if size:
            self.engine[slot] = (flags, gpa, size)
        else:
            del self.engine[slot]

    def inside(self, gpa: int, length: int) -> bool:
        return all(at in self.bytes for at in range(gpa, gpa + length))

    def may_write(self, gpa: int, length: int, force: bool) -> bool:
        return self.inside(gpa, length) and (force or self.rom.isdisjoint(range(gpa, gpa + length)))

    @rule(
        page=st.integers(0, PAGES - 1), count=st.integers(1, 4), readonly=st.booleans(), shared=st.booleans()
    )
    def add(self, page: int, count: int, readonly: bool, shared: bool) -> None:
        gpa, size = page * PAGE, count * PAGE
        backing = memfd(size) if shared else anonymous(size)
        try:
            self.memory.add(gpa, backing, readonly=readonly)
        except GuestMemoryError as error:
            backing.close()
            assert "overlaps" in str(error)
            assert any(at in self.bytes for at in range(gpa, gpa + size, PAGE))
            return
        assert not any(at in self.bytes for at in range(gpa, gpa + size, PAGE))
        self.bytes.update(dict.fromkeys(range(gpa, gpa + size), 0))
        if readonly:
            self.rom.update(range(gpa, gpa + size))

    @precondition(lambda self: self.memory.slots)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.memory.slots))
        self.memory.remove(slot)
        for at in range(slot.gpa, slot.end):
            del self.bytes[at]
        self.rom.difference_update(range(slot.gpa, slot.end))

    @rule(gpa=addresses, length=lengths, sliced=st.booleans())
    def read(self, gpa: int, length: int, sliced: bool) -> None:
        try:
            data = bytes(self.memory[gpa : gpa + length]) if sliced else self.memory.read(gpa, length)
        except GuestMemoryError:
            assert not self.inside(gpa, length)
        else:
            assert list(data) == [self.bytes[at] for at in range(gpa, gpa + length)]
            if sliced:
                self.viewed.update(range(gpa, gpa + length))

    @rule(gpa=addresses, length=lengths, seed=st.integers(0, 255), force=st.booleans())
    def write(self, gpa: int, length: int, seed: int, force: bool) -> None:
        data = bytes((seed + i * 7) % 256 for i in range(length))
        try:
            self.memory.write(gpa, data, force=force)
        except GuestMemoryError:
            assert not self.may_write(gpa, length, force)
        else:
            assert self.may_write(gpa, length, force)
            self.bytes.update(zip(range(gpa, gpa + length), data, strict=True))
            self.written.update(range(gpa, gpa + length))

    @rule(gpa=addresses, length=lengths, byte=st.sampled_from([0, 1, 255]), force=st.booleans())
    def fill(self, gpa: int, length: int, byte: int, force: bool) -> None:
        try:
            self.memory.fill(gpa, length, byte, force=force)
        except GuestMemoryError:
            assert not self.may_write(gpa, length, force)
        else:
            assert self.may_write(gpa, length, force)
            self.bytes.update(dict.fromkeys(range(gpa, gpa + length), byte))
            self.written.update(range(gpa, gpa + length))

    @rule(gpa=addresses, length=st.integers(1, 64), byte=st.integers(0, 255))
    def view(self, gpa: int, length: int, byte: int) -> None:
        try:
            view = self.memory.view(gpa, length)
        except GuestMemoryError:
            assert not self.inside(gpa, length) or not any(
                slot.gpa <= gpa and gpa + length <= slot.end for slot in self.memory.slots
            )
            return
        assert list(view) == [self.bytes[at] for at in range(gpa, gpa + length)]
        assert view.readonly == (gpa in self.rom)
        if not view.readonly:
            view[-1] = byte
            self.bytes[gpa + length - 1] = byte
            self.viewed.update(range(gpa, gpa + length))
            self.written.add(gpa + length - 1)

    @rule(pattern=st.binary(min_size=1, max_size=4), start=addresses, length=lengths)
    def find(self, pattern: bytes, start: int, length: int) -> None:
        def here(at: int) -> bool:
            return all(self.bytes.get(at + i) == byte for i, byte in enumerate(pattern))

        first = next((at for at in range(start, start + length - len(pattern) + 1) if here(at)), -1)
        assert self.memory.find(pattern, start, start + length) == first

    @rule(gpa=addresses)
    def membership(self, gpa: int) -> None:
        assert (gpa in self.memory) == (gpa in self.bytes)

    @rule()
    def take(self) -> None:
        taken = {at for gpa, length in self.watch.take() for at in range(gpa, gpa + length)}
        assert self.written - taken == set()
        assert taken - self.written - self.viewed == set()
        self.written.clear()
        self.viewed.clear()
        assert sorted(self.engine.items()) == sorted(
            (slot.number, (slot.flags, slot.gpa, slot.size)) for slot in self.memory.slots
        )

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            self.memory.close()
            assert self.engine == {}


MemoryModel.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestMemoryModel = MemoryModel.TestCase
