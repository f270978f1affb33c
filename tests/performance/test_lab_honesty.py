"""The laboratory's own claims, tried on this host: near the floor, no difference where there is none, 5 % found.

Ratios only. Each claim is tried several times, because the host may be busy; the numbers of tries are the issue's in
``python tests/performance/test_lab_honesty.py 20``, and fewer here.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

from kvmpy.errors import EngineError
from kvmpy.lab import report as reports
from kvmpy.lab.compare import SAME, SLOWER, Comparison
from kvmpy.lab.measuring import QUICK_ROUNDS, QUICK_SECONDS, ROUNDS, Laboratory, Settings
from kvmpy.machine.engine import open_engine

KIND = "outl_to_user"
SECONDS = 4.0
TRIES = 4


def run(seconds: float = SECONDS, handicap: int = 0, *kinds: str) -> dict[str, Any]:
    """The report of a run of few kinds, with many rounds."""
    laboratory = Laboratory(Settings(kinds or (KIND,), ["kvm"], seconds, ROUNDS, handicap=handicap))
    laboratory.run()
    return json.loads(reports.dumps(reports.build(laboratory)))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def kvm() -> None:
    try:
        open_engine("kvm")
    except EngineError as error:
        pytest.skip(str(error))


def five_percent() -> int:
    return round(run()["results"][0]["cycles"]["p50"] * 0.05)


def floor_ratio() -> float:
    return float(run()["results"][0]["floor"]["ratio"]["value"])


def same_is_same() -> bool:
    return Comparison(run(), run()).lines[0].verdict == SAME


def slower_is_found(handicap: int) -> bool:
    return Comparison(run(), run(handicap=handicap)).lines[0].verdict == SLOWER


@pytest.mark.slow
def test_an_exit_to_c_is_within_2_percent_of_the_floor() -> None:
    assert sorted(floor_ratio() for _ in range(3))[1] <= 1.02


@pytest.mark.slow
def test_no_difference_is_found_where_there_is_none() -> None:
    assert sum(same_is_same() for _ in range(TRIES)) >= TRIES - 1


@pytest.mark.slow
def test_five_percent_are_found() -> None:
    handicap = five_percent()
    assert sum(slower_is_found(handicap) for _ in range(TRIES)) >= TRIES - 1


@pytest.mark.slow
def test_a_quick_run_of_everything_keeps_its_time() -> None:
    """Time is what it promises: 10 s, of which the settings plan six."""
    began = time.monotonic()
    Laboratory(Settings(seconds=QUICK_SECONDS, rounds=QUICK_ROUNDS, keep=True)).run()
    assert time.monotonic() - began < 10


def main(tries: int) -> None:
    """The claims with as many tries, in words."""
    handicap = five_percent()
    ratios = sorted(floor_ratio() for _ in range(tries))
    print(
        f"{KIND} over its floor: {ratios[0]:.4f} to {ratios[-1]:.4f}, median {ratios[len(ratios) // 2]:.4f}"
    )
    same = sum(same_is_same() for _ in range(tries))
    print(f"A/A: no difference {same} times of {tries}")
    found = sum(slower_is_found(handicap) for _ in range(tries))
    print(f"+5 % ({handicap} cycles): found {found} times of {tries}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TRIES)
