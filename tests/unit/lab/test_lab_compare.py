"""Comparing: verdicts are right as often as they claim, a busier host is no slower program, and bad input is told."""

from __future__ import annotations

import random
from typing import Any

import pytest
from lab_reports import report, result

from kvmpy.errors import UsageError
from kvmpy.lab import statistics as s
from kvmpy.lab.compare import FASTER, SAME, SLOWER, UNCLEAR, Comparison, compare

KINDS = [f"kind{number}" for number in range(8)]


def side(
    seed: int, factor: float = 1.0, drift: float = 1.0, floors: bool = True, **changes: Any
) -> dict[str, Any]:
    """A run in which the first kind is slower by ``factor``, on a host that is by ``drift``, and gets busy at times."""
    source = random.Random(seed)
    host = [drift * source.choice((1.0, 1.0, 1.3)) for _ in range(20)]
    return report(
        *[
            result(
                kind,
                20_000 * (factor if not at else 1.0),
                19_800 if floors else None,
                host=host,
                seed=seed * 100 + at,
            )
            for at, kind in enumerate(KINDS)
        ],
        **changes,
    )


def test_the_same_is_no_different_95_times_of_100() -> None:
    wrong = sum(
        any(line.verdict != SAME for line in Comparison(side(n), side(n + 1000), resolution=0.0).lines)
        for n in range(30)
    )
    assert wrong <= 4


def test_five_percent_are_found_and_nothing_else() -> None:
    for seed in range(10):
        lines = Comparison(side(seed), side(seed + 1000, factor=1.05)).lines
        assert [line.kind for line in lines if line.verdict == SLOWER] == ["kind0"], seed
        assert not any(line.verdict == FASTER for line in lines)
        assert lines[0].ratio is not None and 1.03 < lines[0].ratio.value < 1.07


def test_faster() -> None:
    assert Comparison(side(1, factor=1.05), side(2)).lines[0].verdict == FASTER


def test_a_slower_host_is_no_slower_program() -> None:
    comparison = Comparison(side(1), side(2, drift=1.4))
    assert comparison.by == "floor" and all(line.verdict == SAME for line in comparison.lines)
    assert comparison.drift == pytest.approx(1.4, abs=0.1)
    by_time = Comparison(side(1), side(2, drift=1.4), by="time")
    assert all(line.verdict == SLOWER for line in by_time.lines)


def test_kinds_without_a_floor_are_held_to_the_others_floors() -> None:
    before, after = side(1), side(2, drift=1.4)
    for one in (before, after):
        one["results"][3]["floor"] = None
        for round_ in one["results"][3]["rounds"]:
            del round_["floor_p50"], round_["ratio"]
    line = Comparison(before, after).lines[3]
    assert (
        line.verdict == SAME and line.ratio is not None and line.ratio.value == pytest.approx(1.0, abs=0.05)
    )


def test_another_host_is_compared_by_time() -> None:
    other = side(2, drift=1.4)
    other["fingerprint"]["kernel"] = {"release": "6.9"}
    comparison = Comparison(side(1), other)
    assert comparison.by == "time"
    assert comparison.hosts == [("kernel.release", "6.1", "6.9")]


def test_another_version_of_kvmpy_is_the_same_host() -> None:
    other = side(2, drift=1.4)
    other["fingerprint"]["software"] = {"kvmpy": "2"}
    assert Comparison(side(1), other).by == "floor"


def test_clocks_of_different_speed() -> None:
    other = side(1, floors=False)
    other["clock"] = {**other["clock"], "hz": 2 * other["clock"]["hz"]}
    ratio = Comparison(side(1, floors=False), other, by="time").lines[0].ratio
    assert ratio is not None and ratio.value == pytest.approx(0.5)


def test_resolution() -> None:
    before, after = side(1), side(2, factor=1.05)
    assert Comparison(before, after, resolution=0.2).lines[0].verdict == SAME


def test_too_few_rounds() -> None:
    few = report(result("kind0", 20_000, 19_800, rounds=2))
    assert Comparison(few, few).lines[0].verdict == UNCLEAR


def test_what_only_one_has() -> None:
    comparison = Comparison(
        report(result("a", 100), result("b", 100)), report(result("b", 100), result("c", 100))
    )
    assert (comparison.only_before, comparison.only_after) == ([("a", "kvm")], [("c", "kvm")])


def test_nothing_in_common() -> None:
    with pytest.raises(UsageError, match="no kind of exit in common"):
        Comparison(report(result("a", 100)), report(result("b", 100)))


def test_bad_arguments() -> None:
    one = report(result("a", 100))
    with pytest.raises(UsageError, match="two reports"):
        compare([one])
    with pytest.raises(UsageError, match="no floor"):
        Comparison(one, one, by="floor")
    with pytest.raises(UsageError, match="confidence"):
        Comparison(one, one, confidence=1.0)
    with pytest.raises(UsageError, match="resolution"):
        Comparison(one, one, resolution=1.0)


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [(0.975, 4, 2.776), (0.975, 19, 2.093), (0.995, 9, 3.250), (0.9995, 19, 3.883), (0.975, 1000, 1.962)],
)
def test_students_quantiles(probability: float, freedom: int, value: float) -> None:
    assert s.student(probability, freedom) == pytest.approx(value, rel=0.01)


def test_medians() -> None:
    assert s.median([3, 1, 2]) == 2
    assert s.median([4, 1, 2, 3]) == 2.5
    with pytest.raises(ValueError, match="nothing"):
        s.median([])
    assert s.spread([1, 2, 3, 4, 5]) == pytest.approx(1 / 3)


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    source, held = random.Random(5), 0
    for _ in range(100):
        interval = s.median_interval([source.gauss(100, 5) for _ in range(20)])
        held += interval.low <= 100 <= interval.high
    assert held >= 88


def test_many_at_once() -> None:
    assert s.each_of_many(0.95, 1) == pytest.approx(0.95)
    assert s.each_of_many(0.95, 50) ** 50 == pytest.approx(0.95)
