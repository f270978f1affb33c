"""A vCPU is got out of translated loops wherever the system put the code, the library and its objects."""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kvmpy.machine.machine import Machine

pytestmark = pytest.mark.kvmpy(engine="translate", memory="1M", mode="real", trace=False, timeout=math.inf)

Machines = Callable[..., Machine]
FAR = 4 << 30  # beyond what a relative call reaches
LOOPS = {
    "to itself": "ebfe",  # jmp .
    "of PAUSEs": "f390ebfc",  # pause; jmp .-2
    "with a store": "a20050ebfb",  # mov %al, 0x5000; jmp .-3
    "with two blocks": "eb00ebfc",  # jmp 1f; 1: jmp .-2
}


@contextmanager
def far_apart() -> Iterator[None]:
    """The system puts what is mapped from now on far from what was mapped before."""
    with mmap.mmap(-1, FAR, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0):
        yield


def elsewhere(make: Callable[[], Machine]) -> Machine:
    """Made in a thread of its own, whose objects lie among the mappings rather than behind the program."""
    made: list[Machine] = []
    thread = threading.Thread(target=lambda: made.append(make()))
    thread.start()
    thread.join()
    return made[0]


def stops(machine: Machine) -> None:
    for _ in range(3):
        timer = threading.Timer(0.02, machine.stop)
        timer.start()
        assert machine.run(timeout=5).reason == "stopped"
        timer.join()
    assert machine.run(timeout=0.02).reason == "timeout"


@pytest.mark.parametrize("loop", LOOPS)
def test_near(machines: Machines, loop: str) -> None:
    stops(machines(bytes.fromhex(LOOPS[loop])))


@pytest.mark.parametrize("loop", LOOPS)
def test_far_apart(machines: Machines, loop: str) -> None:
    with far_apart():
        stops(machines(bytes.fromhex(LOOPS[loop])))


@pytest.mark.parametrize("loop", LOOPS)
def test_made_in_another_thread(machines: Machines, loop: str) -> None:
    stops(elsewhere(lambda: machines(bytes.fromhex(LOOPS[loop]))))


@pytest.mark.parametrize("loop", LOOPS)
def test_made_in_another_thread_far_apart(machines: Machines, loop: str) -> None:
    with far_apart():
        stops(elsewhere(lambda: machines(bytes.fromhex(LOOPS[loop]))))
