"""pc-testdev, as kvm-unit-tests use it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.devices.pc_testdev import MEMORY_LENGTH, PcTestdevIrq, PcTestdevMemory, PcTestdevPorts


@pytest.mark.parametrize("base", [0, 8])
def test_echo_of_byte_word_and_long(base: int) -> None:
    ports = PcTestdevPorts()
    ports.write(base, 0x11223344, 4)
    assert ports.read(base, 4) == 0x11223344
    ports.write(base, 0xAA, 1)
    assert ports.read(base, 4) == 0x112233AA
    ports.write(base + 2, 0xBBCC, 2)
    assert ports.read(base, 4) == 0xBBCC33AA
    assert [ports.read(base + at, 1) for at in range(4)] == [0xAA, 0x33, 0xCC, 0xBB]
    assert ports.read(8 - base, 4) == 0xBBCC33AA  # one register, two places


def test_flush_names_the_page() -> None:
    pages: list[int] = []
    ports = PcTestdevPorts(pages.append)
    ports.write(4, 0x12345678, 4)
    ports.write(4, 0x1000, 2)
    ports.write(5, 0x1000, 1)
    assert pages == [0x12345000]
    assert ports.read(4, 4) == 0xFFFFFFFF


def test_irq_lines() -> None:
    lines: list[tuple[int, bool]] = []
    irq = PcTestdevIrq(lambda line, level: lines.append((line, level)))
    irq.write(0, 1, 1)
    irq.write(23, 0x80, 1)
    irq.write(0, 0, 1)
    irq.write(24, 1, 1)
    assert lines == [(0, True), (23, True), (0, False)]
    irq.reset()
    assert lines[3:] == [(23, False)]


@given(
    writes=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 24), st.integers(MEMORY_LENGTH - 12, MEMORY_LENGTH + 8)),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
        )
    )
)
def test_memory_is_memory(writes: list[tuple[int, int, int]]) -> None:
    memory = PcTestdevMemory()
    reference = bytearray(MEMORY_LENGTH)
    for offset, size, value in writes:
        data = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
        room = max(MEMORY_LENGTH - offset, 0)
        reference[offset : offset + min(size, room)] = data[:room]
        memory.write(offset, value, size)
    assert memory.data == reference
    for offset, size, _ in writes:
        expected = bytes(reference[offset : offset + size]).ljust(size, b"\xff")
        assert memory.read(offset, size) == int.from_bytes(expected, "little")
