"""The threads of one run: nobody is inside a vCPU when it is over, nor gets there later."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from kvmpy.machine.threads import VcpuThreads


class Cpu:
    native = None
    index = 0


class Machine:
    """Runs vCPUs as long as it hasn't ended."""

    def __init__(self) -> None:
        self.ending: str | None = None
        self.inside: list[Any] = []
        self.ran: list[Any] = []
        self.error: BaseException | None = None

    def run_vcpu(self, cpu: Any) -> None:
        self.inside.append(cpu)
        self.ran.append(cpu)
        try:
            if self.error is not None:
                raise self.error
            while self.ending is None:
                time.sleep(0.001)
            time.sleep(0.01)
        finally:
            self.inside.remove(cpu)

    def end(self, reason: str, **details: Any) -> None:
        self.ending = self.ending or reason


def threads_of(machine: Machine, cpus: int = 2) -> VcpuThreads:
    return VcpuThreads(machine, [Cpu() for _ in range(cpus)], None)  # type: ignore[arg-type,misc]


def test_the_deadline_ends_all() -> None:
    machine = Machine()
    threads_of(machine).run(time.monotonic() + 0.01)
    assert (machine.ending, machine.inside, len(machine.ran)) == ("timeout", [], 2)


def test_one_that_comes_late_stays_outside() -> None:
    machine = Machine()
    threads = threads_of(machine)
    threads.run(time.monotonic() + 0.01)
    threads._thread(Cpu())  # type: ignore[arg-type]
    assert len(machine.ran) == 2


def test_an_error_of_one_ends_all_and_is_raised() -> None:
    machine = Machine()
    machine.error = KeyError("x")
    with pytest.raises(KeyError) as caught:
        threads_of(machine, 1).run(None)
    assert caught.value is machine.error
    assert machine.ending == "stopped"


def test_an_interrupt_while_threads_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever Ctrl-C comes, even between a thread's start and its first step."""
    machine = Machine()
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        threads_of(machine).run(None)
    assert (machine.ending, machine.inside, len(started)) == ("stopped", [], 1)


def test_news_twice_before_anybody_looks() -> None:
    threads = threads_of(Machine())
    threads.wake()
    threads.wake()
