"""Paravirtual guests against their unmodified twins, and what a guest can do wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from expected_outputs import LINES

from kvmpy.boot import bundled
from kvmpy.machine.hypercalls import KVM_E2BIG, KVM_EFAULT, KVM_EINVAL
from kvmpy.machine.machine import Machine
from kvmpy.machine.paravirt import ADD, END, PRINT, SHARE_TEXT, SHARE_WORK, TAKE_TEXT, TIME, Paravirt
from kvmpy.machine.pc import Pc
from kvmpy.machine.result import Result

LONG_ENOUGH = 60.0
Machines = Callable[..., Machine]
pytestmark = pytest.mark.kvmpy(timeout=2 * LONG_ENOUGH)


def run(machines: Machines, name: str) -> tuple[bytes, Result]:
    guest, output = bundled.find(name), bytearray()
    irqchip = "any" if guest.needs["irqchip"] == "kernel" else "none"
    machine = machines(memory="2M", irqchip=irqchip)
    Pc(machine, output.extend)
    if guest.needs["paravirt"]:
        Paravirt(machine, output.extend)
    machine.load(name)
    result = machine.run(timeout=LONG_ENOUGH)
    return bytes(output), result


def exits(machines: Machines, name: str) -> int:
    _, result = run(machines, name)
    assert result.reason in ("halt", "exit") and result.status == 0
    return sum(result.exits.values()) - result.exits.get("HLT", 0)


def test_a_line_is_one_exit_where_the_uart_needs_two_a_byte(machines: Machines) -> None:
    assert exits(machines, "console-uart") == 2 * len(LINES)
    assert exits(machines, "console-hypercall") == len(LINES.splitlines())
    assert exits(machines, "console-ring") == 2  # one to say where it is, one to ring


def test_a_clock_in_memory_needs_no_exits(machines: Machines) -> None:
    word = len(b"steady\n")
    assert exits(machines, "time-pvclock") <= word + 2  # where KVM has the clock: only the word and the end
    assert exits(machines, "time-rtc") >= 4000


def test_work_by_eventfd_leaves_the_vcpu_alone(machines: Machines) -> None:
    through_port = exits(machines, "work-pio")
    assert 1000 < through_port <= 1008
    assert exits(machines, "work-hypercall") <= through_port
    by_event = exits(machines, "work-eventfd")
    assert by_event == pytest.approx(through_port, abs=10) or by_event < 20


def test_sleeping_instead_of_asking(machines: Machines) -> None:
    assert exits(machines, "wait-hlt") < 30 < exits(machines, "wait-poll")


@pytest.mark.parametrize("name", ["console-hypercall", "console-ring", "work-hypercall", "work-eventfd"])
def test_without_kvmpy_they_say_so(machines: Machines, name: str) -> None:
    machine = machines(memory="2M")
    output = bytearray()
    Pc(machine, output.extend)
    machine.load(name)
    result = machine.run(timeout=LONG_ENOUGH)
    assert (result.reason, result.status) == ("exit", 1)


class Rig:
    """Hypercalls made by a test instead of a guest."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.output = bytearray()
        self.ended: list[int] = []
        self.paravirt = Paravirt(machine, self.output.extend, self.ended.append)

    def __call__(self, nr: int, *args: int) -> int:
        registry = self.machine.hypercall_registry
        assert registry is not None
        padded: Any = (*args, 0, 0, 0, 0)[:4]
        answer = registry.call(self.machine.cpus[0], nr, padded, True, 0)
        return answer - (1 << 64) if answer >> 63 else answer


@pytest.fixture
def rig(machines: Machines) -> Rig:
    return Rig(machines(memory="2M"))


def test_printing(rig: Rig) -> None:
    rig.machine.memory.write(0x1000, b"hello\n")
    assert rig(PRINT, 0x1000, 6) == 6
    assert rig(PRINT, 0x1000, 0) == 0
    assert rig.output == b"hello\n"
    assert rig(PRINT, (2 << 20) - 3, 4) == -KVM_EFAULT
    assert rig(PRINT, 1 << 63, 4) == -KVM_EFAULT
    assert rig(PRINT, 0x1000, (64 << 10) + 1) == -KVM_E2BIG
    assert rig.output == b"hello\n"


def test_the_ring_goes_round(rig: Rig) -> None:
    memory = rig.machine.memory
    memory.write_u32(0x1000, 0xFFFFFFFE)  # HEAD and TAIL go on for ever, here over the end of 32 bits
    memory.write_u32(0x1004, 0xFFFFFFFE)
    assert rig(SHARE_TEXT, 0x1000, 8) == 0
    memory.write(0x1008, b"CDEFGHAB")
    memory.write_u32(0x1000, 6)
    assert rig(TAKE_TEXT) == 8
    assert rig.output == b"ABCDEFGH"
    assert memory.read_u32(0x1004) == 6
    assert rig(TAKE_TEXT) == 0


def test_a_ring_that_claims_too_much(rig: Rig) -> None:
    assert rig(TAKE_TEXT) == -KVM_EINVAL  # there is none yet
    assert rig(SHARE_TEXT, 0x1000, 8) == 0
    rig.machine.memory.write_u32(0x1000, 9)
    assert rig(TAKE_TEXT) == -KVM_EINVAL
    assert rig.machine.memory.read_u32(0x1004) == 0
    assert not rig.output


@pytest.mark.parametrize(
    ("gpa", "size", "code"),
    [
        (0x1001, 8, KVM_EINVAL),
        (0x1000, 0, KVM_EINVAL),
        (0x1000, 12, KVM_EINVAL),
        (0x1000, 1 << 40, KVM_E2BIG),
        ((2 << 20) - 8, 8, KVM_EFAULT),
        (1 << 60, 8, KVM_EFAULT),
    ],
)
def test_rings_that_can_not_be(rig: Rig, gpa: int, size: int, code: int) -> None:
    assert rig(SHARE_TEXT, gpa, size) == -code
    if size != 12:
        assert rig(SHARE_WORK, gpa, size) == -code


def test_the_others(rig: Rig) -> None:
    assert rig(ADD, 5) == 0 and rig(ADD, 1 << 32 | 6) == 0
    assert rig.paravirt.worker.sum == 11
    first, second = rig(TIME), rig(TIME)
    assert 0 < first <= second
    assert rig(END, 7) == 0
    assert rig.ended == [7]
