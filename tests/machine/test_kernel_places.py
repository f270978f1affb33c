"""The place "kernel": eventfds, writes that are handed over in bulk, MSRs that are KVM's own."""

from __future__ import annotations

import math
import os
import select
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kvmpy.errors import BusError
from kvmpy.machine.machine import Machine
from kvmpy.machine.rules import Drop

Machines = Callable[..., Machine]
LONG_ENOUGH = 60.0
HLT = b"\xf4"
pytestmark = pytest.mark.kvmpy(engine="kvm", memory="1M", mode="real", trace=False, timeout=math.inf)

AL, AX = b"\xe6", b"\xe7"  # out %al, $port; out %ax, $port


class Seen:
    """Writes in the order they are handed over."""

    def __init__(self, log: list[tuple[Any, ...]], name: str, fail_at: int | None = None) -> None:
        self.log = log
        self.name = name
        self.fail_at = fail_at

    def write(self, offset: int, value: int, size: int) -> None:
        if self.fail_at == value:
            self.fail_at = None
            raise ZeroDivisionError
        self.log.append((self.name, offset, value, size))


def counting(*ports: int) -> bytes:
    """Writes 1, 2, 3, … to the ports in turn; then hlt."""
    return b"".join(bytes((0xB0, n, 0xE6, port)) for n, port in enumerate(ports, 1)) + b"\xf4"


def test_an_eventfd_takes_the_place_of_an_exit(machines: Machines) -> None:
    machine = machines(counting(0x80, 0x80, 0x80))
    event = machine.ports.eventfd(0x80)
    result = machine.run(timeout=LONG_ENOUGH)
    assert result.exits == {"HLT": 1}
    assert result.ranges == [("port", "eventfd", 0x80, 0x80, "kernel", 3)]
    assert machine.ports[0x80].count == 3
    assert select.select([event], [], [], 0)[0] == [event]  # nobody but take() takes the news away
    assert (event.take(), event.take()) == (3, 0)
    assert machine.ports[0x80].count == 3


@pytest.mark.parametrize(
    ("length", "datamatch", "signals", "exits"),
    [
        (0, None, 3, 0),
        (1, None, 2, 1),
        (2, None, 1, 2),
        (1, 2, 1, 2),
        (2, 0x103, 1, 2),
        (1, 9, 0, 3),
        (4, None, 0, 3),
    ],
)
def test_an_eventfd_for_some_writes(
    machines: Machines, length: int, datamatch: int | None, signals: int, exits: int
) -> None:
    # mov $1, %al; out; mov $2, %al; out; mov $0x103, %ax; out %ax; hlt
    code = b"\xb0\x01\xe6\x80\xb0\x02\xe6\x80\xb8\x03\x01\xe7\x80\xf4"
    machine = machines(code)
    event = machine.ports.eventfd(0x80, length, datamatch)
    result = machine.run(timeout=LONG_ENOUGH)
    assert event.take() == signals
    assert result.exits == ({"IO": exits} if exits else {}) | {"HLT": 1}


@pytest.mark.parametrize(("length", "datamatch"), [(1, None), (1, 2)])
def test_python_does_what_the_kernel_would(machines: Machines, length: int, datamatch: int | None) -> None:
    code = counting(0x80, 0x80, 0x80)[:-1] + b"\xe7\x80\xf4"  # and a word
    there, here = machines(code), machines(code)
    events = [machine.ports.eventfd(0x80, length, datamatch) for machine in (there, here)]
    here.ports[0x80].place = "python"
    for machine in (there, here):
        machine.run(timeout=LONG_ENOUGH)
    assert events[0].take() == events[1].take() == (3 if datamatch is None else 1)
    assert here.ports[0x80].count == 4


@pytest.mark.parametrize(
    ("length", "datamatch", "message"),
    [
        (3, None, "length 3"),
        (-1, None, "length -1"),
        (0, 5, "datamatch 0x5"),
        (1, 256, "datamatch 0x100"),
        (2, -1, "-"),
    ],
)
def test_eventfds_that_cant_be(machines: Machines, length: int, datamatch: int | None, message: str) -> None:
    machine = machines(HLT)
    with pytest.raises(BusError, match=message):
        machine.ports.eventfd(0x80, length, datamatch)
    assert len(machine.ports) == 0


