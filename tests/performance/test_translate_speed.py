"""What binary translation costs, as ratios of one run: against QEMU's, and of its start-up against the kvm engine's.

./scripts/test tests/performance/test_translate_speed.py
"""

from __future__ import annotations

import time

import pytest
from engines import need
from test_startup import measure

from kvmpy.lab.compute import LOOPS, QUICK_ROUNDS, compare
from kvmpy.machine.machine import Machine

AIM, LEAST = 0.9, 0.5
"""Of QEMU's speed: what it should be, and what only a mechanism that doesn't work stays below."""
COLD_AIM, COLD_MOST = 1.5, 3.0
ROUNDS = 11


@pytest.fixture(autouse=True)
def translate() -> None:
    need("translate")


def test_computing(capsys: pytest.CaptureFixture[str]) -> None:
    report = compare(QUICK_ROUNDS)
    if isinstance(report, str):
        pytest.skip(report)
    with capsys.disabled():
        print("\n\ncomputing, times as fast as QEMU's TCG")
        for name in LOOPS:
            values = report[name]
            print(
                f"  {name:<22}{values['ratio']:5.2f} ({values['low']:.2f}..{values['high']:.2f})   aim: {AIM}"
            )
    assert all(report[name]["high"] > LEAST for name in LOOPS)


LOOP = bytes.fromhex("e610ebfc")  # 1: out %al, $0x10; jmp 1b
EXITS = 20_000
VIEWS = {"a view of data": (0x9000, 0x1000), "a view of everything": (0, 1 << 20)}


class Counter:
    """A port that ends the run after EXITS writes."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.count = machine, 0

    def write(self, offset: int, value: int, size: int) -> None:
        self.count += 1
        if self.count % EXITS == 0:
            self.machine.stop()


def seconds(view: tuple[int, int] | None) -> float:
    """EXITS exits to Python while somebody holds that view of memory."""
    with Machine("1M", engine="translate") as machine:
        machine.ports.attach(0x10, 1, Counter(machine))
        machine.load(LOOP, mode="real", format="flat", load_address=0x1000)
        held = machine.memory.view(*view) if view else None
        machine.run(timeout=60)
        began = time.perf_counter()
        machine.run(timeout=60)
        took = time.perf_counter() - began
        del held
    return took


def test_views_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    best = dict.fromkeys((None, *VIEWS.values()), float("inf"))
    for _ in range(ROUNDS):
        for view in best:
            best[view] = min(best[view], seconds(view))
    with capsys.disabled():
        print("\n\nan exit to Python, times one without a writable view of memory")
        for name, view in VIEWS.items():
            print(f"  {name:<22}{best[view] / best[None]:5.2f}")
    assert all(took < 2 * best[None] for took in best.values())


def test_cold_start(capsys: pytest.CaptureFixture[str]) -> None:
    need("kvm")
    run = ["-m", "kvmpy", "run", "long-hello", "--engine"]
    best = measure({engine: [*run, engine] for engine in ("kvm", "translate")}, ROUNDS)
    ratio = best["translate"] / best["kvm"]
    with capsys.disabled():
        print(f"\n\nkvmpy run long-hello, translate over kvm: {ratio:.2f}   aim: at most {COLD_AIM}")
    assert ratio < COLD_MOST
