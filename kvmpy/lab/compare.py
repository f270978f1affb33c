"""Comparing reports: is a kind of exit faster, slower, or can nobody tell?"""

from __future__ import annotations

import math

from kvmpy.errors import UsageError
from kvmpy.lab.fingerprint import differences
from kvmpy.lab.statistics import Interval, each_of_many, median, ratio_interval

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

FASTER, SLOWER, SAME, UNCLEAR = "faster", "slower", "no difference", "too few rounds"
CONFIDENCE = 0.95
RESOLUTION = 0.01
FEWEST = 3
"""Rounds of each side, below which nothing is said."""


class Line:
    """One kind in two reports: ``ratio`` of the second's median to the first's, ``verdict``."""

    __slots__ = ("after", "before", "engine", "kind", "ratio", "verdict")

    def __init__(
        self, kind: str, engine: str, before: float, after: float, ratio: Interval | None, verdict: str
    ) -> None:
        self.kind = kind
        self.engine = engine
        self.before = before
        self.after = after
        self.ratio = ratio
        self.verdict = verdict

    def slower_than(self, share: float) -> bool:
        """Whether it is slower, for sure, and by more than ``share`` (0.05) by the best estimate."""
        return self.verdict == SLOWER and self.ratio is not None and self.ratio.value > 1 + share

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        ratio = self.ratio
        return {
            "kind": self.kind, "engine": self.engine, "before_ns": self.before, "after_ns": self.after,
            "ratio": None if ratio is None else {"value": ratio.value, "low": ratio.low, "high": ratio.high},
            "verdict": self.verdict,
        }  # fmt: skip


class Comparison:
    """Two reports side by side.

    ``lines``  one for each kind both have; ``only_before`` and ``only_after``: those that one lacks
    ``hosts``  (name, before, after) of what isn't the same about the hosts
    ``by``     "floor": each round's median is divided by how fast the bare C loop was in the same round, which takes
               out that a host is busier one time than another; "time": nothing is. "auto" is "floor" where the hosts
               are the same but for their software: there a slower floor is the neighbours' doing
    ``drift``  how much slower the floors of the second report were, by their medians; None without floors

    The confidence holds for the comparison as a whole: with many kinds each is held to a higher one. A difference must
    be larger than ``resolution``, which is about what two runs of the same program differ by.

    Raises UsageError: no kind in common, a confidence or resolution that can't be, "floor" without floors.
    """

    def __init__(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        confidence: float = CONFIDENCE,
        resolution: float = RESOLUTION,
        by: str = "auto",
    ) -> None:
        if not 0.5 <= confidence < 1:
            raise UsageError(f"confidence {confidence:g}: at least 0.5 and less than 1")
        if not 0 <= resolution < 1:
            raise UsageError(f"resolution {resolution:g}: at least 0 and less than 1")
        self.confidence = confidence
        self.resolution = resolution
        first, second = _by_key(before), _by_key(after)
        shared = [key for key in first if key in second]
        if not shared:
            raise UsageError("the reports have no kind of exit in common: nothing can be compared")
        self.only_before = [key for key in first if key not in second]
        self.only_after = [key for key in second if key not in first]
        self.hosts = _host_differences(before, after)
        speeds = _speeds(first), _speeds(second)
        common = {key for key in shared if key in speeds[0] and key in speeds[1]}
        self.by = self._choose(by, bool(common))
        self.drift = _drift(speeds, common, before, after)
        sides = [
            _Side(report, speed, common, self.by)
            for report, speed in zip((before, after), speeds, strict=True)
        ]
        each = each_of_many(confidence, len(shared))
        self.lines = [self._line(key, first[key], second[key], sides, each) for key in shared]

    def _choose(self, by: str, floors: bool) -> str:
        if by == "floor" and not floors:
            raise UsageError("no floor is in both reports: compare by time")
        if by != "auto":
            return by
        same = all(name.startswith("software.") for name, _, _ in self.hosts)
        return "floor" if same and floors else "time"

    def _line(
        self,
        key: tuple[str, str],
        before: dict[str, Any],
        after: dict[str, Any],
        sides: list[_Side],
        confidence: float,
    ) -> Line:
        first, second = sides[0].rounds(key, before), sides[1].rounds(key, after)
        medians = before["ns"]["p50"], after["ns"]["p50"]
        if min(len(first), len(second)) < FEWEST:
            return Line(*key, *medians, None, UNCLEAR)
        ratio = ratio_interval(second, first, confidence)
        return Line(*key, *medians, ratio, verdict(ratio, self.resolution))


