"""Timers of devices, on an engine that plays back exits: when they are called, where, and what stands in their way."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from kvmpy._native import lib
from kvmpy.machine.engine_stub import StubEngine, port_write
from kvmpy.machine.machine import Machine
from kvmpy.machine.timers import GAP_NS

LONG_ENOUGH = 60.0
MS = 1_000_000


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Its guest writes to a port for ever, and C handles it."""
    with Machine("1M", engine=StubEngine([port_write(0x80, b"\0")], fixed=True)) as made:
        made.ports.drop(0x80)
        yield made


def test_a_timer_is_called_when_its_moment_has_come(machine: Machine) -> None:
    timers = machine.timers
    called: list[tuple[int, int]] = []

    def due() -> None:
        called.append((timers.now(), threading.get_ident()))
        machine.stop()

    when = timers.now() + 5 * MS
    timers.arm(timers.add(due), when)
    assert machine.run(timeout=LONG_ENOUGH).reason == "stopped"
    ((at, thread),) = called
    assert at >= when and thread == threading.get_ident()


def test_what_a_timer_returns_is_its_next_moment(machine: Machine) -> None:
    timers = machine.timers
    called: list[int] = []

    def due() -> int | None:
        called.append(timers.now())
        return timers.now() + MS if len(called) < 5 else None

    timers.arm(timers.add(due), timers.now())
    assert machine.run(timeout=0.1).reason == "timeout"
    assert len(called) == 5
    assert all(after - before >= MS for before, after in pairwise(called))


def test_a_timer_that_is_always_due_leaves_the_guest_a_gap(machine: Machine) -> None:
    timers = machine.timers
    called: list[int] = []

    def due() -> int:
        called.append(timers.now())
        return 0

    timers.arm(timers.add(due), 0)
    result = machine.run(timeout=0.05)
    assert result.reason == "timeout"
    assert len(called) > 1
    assert all(after - before >= GAP_NS for before, after in pairwise(called))
    assert result.exits["IO"] > len(called)


def test_the_sooner_of_two_and_one_put_off_or_off(machine: Machine) -> None:
    timers = machine.timers
    order: list[str] = []
    first, second, third, never = (
        timers.add(lambda name=name: order.append(name))  # type: ignore[misc]
        for name in ("first", "second", "third", "never")
    )
    now = timers.now()
    timers.arm(third, now + MS)
    timers.arm(never, now + 2 * MS)
    timers.arm(second, now + 6 * MS)
    timers.arm(first, now + 3 * MS)
    timers.arm(third, now + 9 * MS)
    timers.arm(never, None)
    machine.run(timeout=0.05)
    assert order == ["first", "second", "third"]


def test_armed_by_another_thread_while_the_guest_runs(machine: Machine) -> None:
    timers = machine.timers
    timer = timers.add(machine.stop)
    threading.Timer(0.01, lambda: timers.arm(timer, timers.now() + MS)).start()
    assert machine.run(timeout=LONG_ENOUGH).reason == "stopped"


def test_armed_by_a_handler(machine: Machine) -> None:
    timers = machine.timers
    timer = timers.add(machine.stop)
    del machine.ports[0x80]
    armed: list[int] = []

    @machine.ports.on_write(0x80)
    def write(offset: int, value: int, size: int) -> None:
        if not armed:
            armed.append(timers.now() + 2 * MS)
            timers.arm(timer, armed[0])

    assert machine.run(timeout=LONG_ENOUGH).reason == "stopped"
    assert timers.now() >= armed[0]


def test_an_exception_comes_out_and_the_other_timers_stand(machine: Machine) -> None:
    timers = machine.timers
    other: list[int] = []

    def fail() -> None:
        raise LookupError("no such luck")

    timers.arm(timers.add(fail), timers.now())
    timers.arm(timers.add(lambda: other.append(1)), timers.now())
    with pytest.raises(LookupError, match="no such luck"):
        machine.run(timeout=LONG_ENOUGH)
    assert machine.run(timeout=0.01).reason == "timeout"
    assert other == [1]


def test_the_deadline_stands_beside_the_timers(machine: Machine) -> None:
    timers = machine.timers
    timers.arm(timers.add(lambda: timers.now() + MS), timers.now())
    began = time.monotonic()
    assert machine.run(timeout=0.03).reason == "timeout"
    assert time.monotonic() - began >= 0.03


def test_moments_that_pass_between_runs_are_due_at_once(machine: Machine) -> None:
    timers = machine.timers
    called: list[int] = []
    timers.arm(timers.add(lambda: called.append(1)), timers.now() + MS)
    time.sleep(0.002)
    assert called == []
    machine.run(timeout=0.005)
    assert called == [1]


