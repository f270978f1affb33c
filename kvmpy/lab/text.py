"""A report as a table on the terminal."""

from __future__ import annotations

from kvmpy.lab.histogram import Histogram
from kvmpy.lab.report import histogram_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rich.table import Table

    from kvmpy.lab.compare import Comparison

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 12


def nanoseconds(value: float) -> str:
    """A time in the unit that suits it: "843 ns", "9.42 µs", "1.31 ms"."""
    for limit, divisor, unit in ((1e3, 1.0, "ns"), (1e6, 1e3, "µs"), (1e9, 1e6, "ms")):
        if value < limit * 0.9995:
            scaled = value / divisor
            digits = 0 if scaled >= 99.95 or divisor == 1.0 else 1 if scaled >= 9.995 else 2
            return f"{scaled:.{digits}f} {unit}"
    return f"{value / 1e9:.2f} s"


def sparkline(histogram: Histogram, columns: int = COLUMNS) -> str:
    """The distribution from its minimum to p99.9, on a logarithmic axis, one block for each step."""
    import math

    from kvmpy.lab.histogram import lowest

    if not histogram.total:
        return ""
    low, high = math.log(max(histogram.min, 1)), math.log(max(histogram.percentile(99.9), 2))
    width = max(high - low, 1e-9)
    heights = [0] * columns
    for index, count in histogram.counts.items():
        at = int((math.log(max(lowest(index), 1)) - low) / width * columns)
        if at < columns:
            heights[max(at, 0)] += count
    highest = max(heights) or 1
    return "".join(" " if not h else BARS[min(int(h / highest * len(BARS)), len(BARS) - 1)] for h in heights)


def tables(report: dict[str, Any]) -> list[Table]:
    """A table for each group of kinds; an engine's column only where there are several. A median in parentheses is of
    samples in which the scheduler took the CPU away, where there are no others."""
    from rich import box
    from rich.table import Table

    several = len(report["settings"]["engines"]) > 1
    found: list[Table] = []
    groups = dict.fromkeys(result["group"] for result in report["results"])
    for group in groups:
        table = Table(box=box.SIMPLE_HEAD, title=group, title_justify="left", pad_edge=False)
        table.add_column("kind", no_wrap=True, min_width=23)
        if several:
            table.add_column("engine", no_wrap=True)
        for column in ("samples", "min", "p50", "p99", "p99.9", "floor"):
            table.add_column(column, justify="right", no_wrap=True, min_width=7)
        table.add_column("min to p99.9", no_wrap=True)
        for result in (r for r in report["results"] if r["group"] == group):
            table.add_row(*_row(result, several, report["clock"]["hz"]))
        found.append(table)
    return found


def _row(result: dict[str, Any], several: bool, hz: float) -> list[str]:
    ns = result["ns"]
    cells = [result["kind"], *([result["engine"]] if several else []), str(result["samples"])]
    if not result["samples"]:
        return [*cells, "", f"({nanoseconds(interrupted_median(result, hz))})", "", "", "", "all interrupted"]
    cells += [nanoseconds(ns[name]) for name in ("min", "p50", "p99", "p99.9")]
    floor = result.get("floor")
    ratio = floor and floor["ratio"]
    cells.append(f"{ratio['value']:.3f}×" if ratio else "")
    return [*cells, sparkline(histogram_of(result))]


def interrupted_median(result: dict[str, Any], hz: float) -> float:
    """Nanoseconds: the median of the samples in which the scheduler took the CPU away."""
    return Histogram.decode(result["interrupted_histogram"]).percentile(50) * 1e9 / hz


def label(result: dict[str, Any], report: dict[str, Any]) -> str:
    """The kind, and its engine where there are several."""
    several = len(report["settings"]["engines"]) > 1
    return f"{result['kind']} ({result['engine']})" if several else str(result["kind"])


