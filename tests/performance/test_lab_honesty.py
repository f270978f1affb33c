"""The laboratory's own claims, tried on this host: near the floor, no difference where there is none, 5 % found.

Ratios only. Each claim is tried several times, because the host may be busy; here fewer times than
``python tests/performance/test_lab_honesty.py 20 [KIND]...`` does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest
from engines import need

from kvmpy.lab import report as reports
from kvmpy.lab.compare import SAME, SLOWER, Comparison
from kvmpy.lab.measuring import QUICK_ROUNDS, QUICK_SECONDS, ROUNDS, Laboratory, Settings

KIND = "outl_to_user"
HANDICAPPED = (KIND, "mmio_write_user", "rdmsr_from_user")
"""Kinds of each way into a C handler, which is what can be made to spin."""
SECONDS = 4.0
TRIES = 4


def run(kind: str = KIND, handicap: int = 0) -> dict[str, Any]:
    """The report of a run of one kind, with many rounds."""
    laboratory = Laboratory(Settings([kind], ["kvm"], SECONDS, ROUNDS, handicap=handicap))
    laboratory.run()
    return json.loads(reports.dumps(reports.build(laboratory)))  # type: ignore[no-any-return]


@pytest.fixture
def kvm() -> None:
    need("kvm")


def five_percent(kind: str = KIND) -> int:
    return round(run(kind)["results"][0]["cycles"]["p50"] * 0.05)


def floor_ratio(kind: str = KIND) -> float:
    return float(run(kind)["results"][0]["floor"]["ratio"]["value"])


def same_is_same(kind: str = KIND) -> bool:
    return Comparison(run(kind), run(kind)).lines[0].verdict == SAME


def slower_is_found(handicap: int, kind: str = KIND) -> bool:
    return Comparison(run(kind), run(kind, handicap)).lines[0].verdict == SLOWER


@pytest.mark.slow
@pytest.mark.usefixtures("kvm")
def test_an_exit_to_c_is_within_2_percent_of_the_floor() -> None:
    assert sorted(floor_ratio() for _ in range(3))[1] <= 1.02


@pytest.mark.slow
@pytest.mark.usefixtures("kvm")
def test_no_difference_is_found_where_there_is_none() -> None:
    assert sum(same_is_same() for _ in range(TRIES)) >= TRIES - 1


@pytest.mark.slow
@pytest.mark.usefixtures("kvm")
@pytest.mark.parametrize("kind", HANDICAPPED)
def test_five_percent_are_found(kind: str) -> None:
    handicap = five_percent(kind)
    assert sum(slower_is_found(handicap, kind) for _ in range(TRIES)) >= TRIES - 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["kvm", "translate"])
def test_a_quick_run_of_everything_keeps_its_time(engine: str) -> None:
    """Time is what it promises: 10 s, of which the settings plan six."""
    need(engine)
    began = time.monotonic()
    Laboratory(Settings((), [engine], QUICK_SECONDS, QUICK_ROUNDS, keep=True)).run()
    assert time.monotonic() - began < 10


def main(tries: int, kinds: Sequence[str]) -> None:
    """The claims with as many tries, in words."""
    for kind in kinds:
        handicap = five_percent(kind)
        ratios = sorted(floor_ratio(kind) for _ in range(tries))
        middle = ratios[len(ratios) // 2]
        print(f"{kind} over its floor: {ratios[0]:.4f} to {ratios[-1]:.4f}, median {middle:.4f}", flush=True)
        same = sum(same_is_same(kind) for _ in range(tries))
        print(f"{kind}, A/A: no difference {same} times of {tries}", flush=True)
        found = sum(slower_is_found(handicap, kind) for _ in range(tries))
        print(f"{kind}, +5 % ({handicap} cycles): found {found} times of {tries}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TRIES, sys.argv[2:] or HANDICAPPED)
