"""What binary translation costs, as ratios of one run: against QEMU's, and of its start-up against the kvm engine's.

./scripts/test tests/performance/test_translate_speed.py
"""

from __future__ import annotations

import pytest
from test_startup import measure

from kvmpy.errors import EngineError
from kvmpy.lab.compute import LOOPS, QUICK_ROUNDS, compare
from kvmpy.machine.engine import open_engine

AIM, LEAST = 0.9, 0.5
"""Of QEMU's speed: what it should be, and what only a mechanism that doesn't work stays below."""
COLD_AIM, COLD_MOST = 1.5, 3.0
ROUNDS = 11


@pytest.fixture(autouse=True)
def translate() -> None:
    try:
        open_engine("translate")
    except EngineError as error:
        pytest.skip(f"engine translate: {error}")


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


def test_cold_start(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        open_engine("kvm")
    except EngineError as error:
        pytest.skip(f"engine kvm: {error}")
    run = ["-m", "kvmpy", "run", "long-hello", "--engine"]
    best = measure({engine: [*run, engine] for engine in ("kvm", "translate")}, ROUNDS)
    ratio = best["translate"] / best["kvm"]
    with capsys.disabled():
        print(f"\n\nkvmpy run long-hello, translate over kvm: {ratio:.2f}   aim: at most {COLD_AIM}")
    assert ratio < COLD_MOST
