"""Exits and time of several ways to run a guest, as bars: for both kinds of ``kvmpy compare``."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Bars = list[tuple[str, str, float, float]]
"""Group, label, exits, milliseconds."""


def of_variants(report: dict[str, Any]) -> Bars:
    """The bars of kvmpy.lab.variants' report: a group for each kind of work and engine."""
    return [
        (f"{case['group']}, {case['engine']}", case["variant"], case["exits"], case["wall_best"] * 1e3)
        for case in report["cases"]
        if "problem" not in case
    ]


def of_engines(image: str, engines: dict[str, dict[str, Any]]) -> Bars:
    """The bars of one guest on several engines."""
    return [
        (image, name, run["exits"], run["wall"] * 1e3)
        for name, run in engines.items()
        if run and "problem" not in run
    ]


def plot(bars: Bars, path: str) -> None:
    """Writes the picture: exits to the left, time to the right, on logarithmic scales.

    Raises UsageError for another kind of file than .svg, .png and .pdf, or without matplotlib; OSError.
    """
    from kvmpy.lab.plot import check

    check(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(group for group, *_ in bars))
    figure = Figure(figsize=(10, 0.6 + 0.35 * len(bars) + 0.4 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    positions, labels = _positions(bars, groups)
    for axis, values, title in (
        (left, [exits for _, _, exits, _ in bars], "exits"),
        (right, [ms for *_, ms in bars], "milliseconds"),
    ):
        axis.barh(positions, values, color=[f"C{groups.index(group) % 10}" for group, *_ in bars])
        axis.set_xscale("log")
        axis.set_title(title)
        axis.grid(axis="x", alpha=0.3)
    left.set_yticks(positions, labels)
    left.invert_yaxis()
    figure.savefig(path, metadata={"Date": None} if path.lower().endswith(".svg") else None)


def _positions(bars: Bars, groups: list[str]) -> tuple[list[float], list[str]]:
    """Where each bar lies, with a gap between groups, and what it is called."""
    positions = [at + 0.8 * groups.index(bar[0]) for at, bar in enumerate(bars)]
    labels = []
    before = None
    for group, label, *_ in bars:
        labels.append(f"{group}: {label}" if group != before else label)
        before = group
    return positions, labels


def plot_hosts(hosts: dict[str, dict[str, Any]], path: str) -> None:
    """Writes a picture of kvmpy.lab.variants' reports of several hosts: how many times less CPU time each way of doing
    the same work takes than the unmodified guest, on each host and engine. Raises as :func:`plot`."""
    from kvmpy.lab.plot import check

    check(path)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = _series(hosts)
    ways = list(dict.fromkeys(way for values in series.values() for way in values))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kvmpy"}):
        figure = Figure(figsize=(9, 0.7 + 0.16 * len(ways) * (len(series) + 1)), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        height = 0.85 / len(series)
        for number, (name, values) in enumerate(series.items()):
            at = [index + number * height for index, way in enumerate(ways) if way in values]
            axis.barh(at, [values[way] for way in ways if way in values], height, left=1.0, label=name)
        axis.set_xscale("log")
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_yticks([index + 0.85 / 2 for index in range(len(ways))], ways)
        axis.invert_yaxis()
        axis.set_xlabel("times less CPU time than the unmodified guest takes on the same host and engine")
        axis.grid(axis="x", alpha=0.3)
        axis.legend(fontsize="small", loc="lower right")
        figure.savefig(path, metadata={"Date": None} if path.lower().endswith(".svg") else None)


def less_cpu(case: dict[str, Any], cases: list[dict[str, Any]]) -> float | None:
    """How many times less CPU time a case took than the first of its group and engine in ``cases``; None for that
    itself, and where one of the two went wrong."""
    first = next(c for c in cases if (c["group"], c["engine"]) == (case["group"], case["engine"]))
    if case is first or "problem" in case or "problem" in first or not case["cpu_best"]:
        return None
    return float(first["cpu_best"] / case["cpu_best"])


def _series(hosts: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Host and engine -> "group: variant" -> times less CPU time, less the 1 where the bar begins."""
    found: dict[str, dict[str, float]] = {}
    for host, report in hosts.items():
        for case in report["cases"]:
            cheaper = less_cpu(case, report["cases"])
            if cheaper is not None:
                values = found.setdefault(f"{host}, {case['engine']}", {})
                values[f"{case['group']}: {case['variant']}"] = cheaper - 1.0
    return found
