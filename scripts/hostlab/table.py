"""Reports as Markdown tables that read well in a terminal: one row a host, and test by host."""

from __future__ import annotations

from collections.abc import Sequence

from .protocol import Report, Result

_WORDS = {"pass": "pass", "fail": "**FAIL**", "skip": "skip"}


def summary(reports: Sequence[Report]) -> str:
    """One row for each host: what it is, how many passed, failed, were skipped, and how long it took."""
    head = ["host", "what it is", "KVM", "pass", "fail", "skip", "up after", "seconds"]
    rows = [head]
    for report in reports:
        counts = [str(report.count(outcome)) for outcome in ("pass", "fail", "skip")]
        up = "" if report.up_after is None else f"{report.up_after:.0f} s"
        name = report.host.name if not report.failed else f"**{report.host.name}**"
        rows.append([name, report.host.summary, _kvm(report), *counts, up, f"{report.seconds:.0f}"])
    return _table(rows, right_from=3)


def tests(reports: Sequence[Report]) -> str:
    """One row for each test, one column for each host; below it why tests were skipped."""
    names = list(dict.fromkeys(result.test for report in reports for result in report.results))
    found = {(report.host.name, result.test): result for report in reports for result in report.results}
    reasons: dict[str, int] = {}
    rows = [["test", *(report.host.name for report in reports)]]
    for name in names:
        results = [found.get((report.host.name, name)) for report in reports]
        rows.append([name, *(_cell(result, reasons) for result in results)])
    notes = [f"[{number}] {reason}" for reason, number in reasons.items()]
    return "\n".join([_table(rows, right_from=1), *([""] if notes else []), *notes])


def _cell(result: Result | None, reasons: dict[str, int]) -> str:
    if result is None:
        return ""
    word = _WORDS[result.outcome]
    if result.outcome == "skip":
        return f"{word} [{reasons.setdefault(result.reason, len(reasons) + 1)}]"
    return f"{word} {result.seconds:.1f}"


def _kvm(report: Report) -> str:
    """The vendor's module, and the kernel's version."""
    names = [name for name in report.facts.get("modules", []) if name != "kvm"]
    return " ".join([*names, str(report.facts.get("kernel", ""))]).strip() or "unknown"


def _table(rows: Sequence[Sequence[str]], right_from: int) -> str:
    """A Markdown table with its columns aligned; those from ``right_from`` on are numbers."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(cells[0]))]
    rule = [
        "-" * width if column < right_from else "-" * (width - 1) + ":" for column, width in enumerate(widths)
    ]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        aligned = [
            cell.ljust(width) if column < right_from else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(aligned)} |")
    return "\n".join(lines)