@pytest.mark.threads
def test_several_vcpus_call_timers_on_the_first_ones_thread() -> None:
    seen: list[str] = []
    with Machine("1M", 3, StubEngine([port_write(0x80, b"\0")], fixed=True), irqchip="kernel") as machine:
        machine.ports.drop(0x80)
        timers = machine.timers

        def due() -> int:
            seen.append(threading.current_thread().name)
            if len(seen) == 3:
                machine.stop()
            return 0

        timers.arm(timers.add(due), 0)
        assert machine.run(timeout=LONG_ENOUGH).reason == "stopped"
    assert set(seen) == {"vCPU 0"}


# What it stands on: native/kick.c


def test_sleep_ends_with_a_kick_that_came_before(machine: Machine) -> None:
    native = machine.cpus[0].native
    assert lib.kvmpy_thread_enter(native, 0, 0) == 0
    try:
        lib.kvmpy_kick(native, lib.KVMPY_KICK_IRQ)
        lib.kvmpy_sleep(native, int(LONG_ENOUGH * 1e9))
        assert lib.kvmpy_take_kick(native) == lib.KVMPY_KICK_IRQ
        assert lib.kvmpy_take_kick(native) == 0
    finally:
        lib.kvmpy_thread_leave(native)


def test_sleep_ends_with_a_kick_from_elsewhere_a_time_or_a_signal(machine: Machine) -> None:
    native = machine.cpus[0].native
    assert lib.kvmpy_thread_enter(native, 0, 0) == 0
    caught: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *given: caught.append(1))
    try:
        threading.Timer(0.01, lib.kvmpy_kick, (native, lib.KVMPY_KICK_IRQ)).start()
        lib.kvmpy_sleep(native, int(LONG_ENOUGH * 1e9))
        assert lib.kvmpy_take_kick(native) == lib.KVMPY_KICK_IRQ
        assert lib.kvmpy_wake_at(native, time.monotonic_ns() + 10 * MS) == 0
        lib.kvmpy_sleep(native, int(LONG_ENOUGH * 1e9))
        assert lib.kvmpy_take_kick(native) == lib.KVMPY_KICK_WAKE
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        lib.kvmpy_sleep(native, int(LONG_ENOUGH * 1e9))
        assert caught == [1] and lib.kvmpy_take_kick(native) == 0
        lib.kvmpy_sleep(native, MS)
        assert lib.kvmpy_take_kick(native) == 0
    finally:
        lib.kvmpy_thread_leave(native)
        signal.signal(signal.SIGALRM, before)


def test_a_time_put_off_is_no_kick(machine: Machine) -> None:
    native = machine.cpus[0].native
    assert lib.kvmpy_thread_enter(native, 0, 0) == 0
    try:
        lib.kvmpy_wake_at(native, time.monotonic_ns() + 2 * MS)
        time.sleep(0.004)  # the signal has come
        lib.kvmpy_wake_at(native, time.monotonic_ns() + 50 * MS)
        assert lib.kvmpy_take_kick(native) == 0
        lib.kvmpy_sleep(native, int(LONG_ENOUGH * 1e9))
        assert lib.kvmpy_take_kick(native) == lib.KVMPY_KICK_WAKE
        lib.kvmpy_wake_at(native, time.monotonic_ns() + 2 * MS)
        lib.kvmpy_wake_at(native, 0)
        lib.kvmpy_sleep(native, 5 * MS)
        assert lib.kvmpy_take_kick(native) == 0
    finally:
        lib.kvmpy_thread_leave(native)


def test_deadline_tick_and_wake_are_told_apart(machine: Machine) -> None:
    native = machine.cpus[0].native
    assert lib.kvmpy_thread_enter(native, time.monotonic_ns() + 25 * MS, 10 * MS) == 0
    try:
        lib.kvmpy_wake_at(native, time.monotonic_ns() + 15 * MS)
        whys = []
        while not whys or not whys[-1] & lib.KVMPY_KICK_DEADLINE:
            lib.kvmpy_sleep(native, int(LONG_ENOUGH * 1e9))
            whys.append(lib.kvmpy_take_kick(native))
        told = 0
        for why in whys:
            told |= why
        assert told == lib.KVMPY_KICK_TICK | lib.KVMPY_KICK_WAKE | lib.KVMPY_KICK_DEADLINE
        assert sum(bool(why & lib.KVMPY_KICK_WAKE) for why in whys) == 1
    finally:
        lib.kvmpy_thread_leave(native)
