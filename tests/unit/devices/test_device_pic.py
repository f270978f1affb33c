"""The 8259A: what its data sheet pins, and any sequence of accesses against a small model of it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices.elcr import Elcr
from kvmpy.devices.pic import Pic8259, PicPair

EOI, SPECIFIC_EOI, ROTATE_EOI, SET_PRIORITY, ROTATE_SPECIFIC = 0x20, 0x60, 0xA0, 0xC0, 0xE0
READ_IRR, READ_ISR, POLL = 0x0A, 0x0B, 0x0C
SET_SPECIAL_MASK, RESET_SPECIAL_MASK = 0x68, 0x48


def initialised(icw4: int = 0x01, base: int = 0x20, **kwargs: Any) -> Pic8259:
    pic = Pic8259(**kwargs)
    for offset, value in ((0, 0x11), (1, base), (1, 0x04), (1, icw4)):
        pic.write(offset, value, 1)
    return pic


def pair() -> PicPair:
    pics = PicPair()
    for chip, base, wire in ((pics.master, 0x20, 4), (pics.slave, 0x28, 2)):
        for offset, value in ((0, 0x11), (1, base), (1, wire), (1, 0x01)):
            chip.write(offset, value, 1)
    return pics


def pulse(pic: Pic8259 | PicPair, line: int) -> None:
    pic.set_line(line, False)
    pic.set_line(line, True)
    pic.set_line(line, False)


def irr(pic: Pic8259) -> int:
    pic.write(0, READ_IRR, 1)
    return pic.read(0, 1)


def isr(pic: Pic8259) -> int:
    pic.write(0, READ_ISR, 1)
    return pic.read(0, 1)


def test_an_edge_is_acknowledged_once() -> None:
    levels: list[bool] = []
    pic = initialised(output=levels.append)
    pic.set_line(3, True)
    assert levels == [True] and irr(pic) == 8
    assert pic.acknowledge() == 3
    assert levels == [True, False] and (irr(pic), isr(pic)) == (0, 8)
    pic.set_line(3, True)  # no edge
    assert not pic.output
    pic.write(0, EOI, 1)
    assert isr(pic) == 0 and not pic.output
    pic.set_line(3, False)
    pic.set_line(3, True)
    assert pic.output


def test_a_level_asks_for_as_long_as_it_is_there() -> None:
    pic = initialised()
    pic.set_elcr(1 << 5)
    pic.set_line(5, True)
    assert pic.acknowledge() == 5
    assert irr(pic) == 0x20 and not pic.output  # in service: not above itself
    pic.write(0, EOI, 1)
    assert pic.output
    pic.set_line(5, False)
    assert not pic.output and irr(pic) == 0


def test_icw1_makes_every_line_level_triggered() -> None:
    pic = Pic8259()
    for offset, value in ((0, 0x19), (1, 0x40), (1, 4), (1, 1)):
        pic.write(offset, value, 1)
    pic.set_line(0, True)
    pic.set_line(0, False)
    assert not pic.output


def test_a_line_becomes_level_triggered_while_it_is_up() -> None:
    pic = initialised()
    pulse(pic, 5)
    assert irr(pic) == 0x20
    pic.set_elcr(0x20)
    assert irr(pic) == 0
    pic.set_line(5, True)
    pic.set_elcr(0)
    assert irr(pic) == 0


def test_priorities_and_nesting() -> None:
    pic = initialised()
    for line in (5, 1, 3):
        pulse(pic, line)
    assert pic.acknowledge() == 1
    assert not pic.output  # the others are below
    pulse(pic, 0)
    assert pic.acknowledge() == 0
    assert isr(pic) == 0b11
    pic.write(0, EOI, 1)
    assert isr(pic) == 0b10 and not pic.output
    pic.write(0, EOI, 1)
    assert pic.acknowledge() == 3


def test_specific_eoi_ends_that_one() -> None:
    pic = initialised()
    pulse(pic, 4)
    pic.acknowledge()
    pulse(pic, 2)
    pic.acknowledge()
    pic.write(0, SPECIFIC_EOI | 4, 1)
    assert isr(pic) == 1 << 2
    pic.write(0, SPECIFIC_EOI | 4, 1)
    assert isr(pic) == 1 << 2


def test_the_mask_holds_a_request_back() -> None:
    pic = initialised()
    pic.write(1, 0b1000, 1)
    assert pic.read(1, 1) == 0b1000
    pulse(pic, 3)
    assert not pic.output and irr(pic) == 8
    pic.write(1, 0, 1)
    assert pic.output


def test_rotation_makes_the_ended_one_the_lowest() -> None:
    pic = initialised()
    for line in (2, 6):
        pulse(pic, line)
    assert pic.acknowledge() == 2
    pic.write(0, ROTATE_EOI, 1)
    pulse(pic, 2)
    pulse(pic, 3)
    assert [pic.acknowledge()] == [3]
    pic.write(0, EOI, 1)
    assert pic.acknowledge() == 6
    pic.write(0, EOI, 1)
    assert pic.acknowledge() == 2


def test_set_priority_and_rotation_on_specific_eoi() -> None:
    pic = initialised()
    pic.write(0, SET_PRIORITY | 5, 1)
    for line in (0, 5, 6):
        pulse(pic, line)
    assert pic.acknowledge() == 6
    pic.write(0, ROTATE_SPECIFIC | 6, 1)
    assert isr(pic) == 0
    assert pic.acknowledge() == 0  # 7, 0, 1, … 6
    pic.write(0, EOI, 1)
    assert pic.acknowledge() == 5


def test_automatic_eoi_with_and_without_rotation() -> None:
    pic = initialised(icw4=0x03)
    pulse(pic, 4)
    assert pic.acknowledge() == 4 and isr(pic) == 0
    pic.write(0, 0x80, 1)  # rotate in automatic EOI mode
    pulse(pic, 4)
    assert pic.acknowledge() == 4
    pulse(pic, 4)
    pulse(pic, 5)
    assert pic.acknowledge() == 5
    pic.write(0, 0x00, 1)
    pulse(pic, 6)
    assert pic.acknowledge() == 6
    pulse(pic, 6)
    assert pic.acknowledge() == 6  # 4 was pending all the time, and is the lowest but one still
    assert pic.acknowledge() == 4


def test_special_mask_mode_lets_lower_ones_through() -> None:
    pic = initialised()
    pulse(pic, 1)
    pic.acknowledge()
    pulse(pic, 4)
    assert not pic.output
    pic.write(1, 1 << 1, 1)
    assert not pic.output
    pic.write(0, SET_SPECIAL_MASK, 1)
    assert pic.acknowledge() == 4
    pic.write(0, EOI, 1)  # doesn't end the masked one
    assert isr(pic) == 1 << 1
    pic.write(0, EOI, 1)
    assert isr(pic) == 1 << 1
    pic.write(0, RESET_SPECIAL_MASK, 1)
    pic.write(0, EOI, 1)
    assert isr(pic) == 0


def test_poll_mode_is_an_acknowledgement() -> None:
    pic = initialised()
    pulse(pic, 6)
    for port in (0, 1):
        pic.write(0, POLL, 1)
        word = pic.read(port, 1)
        assert word == (0x86 if port == 0 else 0x07)
    assert isr(pic) == 1 << 6 and irr(pic) == 0
    assert pic.read(1, 1) == 0


def test_a_request_that_is_gone_is_spurious() -> None:
    pic = initialised()
    pic.set_elcr(0x10)
    pic.set_line(4, True)
    pic.set_line(4, False)
    assert pic.acknowledge() == 7
    assert isr(pic) == 0


def test_icw1_forgets_edges_and_what_was_set() -> None:
    pic = initialised(icw4=0x13)
    pic.write(1, 0xF0, 1)
    pic.set_line(0, True)
    pic.acknowledge()
    pic.set_line(1, True)
    pic.write(0, SET_SPECIAL_MASK, 1)
    pic.write(0, SET_PRIORITY | 2, 1)
    pic.write(0, READ_ISR, 1)
    pic.write(0, 0x12, 1)  # single, no ICW4
    assert pic.read(1, 1) == 0 and not pic.output
    assert (pic.isr, pic.irr, pic.lowest, pic.special_mask, pic.read_isr, pic.icw4) == (
        0,
        0,
        7,
        False,
        False,
        0,
    )
    pic.write(1, 0x4F, 1)
    pic.write(1, 0xAA, 1)  # neither ICW3 nor ICW4 is waited for
    assert pic.read(1, 1) == 0xAA
    pic.set_line(0, False)
    pic.set_line(0, True)
    pic.write(1, 0, 1)
    assert pic.base | pic.acknowledge() == 0x48


def test_lines_of_both_chips() -> None:
    pics = pair()
    vectors = []
    for line in range(16):
        pulse(pics, line)
        if line == 2:
            assert not pics.output
            continue
        vectors.append(pics.acknowledge())
        for chip in (pics.slave, pics.master):
            chip.write(0, EOI, 1)
    assert vectors == [0x20 + line for line in range(16) if line != 2]
    assert not pics.output


def test_the_slave_comes_before_line_3() -> None:
    pics = pair()
    pulse(pics, 3)
    pulse(pics, 12)
    assert pics.acknowledge() == 0x2C
    assert (isr(pics.master), isr(pics.slave)) == (1 << 2, 1 << 4)
    pics.slave.write(0, EOI, 1)
    assert not pics.output  # the master still serves its input 2
    pics.master.write(0, EOI, 1)
    assert pics.acknowledge() == 0x23


def test_special_fully_nested_mode_lets_the_slaves_better_one_in() -> None:
    for icw4, nested in ((0x01, False), (0x11, True)):
        pics = pair()
        for offset, value in ((0, 0x11), (1, 0x20), (1, 4), (1, icw4)):
            pics.master.write(offset, value, 1)
        pulse(pics, 12)
        pics.acknowledge()
        pulse(pics, 9)
        assert pics.output is nested
        if nested:
            assert pics.acknowledge() == 0x29


def test_spurious_irq_15_leaves_the_masters_input_in_service() -> None:
    pics = pair()
    Elcr(pics.set_elcr).write(0, 1 << 10, 2)
    pics.set_line(10, True)
    assert pics.output
    # The line falls between the two chips' looks: the master has the edge, the slave nothing any more.
    pics.slave.irr = 0
    assert pics.acknowledge() == 0x2F
    assert (isr(pics.master), isr(pics.slave)) == (1 << 2, 0)


def test_reset_keeps_the_lines() -> None:
    pics = pair()
    pics.set_elcr(1 << 9)
    pics.set_line(9, True)
    pics.reset()
    assert not pics.output
    assert pics.slave.lines == 1 << 1
    for pic in (Pic8259(), initialised(icw4=0x03)):
        pic.write(0, 0x80, 1)
        pic.reset()
        assert pic.state() == Pic8259().state()


def test_the_cascade_stays_edge_triggered() -> None:
    pics = pair()
    pics.set_elcr(0xFFFF)
    assert pics.master.elcr == 0xFB


def test_restoring_drives_the_output() -> None:
    pics = pair()
    pulse(pics, 9)
    levels: list[bool] = []
    other = PicPair(levels.append)
    other.restore(pics.state())
    assert levels[-1] is True
    assert other.state() == pics.state()
    assert other.acknowledge() == 0x29


class Model:
    """The data sheet's block diagram with sets and a list of inputs by priority; one chip, initialised, edges only."""

    def __init__(self, aeoi: bool) -> None:
        self.aeoi = aeoi
        self.order = list(range(8))
        self.requested: set[int] = set()
        self.serving: set[int] = set()
        self.masked: set[int] = set()
        self.up: set[int] = set()
        self.special = self.rotate = False

    def next(self) -> int | None:
        for line in self.order:
            blocks = line in self.serving and not (self.special and line in self.masked)
            if blocks:
                return None
            if line in self.requested and line not in self.masked:
                return line
        return None

    def lowest(self, line: int) -> None:
        at = self.order.index(line)
        self.order = self.order[at + 1 :] + self.order[: at + 1]

    def line(self, line: int, level: bool) -> None:
        if level and line not in self.up:
            self.requested.add(line)
        (self.up.add if level else self.up.discard)(line)

    def acknowledge(self) -> int:
        line = self.next()
        if line is None:
            return 7
        self.requested.discard(line)
        if not self.aeoi:
            self.serving.add(line)
        elif self.rotate:
            self.lowest(line)
        return line

    def ocw2(self, value: int) -> None:
        rotate, specific, eoi, line = value & 0x80, value & 0x40, value & 0x20, value & 7
        if not eoi and not specific:
            self.rotate = bool(rotate)
            return
        if eoi and not specific:
            ended = [n for n in self.order if n in self.serving and not (self.special and n in self.masked)]
            if not ended:
                return
            line = ended[0]
        if eoi:
            self.serving.discard(line)
        if rotate:
            self.lowest(line)


