"""A report as a picture, with matplotlib (the optional extra ``plot``): distributions, and where the time goes."""

from __future__ import annotations

import os

from kvmpy.errors import UsageError
from kvmpy.lab.report import histogram_of
from kvmpy.lab.text import label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMATS = (".svg", ".png", ".pdf")
COLUMNS = 2
PARTS = {"out": "guest to user space", "handler": "handler", "in": "user space to guest"}


def check(path: str) -> None:
    """Raises UsageError unless ``path`` can be plotted to: before an hour was spent measuring."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in FORMATS:
        raise UsageError(f"plot {path}: its name must end with one of {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("plots need matplotlib: pip install 'kvmpy[plot]'") from None


def plot(report: dict[str, Any], path: str) -> None:
    """Writes the picture. Raises UsageError for another kind of file or without matplotlib, OSError."""
    check(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = [result for result in report["results"] if result["samples"]]
    groups = list(dict.fromkeys(result["group"] for result in results))
    split = [result for result in results if result["split"]]
    count = len(groups) + bool(split)
    rows = -(-max(count, 1) // COLUMNS)
    figure = Figure(figsize=(8 * COLUMNS, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axis, group in zip(axes, groups, strict=False):
        _distributions(axis, group, [r for r in results if r["group"] == group], report)
    rest = axes[len(groups) :]
    if split:
        _split(rest.pop(0), split, report)
    for axis in rest:
        axis.set_axis_off()
    figure.suptitle(_title(report))
    figure.savefig(path)


def _title(report: dict[str, Any]) -> str:
    fingerprint = report["fingerprint"]
    partial = " (partial)" if report["partial"] else ""
    where = fingerprint.get("kvm", {})
    return (
        f"{fingerprint.get('cpu', {}).get('model')}, {where.get('technique')}, {report['created']}{partial}"
    )


def _distributions(axis: Any, group: str, results: list[dict[str, Any]], report: dict[str, Any]) -> None:
    hz = report["clock"]["hz"]
    for number, result in enumerate(results):
        points = histogram_of(result).points()
        style = ("-", "--", ":")[number // 10 % 3]
        axis.step(
            [v * 1e6 / hz for v, _ in [points[0], *points]],
            [0.0, *(s * 100 for _, s in points)],
            style,
            where="post",
            label=label(result, report),
        )
    axis.set_xscale("log")
    axis.set_title(group)
    axis.set_xlabel("microseconds")
    axis.set_ylabel("% of samples within")
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _split(axis: Any, results: list[dict[str, Any]], report: dict[str, Any]) -> None:
    names = [label(result, report) for result in results]
    left = [0.0] * len(results)
    for part, words in PARTS.items():
        widths = [result["split"][part]["ns"]["p50"] / 1e3 for result in results]
        axis.barh(names, widths, left=left, label=words)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize="x-small")
    axis.set_title("where the time goes (p50 of each part)")
    axis.set_xlabel("microseconds")
    axis.legend(fontsize="small")