class _Side:
    """One report's rounds, as comparable numbers."""

    def __init__(
        self,
        report: dict[str, Any],
        speeds: dict[tuple[str, str], dict[int, float]],
        common: set[tuple[str, str]],
        by: str,
    ) -> None:
        self._scale = 1e9 / report["clock"]["hz"]
        self._own = by == "floor"
        self._common = common
        self._host = _host_speed({key: speeds[key] for key in common}) if self._own else {}

    def rounds(self, key: tuple[str, str], result: dict[str, Any]) -> list[float]:
        """A number for each round: its median over its own floor, slice by slice; over the average floor of that round;
        or the median alone."""
        own = self._own and key in self._common
        found = []
        for number, round_ in enumerate(result["rounds"]):
            if own:
                value = round_.get("ratio")
            else:
                speed = self._host.get(round_.get("round", number)) if self._own else 1.0
                value = round_["p50"] * self._scale / speed if speed and "p50" in round_ else None
            if value is not None:
                found.append(float(value))
        return found


def _by_key(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(result["kind"], result["engine"]): result for result in report["results"] if result["samples"]}


def _speeds(results: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], dict[int, float]]:
    """(kind, engine) -> round -> the floor's median."""
    found = {}
    for key, result in results.items():
        floors = {
            round_.get("round", number): float(round_["floor_p50"])
            for number, round_ in enumerate(result["rounds"])
            if round_.get("floor_p50")
        }
        if floors:
            found[key] = floors
    return found


def _host_speed(speeds: dict[tuple[str, str], dict[int, float]]) -> dict[int, float]:
    """Round -> the geometric mean of all floors in it. Rounds that lack one are left out: they'd be another mean."""
    rounds: set[int] = set.intersection(*(set(floors) for floors in speeds.values())) if speeds else set()
    return {
        number: math.exp(sum(math.log(floors[number]) for floors in speeds.values()) / len(speeds))
        for number in rounds
    }


def _drift(
    speeds: tuple[dict[tuple[str, str], dict[int, float]], dict[tuple[str, str], dict[int, float]]],
    common: set[tuple[str, str]],
    before: dict[str, Any],
    after: dict[str, Any],
) -> float | None:
    if not common:
        return None
    scale = before["clock"]["hz"] / after["clock"]["hz"]
    ratios = [median([*speeds[1][key].values()]) / median([*speeds[0][key].values()]) for key in common]
    return float(median(ratios) * scale)


def _host_differences(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    found = differences(before["fingerprint"], after["fingerprint"])
    stamps = before["settings"].get("stamps"), after["settings"].get("stamps")
    if stamps[0] != stamps[1]:
        found.append(("settings.stamps", *stamps))
    return found


def verdict(ratio: Interval, resolution: float = 0.0) -> str:
    """What an interval of a ratio says: it is called a difference when all of the interval is beyond ``resolution``."""
    if ratio.low > 1 + resolution:
        return SLOWER
    return FASTER if ratio.high < 1 / (1 + resolution) else SAME


def compare(
    reports: Sequence[dict[str, Any]],
    confidence: float = CONFIDENCE,
    resolution: float = RESOLUTION,
    by: str = "auto",
) -> list[Comparison]:
    """The first report with each of the others. Raises UsageError for fewer than two."""
    if len(reports) < 2:
        raise UsageError("give two reports or more: the first is what the others are compared with")
    return [Comparison(reports[0], other, confidence, resolution, by) for other in reports[1:]]