def split_table(report: dict[str, Any]) -> Table | None:
    """Where the time of exits to user space goes; None where there are none."""
    from rich import box
    from rich.table import Table

    split = [result for result in report["results"] if result["split"]]
    if not split:
        return None
    table = Table(
        box=box.SIMPLE_HEAD,
        title="where the time goes, p50 of each part",
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("kind", no_wrap=True, min_width=23)
    for column in ("guest to user space", "handler", "user space to guest"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in split:
        parts = [nanoseconds(result["split"][name]["ns"]["p50"]) for name in ("out", "handler", "in")]
        table.add_row(label(result, report), *parts)
    return table


def trace_lines(report: dict[str, Any]) -> list[str]:
    """KVM's tracepoints, a line for each kind that was traced."""
    found = []
    for result in report["results"]:
        trace = result["kernel"]["tracepoints"]
        if not trace:
            continue
        parts = []
        for reason, count in sorted(trace["exits"].items(), key=lambda item: -item[1]):
            cycles = trace["kernel"].get(reason, {}).get("p50")
            took = (
                ""
                if cycles is None
                else f", {nanoseconds(cycles * 1e9 / report['clock']['hz'])} to the next entry"
            )
            parts.append(f"{count} {reason}{took}")
        parts += [f"{count} to user space: {reason}" for reason, count in trace["user_space"].items()]
        found.append(f"{label(result, report)}: {'; '.join(parts) or 'none'}")
    return found


def notes(report: dict[str, Any]) -> list[str]:
    """What has to be said beside the numbers, a line each."""
    clock, settings = report["clock"], report["settings"]
    kvm = report["fingerprint"].get("kvm", {})
    found = [
        f"{report['fingerprint'].get('cpu', {}).get('model')}, {kvm.get('technique')}, {kvm.get('nested_or_bare')};"
        f" TSC {clock['hz'] / 1e6:.1f} MHz ({clock['source']}); CPU {settings['cpu']};"
        f" {settings['rounds_done']} rounds in {settings['elapsed']:.0f} s;"
        f" load {_load(report['load'].get('before'))} before, {_load(report['load'].get('after'))} after"
    ]
    for engine, overhead in clock["overhead"].items():
        ns = overhead["cycles"] * 1e9 / clock["hz"]
        found.append(
            f"{engine}: in every time of a guest are {nanoseconds(ns)} of the stamps themselves (kind clock)"
        )
    interrupted = sum(result["interrupted"] for result in report["results"])
    samples = interrupted + sum(result["samples"] for result in report["results"])
    if interrupted:
        found.append(
            f"{interrupted} of {samples} samples are of chunks in which the scheduler took the CPU away: kept apart"
        )
    if report["partial"]:
        found.insert(0, f"PARTIAL: {report['partial']}")
    return found + [f"warning: {warning}" for warning in report["warnings"]]


def _load(values: list[float] | None) -> str:
    return "unknown" if not values else f"{values[0]:g}"


def missing(report: dict[str, Any]) -> list[str]:
    """What couldn't be measured and why; a reason that many kinds share is said once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in report["unavailable"]:
        reasons.setdefault((entry["engine"], entry["reason"]), []).append(entry["kind"])
    return [
        f"{engine}: not measured: {', '.join(kinds)}: {reason}" for (engine, reason), kinds in reasons.items()
    ]


def comparison_table(comparison: Comparison) -> Table:
    """A line for each kind."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kind", no_wrap=True, min_width=23)
    table.add_column("engine", no_wrap=True)
    for column in ("before", "after", "ratio", "interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    styles = {"faster": "green", "slower": "red"}
    for line in comparison.lines:
        ratio = line.ratio
        table.add_row(
            line.kind, line.engine, nanoseconds(line.before), nanoseconds(line.after),
            "" if ratio is None else f"{ratio.value:.3f}",
            "" if ratio is None else f"{ratio.low:.3f}..{ratio.high:.3f}",
            line.verdict, style=styles.get(line.verdict),
        )  # fmt: skip
    return table
