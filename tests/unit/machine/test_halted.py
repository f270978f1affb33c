"""When several vCPUs count as halted for good: each is looked at in turn, and one may wake another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmpy.machine.engine_stub import StubEngine
from kvmpy.machine.machine import Machine


class Sleepers:
    """vCPUs that sleep as it is said, looked at as the run's ticks do."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        for cpu in machine.cpus:
            cpu.asleep_for_good = lambda index=cpu.index: index in self.asleep  # type: ignore[method-assign,misc]
        self.asleep: set[int] = set()

    def look_at(self, *indices: int) -> str:
        for index in indices:
            self.machine.tick(self.machine.cpus[index])
        return self.machine.ending.reason if self.machine.ending is not None else ""


@pytest.fixture
def sleepers() -> Iterator[Sleepers]:
    with Machine("4K", 2, StubEngine([]), irqchip="kernel") as machine:
        yield Sleepers(machine)


def test_all_asleep_is_the_end_at_the_second_look(sleepers: Sleepers) -> None:
    sleepers.asleep = {0, 1}
    assert sleepers.look_at(0, 1) == ""
    assert sleepers.look_at(0) == ""
    assert sleepers.look_at(1) == "halt"


def test_one_awake_is_enough(sleepers: Sleepers) -> None:
    sleepers.asleep = {0}
    assert sleepers.look_at(0, 1, 0, 1, 0, 1) == ""


def test_a_sleeper_woken_by_one_that_falls_asleep_itself(sleepers: Sleepers) -> None:
    """vCPU 1 is seen asleep, vCPU 0 wakes it and is seen asleep: nobody was seen awake, but one is."""
    sleepers.asleep = {1}
    assert sleepers.look_at(1) == ""
    sleepers.asleep = {0}
    assert sleepers.look_at(0) == ""
    assert sleepers.look_at(1, 0, 1, 0) == ""
    sleepers.asleep = {0, 1}
    assert sleepers.look_at(1, 0) == ""
    assert sleepers.look_at(1, 0) == "halt"


def test_without_interrupt_controllers_nobody_is_woken() -> None:
    with Machine("4K", 2, StubEngine([])) as machine:
        machine.cpus[1].parked = False
        assert machine.run(timeout=60).reason == "halt"


def test_a_lone_vcpu_needs_no_second_look() -> None:
    with Machine("4K", 1, StubEngine([]), irqchip="kernel") as machine:
        sleepers = Sleepers(machine)
        sleepers.asleep = {0}
        assert sleepers.look_at(0) == "halt"
