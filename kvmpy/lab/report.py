"""The report: everything a run found out, as JSON that says which version of which schema it is.

Histograms are in it, so nothing needs to be measured again to be shown in another way. The schema is described in
docs/exit-latency.md; a change that old readers would misread raises VERSION.
"""

from __future__ import annotations

import json
import os
import time

from kvmpy.errors import UsageError
from kvmpy.lab.histogram import Histogram, HistogramError
from kvmpy.lab.kinds import Guest
from kvmpy.lab.trial import PARTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.lab.measuring import Laboratory, Result

SCHEMA = "kvmpy exit latency"
VERSION = 1
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "created": str, "partial": str, "settings": dict, "clock": dict, "fingerprint": dict, "load": dict,
    "results": list, "unavailable": list, "warnings": list,
}  # fmt: skip
REQUIRED_OF_RESULT: dict[str, type | tuple[type, ...]] = {
    "kind": str, "group": str, "engine": str, "summary": str, "samples": int, "interrupted": int, "histogram": str,
    "cycles": dict, "ns": dict, "rounds": list,
}  # fmt: skip


class ReportError(UsageError):
    """A file that isn't a report, or not one this version can read."""


def build(lab: Laboratory) -> dict[str, Any]:
    """The report of a run."""
    from kvmpy.lab.quiet import checks

    settings, overhead = lab.settings, _overhead(lab)
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(lab.began)),
        "partial": lab.partial,
        "settings": {
            "kinds": [kind.name for kind in settings.kinds],
            "engines": list(lab.benches),
            "seconds": settings.seconds,
            "rounds": settings.rounds,
            "rounds_done": lab.rounds_done,
            "samples": settings.samples,
            "handicap": settings.handicap,
            "cpu": lab.cpu,
            "other_cpu": lab.other_cpu,
            "stamps": {engine: bench.image.stamp for engine, bench in lab.benches.items()},
            "elapsed": round(lab.elapsed, 3),
        },
        "clock": {**lab.clock, "overhead": overhead},
        "fingerprint": lab.fingerprint,
        "load": lab.load,
        "quiet": [check.as_dict() for check in checks()],
        "results": [_result(result, lab.clock["hz"], overhead) for result in lab.results],
        "unavailable": [
            {"kind": kind, "engine": engine, "reason": reason} for kind, engine, reason in lab.unavailable
        ],
        "warnings": lab.warnings,
    }


def _overhead(lab: Laboratory) -> dict[str, Any]:
    """What the stamps themselves cost, per engine: the kind "clock". It is in every figure, and never taken off."""
    return {
        result.engine: {"cycles": result.total.percentile(50)}
        for result in lab.results
        if result.kind.name == "clock" and result.total.total
    }


def _numbers(histogram: Histogram, hz: float) -> dict[str, Any]:
    cycles = histogram.summary()
    return {
        "samples": histogram.total,
        "cycles": cycles,
        "ns": {name: round(value * 1e9 / hz, 1) for name, value in cycles.items()},
        "histogram": histogram.encode(),
    }


def _result(result: Result, hz: float, overhead: dict[str, Any]) -> dict[str, Any]:
    parts = result.parts
    return {
        "kind": result.kind.name,
        "group": result.kind.group,
        "engine": result.engine,
        "summary": result.kind.summary,
        **_numbers(result.total, hz),
        "net": _net(result, hz, overhead),
        "interrupted": result.interrupted.total,
        "interrupted_histogram": result.interrupted.encode(),
        "split": {name: _numbers(parts[name], hz) for name in PARTS} if parts["out"].total else None,
        "rounds": result.rounds,
        "floor": _floor(result, hz),
        "floor_missing": result.floor_missing,
        "counters": result.counters,
        "kernel": {
            "stats": {k: v for k, v in sorted(result.stats.items()) if v},
            "tracepoints": result.trace,
        },
    }