def test_eventfds_leave_nothing_behind(machines: Machines) -> None:
    machine = machines(HLT)
    before = len(os.listdir("/proc/self/fd"))
    first = machine.ports.eventfd(0x80)
    with pytest.raises(BusError, match="overlaps"):
        machine.ports.eventfd(0x80)
    second = machine.ports.eventfd(0x81)
    machine.ports.detach(machine.ports[0x81])
    machine.close()
    assert (first.fileno(), second.fileno()) == (-1, -1)
    assert len(os.listdir("/proc/self/fd")) < before


def test_a_detached_eventfd_isnt_signalled_any_more(machines: Machines) -> None:
    machine = machines(counting(0x80, 0x81, 0x80))
    event = machine.ports.eventfd(0x80)
    machine.ports.on_write(0x81)(lambda *what: machine.ports.detach(machine.ports[0x80]))
    result = machine.run(timeout=LONG_ENOUGH)
    assert (event.take(), result.unowned) == (1, 1)


def test_writes_are_handed_over_before_the_exit_that_follows(machines: Machines) -> None:
    machine = machines(counting(0x80, 0x81, 0x80, 0x80, 0x90, 0x81, 0x90, 0x80))
    log: list[tuple[Any, ...]] = []
    for port in (0x80, 0x81, 0x90):
        machine.ports.attach(port, 1, Seen(log, f"{port:x}"))
    machine.ports[0x80].place = machine.ports[0x81].place = "kernel"
    result = machine.run(timeout=LONG_ENOUGH)
    order = ["80", "81", "80", "80", "90", "81", "90", "80"]
    assert log == [(name, 0, n, 1) for n, name in enumerate(order, 1)]
    assert result.exits == {"IO": 2, "HLT": 1}
    assert sorted((name, count) for _, name, _, _, _, count in result.ranges) == [
        ("80", 4),
        ("81", 2),
        ("90", 2),
    ]


def test_memory_writes_wait_too(machines: Machines) -> None:
    # movabs $0xfe000000, %rbx; mov %al, 1(%rbx); mov %rax, 8(%rbx); mov 8(%rbx), %eax; hlt
    code = b"\x48\xbb\x00\x00\x00\xfe\0\0\0\0\x88\x43\x01\x48\x89\x43\x08\x8b\x43\x08\xf4"
    machine = machines(code, "long", memory="2M")
    machine.cpus[0].regs.rax = 0x1122334455667788
    log: list[tuple[Any, ...]] = []
    device = Seen(log, "m")
    device.read = lambda offset, size: len(log)  # type: ignore[attr-defined]
    machine.mmio.attach(0xFE000000, 16, device).place = "kernel"
    result = machine.run(timeout=LONG_ENOUGH)
    assert log == [("m", 1, 0x88, 1), ("m", 8, 0x1122334455667788, 8)]
    assert machine.cpus[0].regs.rax == 2
    assert result.exits == {"MMIO": 1, "HLT": 1}
    assert machine.mmio[0xFE000000].count == 3


def test_a_full_ring_of_the_kernel_loses_nothing(machines: Machines) -> None:
    machine = machines(b"\xe6\x80\x40\x49\x75\xfa\xf4")  # 1: out %al, $0x80; inc %ax; dec %cx; jnz 1b; hlt
    machine.cpus[0].regs.update({"rax": 0, "rcx": 1000})
    log: list[tuple[Any, ...]] = []
    machine.ports.attach(0x80, 1, Seen(log, "p")).place = "kernel"
    result = machine.run(timeout=LONG_ENOUGH)
    assert [value for _, _, value, _ in log] == [n & 0xFF for n in range(1000)]
    assert result.exits["IO"] < 100
    assert machine.ports[0x80].count == 1000


def test_what_waits_is_handed_over_when_the_run_ends(machines: Machines) -> None:
    machine = machines(counting(0x80, 0x80)[:-1] + b"\xeb\xfe")
    log: list[tuple[Any, ...]] = []
    machine.ports.attach(0x80, 1, Seen(log, "p")).place = "kernel"
    assert machine.run(timeout=0.2).reason == "timeout"
    assert [value for _, _, value, _ in log] == [1, 2]


@pytest.mark.parametrize("skip", [False, True])
def test_an_owner_that_raises_is_handed_the_write_again(machines: Machines, skip: bool) -> None:
    machine = machines(counting(0x80, 0x80, 0x80, 0x90, 0x80))
    log: list[tuple[Any, ...]] = []
    machine.ports.attach(0x80, 1, Seen(log, "p", fail_at=2)).place = "kernel"
    machine.ports.attach(0x90, 1, Seen(log, "q"))
    with pytest.raises(ZeroDivisionError) as caught:
        machine.run(timeout=LONG_ENOUGH)
    assert caught.value.__notes__ == ["at a write that the kernel had kept on vCPU 0"]
    assert [value for _, _, value, _ in log] == [1]
    if skip:
        machine.skip()
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert [value for _, _, value, _ in log] == ([1, 3, 4, 5] if skip else [1, 2, 3, 4, 5])


