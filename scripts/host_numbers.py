"""Tables in Markdown, and a picture, of what several hosts measured.

    ./scripts/host_numbers latency PVM=pvm.json VT-x=intel.txt            # of `kvmpy bench exits --json`
    ./scripts/host_numbers techniques --plot docs/techniques.svg PVM=…    # of `kvmpy compare --json`, and of --variants

A file holds reports, one after the other, or is the console of a host that printed them:
`scripts/hosts shell intel -- python -m kvmpy bench exits --json - >intel.txt`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from kvmpy.lab.kinds import KINDS
from kvmpy.lab.plot_techniques import less_cpu
from kvmpy.lab.text import interrupted_median, nanoseconds

BEGIN = re.compile(r'\{\s*"schema"')
FACTS = (
    ("cpu", "model"), ("cpu", "family"), ("cpu", "model_number"), ("cpu", "stepping"), ("cpu", "microcode"),
    ("cpu", "allowed"), ("kvm", "technique"), ("kvm", "ept"), ("kvm", "npt"), ("kvm", "unrestricted_guest"),
    ("kvm", "vpid"), ("kvm", "enable_apicv"), ("kvm", "avic"), ("kvm", "halt_poll_ns"), ("kvm", "nested_or_bare"),
    ("power", "smt"), ("power", "governor"), ("kernel", "release"), ("clock", "source"), ("software", "python"),
    ("software", "unicorn"),
)  # fmt: skip
"""Of the fingerprint, what a page has room for; reports have all of it."""

Rows = list[list[str]]


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Tables and a picture of what several hosts measured.")
    parser.add_argument("what", choices=["latency", "techniques"])
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--plot", metavar="FILE", help="of techniques: how many times less CPU time")
    arguments = parser.parse_args(words)
    found = {}
    for text in arguments.files:
        name, _, path = text.partition("=")
        found[name] = read(Path(path))
    if arguments.what == "latency":
        reports = {name: having("results", documents) for name, documents in found.items()}
        print(
            table(latency(reports)),
            facts({name: r["fingerprint"] for name, r in reports.items()}),
            sep="\n\n",
        )
        return
    reports = {name: having("cases", documents) for name, documents in found.items()}
    print(table(engines(found)), table(techniques(reports)), sep="\n\n")
    print("", facts({name: r["host"] for name, r in reports.items()}), sep="\n")
    if arguments.plot:
        from kvmpy.lab.plot_techniques import plot_hosts

        plot_hosts(reports, arguments.plot)


def read(path: Path) -> list[dict[str, Any]]:
    """All reports in a file; SystemExit for one that is damaged."""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "")
    try:
        return [json.JSONDecoder().raw_decode(text, begin.start())[0] for begin in BEGIN.finditer(text)]
    except ValueError as error:
        raise SystemExit(f"{path}: a report isn't whole: {error}") from None


def having(key: str, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The first report with that key. SystemExit if there is none."""
    for report in reports:
        if key in report:
            return report
    raise SystemExit(f"a file has no report with {key!r}")


def table(rows: Rows) -> str:
    """Markdown; all columns but those of words, which come first, to the right."""
    head, *rest = rows
    words = sum(1 for name in head if name in ("kind", "work", "done by", "guest", "host", "engine"))
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rest])


def facts(hosts: dict[str, dict[str, Any]]) -> str:
    """A line for each host: its fingerprint, as far as there is room."""
    lines = []
    for name, groups in hosts.items():
        said = [
            f"{key} {_plain(key, groups[group][key])}"
            for group, key in FACTS
            if groups.get(group, {}).get(key) not in (None, "")
        ]
        mitigations = groups.get("mitigations", {}).items()
        active = [key for key, value in mitigations if str(value).startswith("Mitigation")]
        said.append(f"mitigations {', '.join(active) or 'none'}")
        lines.append(f"- **{name}**: {'; '.join(said)}.")
    return "\n".join(lines)


def _plain(key: str, value: object) -> str:
    """Of a kernel's release the numbers: what else is in it names who built it."""
    found = re.match(r"[\d.]+", str(value)) if key == "release" else None
    return found[0].rstrip(".") if found else str(value)


def latency(hosts: dict[str, dict[str, Any]]) -> Rows:
    """Medians and their ratio to the floor; in parentheses that of interrupted samples where there are no others."""
    rows = [["kind", *hosts]]
    for kind in KINDS:
        rows.append([f"`{kind.name}`", *(_median(report, name, kind.name) for name, report in hosts.items())])
    return rows


def _median(report: dict[str, Any], host: str, kind: str) -> str:
    """Of the engine translate in the column of that name, of kvm in others."""
    engine = "translate" if host == "translate" else "kvm"
    for result in report["results"]:
        if (result["kind"], result["engine"]) == (kind, engine):
            if not result["samples"]:
                return f"({nanoseconds(interrupted_median(result, report['clock']['hz']))})"
            ratio = (result["floor"] or {}).get("ratio")
            return nanoseconds(result["ns"]["p50"]) + (f" · {ratio['value']:.2f}×" if ratio else "")
    return "–"


def techniques(hosts: dict[str, dict[str, Any]]) -> Rows:
    """Exits, CPU time, and how many times less of it than the unmodified guest takes, on each engine of each host."""
    columns = [(name, engine) for name, report in hosts.items() for engine in _engines(report)]
    rows = [["work", "done by", *(f"{name}, {engine}" for name, engine in columns)]]
    ways = list(dict.fromkeys((c["group"], c["variant"]) for r in hosts.values() for c in r["cases"]))
    for group, variant in ways:
        cells = [_way(hosts[name], engine, group, variant) for name, engine in columns]
        rows.append([group, variant, *cells])
    return rows


def engines(hosts: dict[str, list[dict[str, Any]]]) -> Rows:
    """What one guest takes on each engine of each host, of all `kvmpy compare IMAGE` there are."""
    rows = [["guest", "host", "engine", "exits", "CPU time", "start-up", "memory"]]
    compared = [(name, report) for name, reports in hosts.items() for report in reports if "image" in report]
    for image in dict.fromkeys(report["image"] for _, report in compared):
        for host, report in compared:
            for engine, run in report["engines"].items() if report["image"] == image else ():
                rows.append(
                    [f"`{image}`", host, engine, str(run["exits"]), nanoseconds(run["cpu"] * 1e9),
                     nanoseconds(run["start_up"] * 1e9), f"{run['guest_memory'] >> 10} KiB"]
                )  # fmt: skip
    return rows


def _engines(report: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(case["engine"] for case in report["cases"]))


def _way(report: dict[str, Any], engine: str, group: str, variant: str) -> str:
    cases = [case for case in report["cases"] if (case["engine"], case["group"]) == (engine, group)]
    for case in cases:
        if case["variant"] == variant:
            if "problem" in case:
                return str(case["problem"])
            took = f"{case['exits']:.0f} · {nanoseconds(case['cpu_best'] * 1e9)}"
            cheaper = less_cpu(case, cases)
            return took if cheaper is None else f"{took} · {cheaper:.{0 if cheaper >= 100 else 1}f}×"
    return "–"


if __name__ == "__main__":
    main(sys.argv[1:])
