"""The keyboard controller that nobody types on."""

from __future__ import annotations

import pytest

from kvmpy.devices import i8042
from kvmpy.devices.i8042 import I8042
from kvmpy.errors import DeviceError


class Bench:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.edges: list[bool] = []
        self.aux_edges: list[bool] = []
        self.chip = I8042(
            lambda: self.events.append("reset"),
            lambda on: self.events.append(f"a20 {on}"),
            self.edges.append,
            self.aux_edges.append,
        )

    def command(self, command: int, data: int | None = None) -> None:
        self.chip.write(4, command, 1)
        if data is not None:
            self.chip.write(0, data, 1)

    def data(self) -> list[int]:
        got = []
        while self.chip.read(4, 1) & i8042.STATUS_OUTPUT_FULL:
            got.append(self.chip.read(0, 1))
        return got


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(("command", "resets"), [(0xFE, True), (0xF0, True), (0xFF, False), (0xFD, False)])
def test_pulsing_line_0_resets(bench: Bench, command: int, resets: bool) -> None:
    bench.command(command)
    assert bench.events == ["reset"] * resets


@pytest.mark.parametrize(
    ("command", "answer"),
    [(0xAA, [0x55]), (0xAB, [0]), (0xA9, [0]), (0x20, [0x03]), (0xC0, [0x80]), (0x12, [])],
)
def test_answers(bench: Bench, command: int, answer: list[int]) -> None:
    bench.command(command)
    assert bench.data() == answer


def test_self_test_sets_the_system_flag(bench: Bench) -> None:
    assert bench.chip.read(4, 1) == 0x18
    bench.command(0xAA)
    assert bench.chip.read(4, 1) == 0x1D
    assert bench.data() == [0x55]
    bench.command(0x20)
    assert bench.data() == [0x07]


def test_mode_byte(bench: Bench) -> None:
    bench.command(0x60, 0x47)
    bench.command(0x20)
    assert bench.data() == [0x47]
    bench.command(0xAD)
    bench.command(0xA7)
    bench.command(0x20)
    assert bench.data() == [0x77]
    bench.command(0xAE)
    bench.command(0xA8)
    bench.command(0x20)
    assert bench.data() == [0x47]


def test_a20_through_the_output_port(bench: Bench) -> None:
    bench.command(0xD0)
    assert bench.data() == [0xCF]
    bench.command(0xD1, 0xCD)
    bench.command(0xD1, 0xDF)
    bench.command(0xDD)
    bench.command(0xDF)
    bench.command(0xDF)
    assert bench.events == ["a20 False", "a20 True", "a20 False", "a20 True"]


def test_output_port_with_bit_0_low_resets(bench: Bench) -> None:
    bench.command(0xD1, 0xCE)
    assert bench.events == ["reset"]


def test_a_byte_without_command_goes_to_the_keyboard(bench: Bench) -> None:
    bench.command(0x60, 0x03)
    bench.chip.write(0, 0xFF, 1)
    assert bench.data() == [0xFA, 0xAA]
    bench.chip.write(0, 0xF2, 1)
    assert bench.data() == [0xFA, 0xAB, 0x83]
    bench.chip.write(0, 0xED, 1)
    bench.chip.write(0, 0x07, 1)
    assert bench.data() == [0xFA, 0xFA]
    bench.chip.write(0, 0xF0, 1)
    bench.chip.write(0, 0x00, 1)
    assert bench.data() == [0xFA, 0xFA, 0x02]
    bench.chip.write(0, 0xEE, 1)
    assert bench.data() == [0xEE]


def test_each_byte_is_an_interrupt(bench: Bench) -> None:
    bench.chip.write(0, 0xFF, 1)
    assert bench.edges == [True]
    bench.chip.read(0, 1)
    assert bench.edges == [True, False, True]
    bench.chip.read(0, 1)
    assert bench.edges == [True, False, True, False]


def test_no_interrupt_when_the_mode_says_so(bench: Bench) -> None:
    bench.command(0x60, 0x00)
    bench.chip.write(0, 0xF4, 1)
    assert bench.data() == [0xFA]
    bench.command(0xD3, 0x11)
    assert bench.data() == [0x11]
    assert not bench.edges
    assert not bench.aux_edges


def test_the_output_buffers_can_be_written(bench: Bench) -> None:
    bench.command(0xD2, 0x1C)
    assert bench.chip.read(4, 1) & 0x21 == 0x01
    assert bench.edges == [True]
    bench.command(0xD0)
    assert bench.data() == [0x1C, 0xDF]  # the output port mirrors that the buffer was full


def test_reset_empties_the_buffer(bench: Bench) -> None:
    bench.chip.write(0, 0xFF, 1)
    bench.chip.reset()
    assert bench.edges == [True, False]
    assert bench.chip.read(4, 1) == 0x18


def test_aux_loopback_and_no_mouse(bench: Bench) -> None:
    bench.command(0xD3, 0x5A)
    assert bench.chip.read(4, 1) & 0x21 == 0x21
    assert bench.aux_edges == [True]
    assert not bench.edges
    assert bench.data() == [0x5A]
    bench.command(0xD4, 0xFF)
    assert bench.data() == []


def test_the_queue_is_bounded(bench: Bench) -> None:
    for _ in range(1000):
        bench.chip.write(0, 0xF2, 1)
    assert len(bench.data()) == i8042.QUEUE


def test_the_full_queue_stays_whole_for_an_echo(bench: Bench) -> None:
    for _ in range(1000):
        bench.chip.write(0, 0xEE, 1)
    assert set(bench.data()) == {0xEE}


def test_an_empty_buffer_gives_the_last_byte_again(bench: Bench) -> None:
    bench.command(0xAA)
    assert [bench.chip.read(0, 1) for _ in range(3)] == [0x55] * 3


def test_the_ports_between_are_not_its_own(bench: Bench) -> None:
    assert bench.chip.read(1, 1) == 0xFF
    bench.chip.write(1, 0xFE, 1)
    assert not bench.events


def test_reset_opens_a20_again(bench: Bench) -> None:
    bench.command(0xDD)
    bench.chip.reset()
    assert bench.events == ["a20 False", "a20 True"]


def test_restore_says_where_a20_is(bench: Bench) -> None:
    bench.command(0xDD)
    other = Bench()
    other.chip.restore(bench.chip.state())
    assert other.events == ["a20 False"]


def test_restore_says_what_the_lines_are(bench: Bench) -> None:
    bench.command(0xD3, 0x5A)
    other = Bench()
    other.chip.write(0, 0xFF, 1)
    other.chip.restore(bench.chip.state())
    assert (other.edges[-1], other.aux_edges[-1]) == (False, True)
    assert other.chip.read(4, 1) & 0x21 == 0x21


def test_restore_refuses_more_than_the_queue_holds(bench: Bench) -> None:
    with pytest.raises(DeviceError, match="17 bytes"):
        bench.chip.restore({**bench.chip.state(), "queue_bytes": bytes(17), "queue_aux": bytes(17)})