def _net(result: Result, hz: float, overhead: dict[str, Any]) -> dict[str, float] | None:
    """The median without the stamps' own, for guests' loops: what compares with a mean over a loop, as vmexit's."""
    own = overhead.get(result.engine)
    if own is None or not result.total.total or not isinstance(result.kind.what, Guest):
        return None
    cycles = max(result.total.percentile(50) - own["cycles"], 0)
    return {"p50_cycles": cycles, "p50_ns": round(cycles * 1e9 / hz, 1)}


def _floor(result: Result, hz: float) -> dict[str, Any] | None:
    from kvmpy.lab.statistics import median_interval

    if not result.floor.total:
        return None
    ratios = [
        round_["p50"] / round_["floor_p50"]
        for round_ in result.rounds
        if round_.get("p50") and "floor_p50" in round_
    ]
    found = _numbers(result.floor, hz)
    found["ratio"] = None
    if ratios:
        interval = median_interval(ratios)
        found["ratio"] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return found


def dumps(report: dict[str, Any]) -> str:
    """As text."""
    return json.dumps(report, indent=1) + "\n"


def save(path: str, text: str) -> None:
    """Writes a file as a whole or not at all. Raises OSError."""
    if path == "-":
        import sys

        sys.stdout.write(text)
        return
    if os.path.exists(path) and not os.path.isfile(path):  # /dev/stdout, a pipe
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return
    scratch = f"{path}.{os.getpid()}.new"
    try:
        with open(scratch, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(scratch, path)
    except BaseException as error:
        if os.path.exists(scratch):
            os.unlink(scratch)
        if isinstance(error, OSError):
            error.filename, error.filename2 = path, None
        raise


def load(path: str) -> dict[str, Any]:
    """Reads a report. Raises ReportError for anything else, and for another version of the schema."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is no JSON, or is damaged: {error}") from None
    check(path, found)
    report: dict[str, Any] = found
    return report


def check(path: str, report: object) -> None:
    """Raises ReportError, which names ``path`` and the field, unless this is a whole report of this version."""
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        said = report.get("schema") if isinstance(report, dict) else type(report).__name__
        raise ReportError(f"{path} isn't a report of exit latencies (its schema is {said!r}, not {SCHEMA!r})")
    if report.get("version") != VERSION:
        raise ReportError(
            f"{path} is version {report.get('version')!r} of the schema, this kvmpy reads {VERSION}: measure again,"
            " or use the kvmpy that made it"
        )
    _fields(path, report, REQUIRED)
    hz = report["clock"].get("hz")
    if not isinstance(hz, (int, float)) or not hz > 0:
        raise ReportError(f"{path} is damaged: clock.hz is {hz!r}")
    for result in report["results"]:
        if not isinstance(result, dict):
            raise ReportError(f"{path} is damaged: a result is {type(result).__name__}")
        where = f"{path}, {result.get('kind', 'a result')}"
        _fields(where, result, REQUIRED_OF_RESULT)
        _check_result(where, result)


def _fields(where: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, kind in wanted.items():
        if not isinstance(found.get(name), kind):
            said = type(found[name]).__name__ if name in found else "missing"
            raise ReportError(f"{where} is damaged: {name} is {said}")


def _check_result(where: str, result: dict[str, Any]) -> None:
    for round_ in result["rounds"]:
        for name in ("p50", "floor_p50", "ratio"):
            value = round_.get(name, 1) if isinstance(round_, dict) else None
            if not isinstance(value, (int, float)) or not value > 0:
                raise ReportError(f"{where} is damaged: a round's {name} is {value!r}")
    try:
        total = Histogram.decode(result["histogram"]).total
    except HistogramError as error:
        raise ReportError(f"{where} is damaged: {error}") from None
    if total != result["samples"]:
        raise ReportError(f"{where} is damaged: {result['samples']} samples, but its histogram holds {total}")


def histogram_of(numbers: dict[str, Any]) -> Histogram:
    """The histogram in a part of a report, with the exact numbers beside it put back."""
    found = Histogram.decode(numbers["histogram"])
    cycles = numbers["cycles"]
    if found.total:
        found.min, found.max = int(cycles["min"]), int(cycles["max"])
        found.sum = int(cycles["mean"] * found.total)
    return found
