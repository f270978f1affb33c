"""A report as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

import math
from html import escape

from kvmpy.lab import text
from kvmpy.lab.report import histogram_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

COLOURS = (
    "#3366cc",
    "#c2510f",
    "#2a8c5a",
    "#8a4fbf",
    "#b8860b",
    "#c2185b",
    "#00838f",
    "#6d4c41",
    "#546e7a",
    "#7cb342",
)
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 300, 48, 36, 10
PARTS = (("out", "guest to user space"), ("handler", "handler"), ("in", "user space to guest"))
STYLE = """
:root{color-scheme:light dark;--line:#8886;--soft:#8881}
body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
td:first-child,th:first-child,td.t,th.t{text-align:left}
tr:hover td{background:var(--soft)}
svg{max-width:100%;height:auto}svg text{fill:currentColor;font-size:11px}
.grid{stroke:currentColor;stroke-opacity:.15}.key{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.85rem}
.key i{display:inline-block;width:1.6em;height:.25em;margin-right:.4em;vertical-align:middle}
.partial{border:2px solid #c2510f;padding:.5rem 1rem;font-weight:600}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;font-size:.9rem}dd{margin:0;overflow-wrap:anywhere}
"""


def page(report: dict[str, Any]) -> str:
    """The page."""
    title = f"Exit latency: {report['fingerprint'].get('cpu', {}).get('model') or 'unknown CPU'}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(report['created'])}</p>",
    ]
    if report["partial"]:
        parts.append(f'<p class="partial">Partial: {escape(report["partial"])}</p>')
    parts += [f"<p>{escape(note)}</p>" for note in text.notes(report)]
    for group in dict.fromkeys(result["group"] for result in report["results"]):
        mine = [result for result in report["results"] if result["group"] == group]
        parts += [
            f"<h2>{escape(group)}</h2>",
            _table(mine, report["clock"]["hz"]),
            _distributions(mine, report),
        ]
    split = [result for result in report["results"] if result["split"]]
    if split:
        parts += ["<h2>where the time goes</h2>", _split(split, report)]
    parts += [*_missing(report), "<h2>the host</h2>", _host(report), "</body></html>"]
    return "\n".join(parts) + "\n"


def _cells(values: Iterable[str], tag: str = "td") -> str:
    return "".join(f"<{tag}>{value}</{tag}>" for value in values)


def _table(results: list[dict[str, Any]], hz: float) -> str:
    head = (
        "kind",
        "engine",
        "samples",
        "min",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max",
        "over the floor",
        "interrupted",
    )
    rows = [f"<tr>{_cells(head, 'th')}</tr>"]
    for result in results:
        ratio = (result.get("floor") or {}).get("ratio")
        over = f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})" if ratio else ""
        cells = [escape(result["kind"]), result["engine"], str(result["samples"]), *_times(result, hz), over,
                 str(result["interrupted"])]  # fmt: skip
        rows.append(f'<tr title="{escape(result["summary"])}">{_cells(cells)}</tr>')
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _times(result: dict[str, Any], hz: float) -> list[str]:
    """As on the terminal: where all samples were interrupted, their median in parentheses."""
    if not result["samples"]:
        return ["", f"({text.nanoseconds(text.interrupted_median(result, hz))})", "", "", "", ""]
    return [text.nanoseconds(result["ns"][name]) for name in ("min", "p50", "p90", "p99", "p99.9", "max")]


def _distributions(results: list[dict[str, Any]], report: dict[str, Any]) -> str:
    """Cumulative distributions over a logarithmic axis of time, of those that have samples."""
    hz = report["clock"]["hz"]
    results = [result for result in results if result["samples"]]
    if not results:
        return ""
    curves = [[(value * 1e9 / hz, share) for value, share in histogram_of(r).points()] for r in results]
    low = math.floor(min(math.log10(max(curve[0][0], 1)) for curve in curves))
    high = max(math.ceil(max(math.log10(max(curve[-1][0], 10)) for curve in curves)), low + 1)

    def x(ns: float) -> float:
        return LEFT + (math.log10(max(ns, 1)) - low) / (high - low) * (WIDTH - LEFT - 10)

    def y(share: float) -> float:
        return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

    lines = []
    for power in range(low, high + 1):
        at = x(10.0**power)
        lines.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{y(0):.1f}"/>')
        anchor = "end" if power == high else "middle"
        words = text.nanoseconds(10.0**power)
        lines.append(f'<text x="{at:.1f}" y="{HEIGHT - 18}" text-anchor="{anchor}">{words}</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        )
        lines.append(f'<text x="{LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for number, curve in enumerate(curves):
        path, last = [], 0.0
        for ns, share in curve:
            path.append(f"{x(ns):.1f},{y(last):.1f} {x(ns):.1f},{y(share):.1f}")
            last = share
        dash = f' stroke-dasharray="{_dash(number)}"' if _dash(number) else ""
        lines.append(
            f'<polyline fill="none" stroke="{_colour(number)}" stroke-width="1.5"{dash} points="{" ".join(path)}"/>'
        )
    names = ", ".join(result["kind"] for result in results)
    svg = _svg(HEIGHT, f"Distributions of {names}")
    key = _key((text.label(result, report), _line_like(number)) for number, result in enumerate(results))
    return f"{svg}{''.join(lines)}</svg>{key}"


def _svg(height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img"><title>{escape(title)}</title>'


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _dash(number: int) -> int:
    """Length of the dashes of a curve, 0: none. They tell those apart that have the same colour."""
    return number // len(COLOURS) * 4


def _line_like(number: int) -> str:
    """The background that looks like a curve's line."""
    colour, dash = _colour(number), _dash(number)
    if not dash:
        return colour
    return f"repeating-linear-gradient(90deg,{colour} 0 {dash}px,transparent 0 {2 * dash}px)"


def _key(entries: Iterable[tuple[str, str]]) -> str:
    spans = (f'<span><i style="background:{look}"></i>{escape(name)}</span>' for name, look in entries)
    return f'<div class="key">{"".join(spans)}</div>'


def _split(results: list[dict[str, Any]], report: dict[str, Any]) -> str:
    """A bar for each kind, from the guest to user space and back."""
    row, left = 22, 230
    sums = [sum(result["split"][name]["ns"]["p50"] for name, _ in PARTS) for result in results]
    scale = (WIDTH - left - 90) / max(sums)
    lines = []
    for number, (result, total) in enumerate(zip(results, sums, strict=True)):
        at, top = float(left), number * row + 4
        lines.append(
            f'<text x="{left - 8}" y="{top + 12}" text-anchor="end">{escape(text.label(result, report))}</text>'
        )
        for which, (name, words) in enumerate(PARTS):
            ns = result["split"][name]["ns"]["p50"]
            width = ns * scale
            lines.append(
                f'<rect x="{at:.1f}" y="{top}" width="{max(width, 0.5):.1f}" height="15" fill="{_colour(which)}">'
                f"<title>{words}: {text.nanoseconds(ns)}</title></rect>"
            )
            at += width
        lines.append(f'<text x="{at + 6:.1f}" y="{top + 12}">{text.nanoseconds(total)}</text>')
    height = len(results) * row + 8
    svg = _svg(height, "Medians of the parts of an exit")
    return f"{svg}{''.join(lines)}</svg>{_key((words, _colour(at)) for at, (_, words) in enumerate(PARTS))}"


def _missing(report: dict[str, Any]) -> list[str]:
    lines = text.missing(report)
    if not lines:
        return []
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return [f"<h2>not measured</h2><ul>{items}</ul>"]


def _host(report: dict[str, Any]) -> str:
    rows = []
    for group, values in report["fingerprint"].items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            if value not in (None, ""):
                rows.append(f"<dt>{escape(f'{group} {name}'.strip())}</dt><dd>{escape(str(value))}</dd>")
    return f"<dl>{''.join(rows)}</dl>"