def test_writes_stay_their_owners_when_the_range_goes(machines: Machines) -> None:
    """The handler of a later exit detaches the range, and puts another in its place."""
    machine = machines(counting(0x80, 0x80, 0x90, 0x80))
    log: list[tuple[Any, ...]] = []
    first = machine.ports.attach(0x80, 1, Seen(log, "first"))
    first.place = "kernel"

    @machine.ports.on_write(0x90)
    def change(offset: int, value: int, size: int) -> None:
        machine.ports.detach(first)
        machine.ports.attach(0x80, 1, Seen(log, "second"))

    machine.run(timeout=LONG_ENOUGH)
    assert log == [("first", 0, 1, 1), ("first", 0, 2, 1), ("second", 0, 4, 1)]
    assert first.count == 2


@pytest.mark.threads
def test_writes_stay_their_owners_when_the_range_goes_meanwhile(machines: Machines) -> None:
    """The same from another thread, with the writes still in the kernel's hands."""
    machine = machines(counting(0x80, 0x80, 0x90)[:-1] + b"\xeb\xfe")
    log: list[tuple[Any, ...]] = []
    first = machine.ports.attach(0x80, 1, Seen(log, "first"))
    first.place = "kernel"
    event = machine.ports.eventfd(0x90)

    def change() -> None:
        select.select([event], [], [], LONG_ENOUGH)
        machine.ports.detach(first)
        machine.ports.attach(0x80, 1, Seen(log, "second"))
        machine.stop()

    thread = threading.Thread(target=change)
    thread.start()
    machine.run(timeout=LONG_ENOUGH)
    thread.join()
    assert log == [("first", 0, 1, 1), ("first", 0, 2, 1)]
    assert first.count == 2


def test_a_drop_in_the_kernel_still_answers_reads(machines: Machines) -> None:
    machine = machines(b"\xe6\x80\xe4\x80\xf4")  # out %al, $0x80; in $0x80, %al; hlt
    range_ = machine.ports.attach(0x80, 1, Drop(0x5A))
    range_.place = "kernel"
    result = machine.run(timeout=LONG_ENOUGH)
    assert machine.cpus[0].regs.rax & 0xFF == 0x5A
    assert result.exits == {"IO": 1, "HLT": 1}
    assert range_.count == 2


def test_hypercalls_cant_be_the_kernels(machines: Machines) -> None:
    machine = machines(HLT)
    range_ = machine.hypercalls.attach(5, 1, Seen([], "call"))
    with pytest.raises(BusError, match="hypercalls can't be handled in the kernel"):
        range_.place = "kernel"
    assert range_.place == "python"


def test_an_msr_between_python_and_the_kernel(machines: Machines) -> None:
    pat = 0x277
    # 1: rdmsr; out %al, $0x80; jmp 1b
    machine = machines(b"\x0f\x32\xe6\x80\xeb\xfa")
    machine.cpus[0].regs.rcx = pat
    seen: list[int] = []
    range_ = machine.msrs.attach(pat, 1, type("Pat", (), {"read": staticmethod(lambda offset, size: 0x42)})())
    places = ["kernel", "python"] * 10

    @machine.ports.on_write(0x80)
    def write(offset: int, value: int, size: int) -> None:
        seen.append(value)
        if not places:
            machine.stop()
        else:
            range_.place = places.pop(0)

    own = machine.cpus[0].msrs["PAT"] & 0xFF
    machine.run(timeout=LONG_ENOUGH)
    assert seen == [0x42, own] * 10 + [0x42]
    assert range_.count == 11


def test_more_msr_ranges_than_the_kernels_filter_has(machines: Machines) -> None:
    machine = machines(b"\xf4\xf4")
    machine.run(timeout=LONG_ENOUGH)
    for n in range(16):
        machine.msrs.attach(0x1000 + 2 * n, 1, Seen([], "msr"))
    with pytest.raises(BusError, match="17 ranges of MSRs: the kernel's filter has 16 at most"):
        machine.msrs.attach(0x2000, 1, Seen([], "one too many"))
    assert len(machine.msrs) == 16
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
