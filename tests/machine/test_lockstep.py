"""The engines of this host in step, on every bundled guest; and what shows if they don't agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from engines import working
from expected_outputs import EXPECTED, INPUT

from kvmpy.boot import bundled
from kvmpy.lab.lockstep import Lockstep, NotComparable, Side, same_cpuid
from kvmpy.lab.twins import Guest, compare
from kvmpy.machine.machine import Machine

LONG_ENOUGH = 100.0
pytestmark = pytest.mark.kvmpy(timeout=2 * LONG_ENOUGH)
TIMED = ("real-echo", "real-irq", "time-pit", "work-eventfd", "wait-poll", "wait-hlt")
"""They look at clocks, take interrupts or have another thread work for them."""
CLOCKED = ("time-rtc",)  # what it reads depends on where in the host's second each side is
STEADY = [
    name for name, (_, _, ends) in EXPECTED.items() if ends != "never" and name not in (*TIMED, *CLOCKED)
]


@pytest.fixture
def both() -> list[str]:
    names = working()
    if len(names) < 2:
        pytest.skip(f"lock step needs two engines: this host has {' and '.join(names) or 'none'}")
    return names


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.mark.parametrize("name", [name for name in STEADY if name not in ("exit-storm", "smp-hello")])
def test_they_agree_exit_by_exit(both: list[str], name: str) -> None:
    found = compare(Guest(name), both, timeout=LONG_ENOUGH)
    assert found.difference is None, found.difference.as_dict()
    assert found.unfinished == ""
    assert found.states > 0 or bundled.find(name).needs["ends"] == "crash"
    if name != "time-pvclock":  # in step there is no clock to be had
        assert found.output == EXPECTED[name][0].replace(b"16384 pages written, 64", b"2048 pages written, 8")


def test_they_agree_on_ten_thousand_exits(both: list[str]) -> None:
    found = compare(Guest("exit-storm"), both, every=1000, timeout=LONG_ENOUGH)
    assert found.difference is None and found.events > 10_000 and found.states < 20


@pytest.mark.parametrize("name", TIMED)
def test_they_agree_but_for_time(both: list[str], name: str) -> None:
    found = compare(Guest(name, sent=INPUT.get(name, b"")), both, tolerate=["time"], timeout=LONG_ENOUGH)
    assert found.difference is None, found.difference.as_dict()
    assert found.unfinished == ""


def test_what_a_run_costs_is_told_of_each(both: list[str]) -> None:
    found = compare(Guest("long-hello"), both, timeout=LONG_ENOUGH)
    assert list(found.engines) == both
    for run in found.engines.values():
        assert run["exits_by_reason"] == {"IO": 42, "HLT": 1} and run["exits"] == 43
        assert run["start_up"] > 0 and 0 < run["wall"] < LONG_ENOUGH
        assert 4096 <= run["guest_memory"] < 8 << 20
    json.dumps(found.as_dict())


# One engine twice, and one of the two machines is broken.


def pair(stack: ExitStack, guest: Guest, engine: str = "") -> list[Side]:
    engine = engine or working()[0]
    made = [guest.machine(engine, stack) for _ in range(2)]
    same_cpuid([machine for machine, _ in made])
    return [Side(name, machine, out) for name, (machine, out) in zip(("good", "bad"), made, strict=True)]


class WrongBit:
    """A device with one bit wrong, from the nth read on."""

    def __init__(self, device: Any, after: int) -> None:
        self.device, self.left = device, after

    def read(self, offset: int, size: int) -> int:
        self.left -= 1
        value: int = self.device.read(offset, size)
        return value ^ 0x80 if self.left < 0 else value

    def write(self, offset: int, value: int, size: int) -> None:
        self.device.write(offset, value, size)


def breaks(machine: Machine, after: int) -> None:
    """Breaks the serial port."""
    range_ = machine.ports[0x3F8]
    device, first, length = range_.owner, range_.first, range_.length
    machine.ports.detach(range_)
    machine.ports.attach(first, length, WrongBit(device, after), "serial")


def test_a_wrong_bit_of_a_device_is_shown_at_its_exit(stack: ExitStack) -> None:
    good, bad = pair(stack, Guest("long-hello"))
    breaks(bad.machine, after=7)
    difference = Lockstep([good, bad], timeout=LONG_ENOUGH).run()
    assert difference is not None
    assert (difference.what, difference.events) == ("exit", 14)  # status and byte, seven times
    assert difference.values == (
        "port 0x3fd: 1 byte read that gave 0x60",
        "port 0x3fd: 1 byte read that gave 0xe0",
    )
    assert "test al, 0x20" in difference.code[0][0]
    assert difference.registers["rax"][0] ^ difference.registers["rax"][1] == 0x80


def test_a_wrong_bit_of_memory_is_shown_with_its_page(stack: ExitStack) -> None:
    good, bad = pair(stack, Guest("long-hello"))
    bad.machine.memory.write_u8(0x7FFFFF, 1)
    difference = Lockstep([good, bad], timeout=LONG_ENOUGH).run()
    assert difference is not None
    assert (difference.what, difference.events, difference.page_count) == ("memory", 1, 1)
    assert difference.pages == [(0x7FFFF0, bytes(16), bytes(15) + b"\x01")]


def test_a_wrong_register_is_shown(stack: ExitStack) -> None:
    good, bad = pair(stack, Guest("long-hello"))
    bad.machine.cpus[0].regs.r15 = 1 << 63
    bad.machine.cpus[0].sregs.cr2 = 0x5000
    difference = Lockstep([good, bad], timeout=LONG_ENOUGH).run()
    assert difference is not None
    assert difference.registers == {"r15": (0, 1 << 63), "cr2": (0, 0x5000)}


def test_the_type_of_a_code_segment_is_nothing_in_real_mode(stack: ExitStack) -> None:
    """VT-x says that CS is writable data there, others say code: no program can tell."""
    good, bad = pair(stack, Guest("real-hello"))
    bad.machine.cpus[0].sregs.cs.type = 3
    assert "cs.type" not in bad.registers() and "cs.base" in bad.registers()
    assert Lockstep([good, bad], timeout=LONG_ENOUGH).run() is None


def test_what_only_one_engine_can_run_is_not_compared(both: list[str]) -> None:
    with pytest.raises(NotComparable, match="smp-hello wants 2 vCPUs"):
        compare(Guest("smp-hello"), both)
    with pytest.raises(NotComparable, match=f"only {both[0]} can run it here"):
        compare(Guest("long-hello"), both[:1])