LINES = st.tuples(st.just("line"), st.integers(0, 7), st.booleans())
OCW2 = st.tuples(st.just("ocw2"), st.integers(0, 7), st.integers(0, 7))
OTHER = st.tuples(st.sampled_from(["inta", "poll", "special", "plain"]), st.just(0), st.just(0))
MASK = st.tuples(st.just("mask"), st.integers(0, 255), st.just(0))
STEPS = st.lists(st.one_of(LINES, LINES, OTHER, OCW2, MASK), max_size=60)


def bits(lines: set[int]) -> int:
    return sum(1 << line for line in lines)


def step(pic: Pic8259, model: Model, kind: str, first: int, second: int) -> None:
    if kind == "line":
        pic.set_line(first, bool(second))
        model.line(first, bool(second))
    elif kind == "ocw2":
        pic.write(0, first << 5 | second, 1)
        model.ocw2(first << 5 | second)
    elif kind == "inta":
        assert pic.acknowledge() == model.acknowledge()
    elif kind == "poll":
        pic.write(0, POLL, 1)
        there = model.next() is not None
        assert pic.read(0, 1) == model.acknowledge() | (0x80 if there else 0)
    elif kind == "mask":
        pic.write(1, first, 1)
        model.masked = {line for line in range(8) if first >> line & 1}
    else:
        pic.write(0, SET_SPECIAL_MASK if kind == "special" else RESET_SPECIAL_MASK, 1)
        model.special = kind == "special"


@given(steps=STEPS, aeoi=st.booleans())
@settings(max_examples=400, deadline=None)
def test_against_the_model(steps: list[tuple[str, int, int]], aeoi: bool) -> None:
    pic, model = initialised(icw4=0x03 if aeoi else 0x01), Model(aeoi)
    for kind, first, second in steps:
        step(pic, model, kind, first, second)
        assert pic.output is (model.next() is not None)
        assert (irr(pic), isr(pic), pic.read(1, 1)) == (
            bits(model.requested),
            bits(model.serving),
            bits(model.masked),
        )


def test_elcr_reaches_both() -> None:
    pics = pair()
    elcr = Elcr(pics.set_elcr)
    elcr.write(0, 0xFFFF, 2)
    assert (pics.master.elcr, pics.slave.elcr) == (0xF8, 0xDE)
