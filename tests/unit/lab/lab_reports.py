"""Reports made by hand: what a run would have written, without a run."""

from __future__ import annotations

import random
from typing import Any

from kvmpy.lab.histogram import Histogram
from kvmpy.lab.report import SCHEMA, VERSION

HZ = 2_000_000_000


def numbers(values: list[int]) -> dict[str, Any]:
    """Samples, statistics and histogram."""
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    cycles = histogram.summary()
    return {
        "samples": histogram.total,
        "cycles": cycles,
        "ns": {name: value * 1e9 / HZ for name, value in cycles.items()},
        "histogram": histogram.encode(),
    }


def result(
    kind: str,
    median: float,
    floor: float | None = None,
    *,
    rounds: int = 20,
    noise: float = 0.01,
    host: list[float] | None = None,
    seed: int = 0,
    engine: str = "kvm",
) -> dict[str, Any]:
    """One kind whose rounds have medians around ``median``; ``host``: how slow the host is in each round."""
    source = random.Random(seed)
    host = host or [1.0] * rounds
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        mine, floors = (host[number] * (1 + source.gauss(0, noise)) for _ in range(2))
        round_: dict[str, Any] = {
            "round": number,
            "samples": 100,
            "interrupted": 0,
            "p50": round(median * mine),
        }
        if floor:
            round_.update(floor_p50=round(floor * floors), ratio=median * mine / (floor * floors))
        found.append(round_)
    own = numbers([round_["p50"] for round_ in found for _ in range(100)])
    return {
        "kind": kind, "group": "ports", "engine": engine, "summary": f"what {kind} does", **own, "interrupted": 3,
        "interrupted_histogram": Histogram().encode(), "split": None, "rounds": found,
        "floor": {**numbers([r["floor_p50"] for r in found]), "ratio": {"value": 1.01, "low": 1.0, "high": 1.02}}
        if floor else None,
        "floor_missing": "", "counters": {}, "kernel": {"stats": {}, "tracepoints": None},
    }  # fmt: skip


def report(*results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A whole report."""
    return {
        "schema": SCHEMA, "version": VERSION, "created": "2024-01-02T03:04:05Z", "partial": "",
        "settings": {"engines": sorted({r["engine"] for r in results}), "stamps": {"kvm": "fenced"}, "cpu": 1,
                     "rounds_done": 20, "elapsed": 4.0},
        "clock": {"hz": HZ, "source": "said so", "overhead": {"kvm": {"cycles": 60}}},
        "fingerprint": {"cpu": {"model": 'A "CPU" <1>'}, "kvm": {"technique": "VT-x"}, "software": {"kvmpy": "1"},
                        "kernel": {"release": "6.1"}},
        "load": {"before": [0.1, 0, 0], "after": [0.2, 0, 0]}, "quiet": [], "results": list(results),
        "unavailable": [{"kind": "ple", "engine": "kvm", "reason": "this & that"}], "warnings": [], **changes,
    }  # fmt: skip
