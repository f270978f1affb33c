"""A report in the forms other programs read: CSV, and OpenMetrics for Prometheus' textfile collector."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATISTICS = ("min", "p50", "p90", "p99", "p99.9", "p99.99", "max", "mean")
QUANTILES = (("0.5", "p50"), ("0.9", "p90"), ("0.99", "p99"), ("0.999", "p99.9"), ("0.9999", "p99.99"))


def csv(report: dict[str, Any]) -> str:
    """A line for each kind and engine: cycles, nanoseconds, the split's medians, the ratio to the floor. Without
    samples (all were interrupted) there are no times."""
    import csv as writer
    import io

    text = io.StringIO()
    out = writer.writer(text, lineterminator="\n")
    parts = ("out", "handler", "in")
    out.writerow(
        ["kind", "group", "engine", "samples", "interrupted", *(f"{name}_cycles" for name in STATISTICS),
         *(f"{name}_ns" for name in STATISTICS), "p50_net_ns", *(f"{name}_p50_ns" for name in parts),
         "floor_p50_ns", "floor_ratio", "floor_ratio_low", "floor_ratio_high"]
    )  # fmt: skip
    for result in report["results"]:
        split, floor = result["split"], result.get("floor")
        ratio = (floor or {}).get("ratio") or {}
        out.writerow(
            [result["kind"], result["group"], result["engine"], result["samples"], result["interrupted"],
             *(result[unit][name] if result["samples"] else "" for unit in ("cycles", "ns") for name in STATISTICS),
             (result.get("net") or {}).get("p50_ns", ""),
             *(split[name]["ns"]["p50"] if split else "" for name in parts), floor["ns"]["p50"] if floor else "",
             *(f"{ratio[name]:.5f}" if ratio else "" for name in ("value", "low", "high"))]
        )  # fmt: skip
    return text.getvalue()


def _label(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _labels(**values: object) -> str:
    return "{" + ",".join(f'{name}="{_label(value)}"' for name, value in values.items()) + "}"


def openmetrics(report: dict[str, Any]) -> str:
    """Summaries in seconds, by kind and engine; ends with # EOF as OpenMetrics wants.

    Only types that the older text format has too: the textfile collector reads that, and refuses a file with others.
    """
    fingerprint, software = report["fingerprint"], report["fingerprint"].get("software", {})
    hz = report["clock"]["hz"]
    name = "kvmpy_exit_latency_seconds"
    lines = [
        f"# TYPE {name} summary",
        f"# UNIT {name} seconds",
        f"# HELP {name} Time of one exit, from guest to guest.",
    ]
    for result in report["results"]:
        where = {"kind": result["kind"], "engine": result["engine"]}
        for quantile, statistic in QUANTILES if result["samples"] else ():
            value = result["cycles"][statistic] / hz
            lines.append(f"{name}{_labels(**where, quantile=quantile)} {value:.10g}")
        lines.append(f"{name}_sum{_labels(**where)} {result['cycles']['mean'] * result['samples'] / hz:.10g}")
        lines.append(f"{name}_count{_labels(**where)} {result['samples']}")
    lines += _floor_lines(report) + _interrupted_lines(report)
    info = _labels(
        version=software.get("kvmpy"), cpu=fingerprint.get("cpu", {}).get("model"),
        technique=fingerprint.get("kvm", {}).get("technique"), kernel=fingerprint.get("kernel", {}).get("release"),
        partial=report["partial"],
    )  # fmt: skip
    lines += [
        "# TYPE kvmpy_lab_info gauge",
        "# HELP kvmpy_lab_info What was measured where.",
        f"kvmpy_lab_info{info} 1",
        "# EOF",
    ]
    return "\n".join(lines) + "\n"


def _floor_lines(report: dict[str, Any]) -> list[str]:
    name = "kvmpy_exit_floor_ratio"
    lines = [f"# TYPE {name} gauge", f"# HELP {name} Median over that of a bare C loop of the same run."]
    for result in report["results"]:
        ratio = (result.get("floor") or {}).get("ratio")
        if ratio:
            lines.append(
                f"{name}{_labels(kind=result['kind'], engine=result['engine'])} {ratio['value']:.6g}"
            )
    return lines


def _interrupted_lines(report: dict[str, Any]) -> list[str]:
    name = "kvmpy_exit_interrupted_samples"
    lines = [
        f"# TYPE {name} gauge",
        f"# HELP {name} Samples kept apart: the scheduler took the CPU away meanwhile.",
    ]
    for result in report["results"]:
        lines.append(f"{name}{_labels(kind=result['kind'], engine=result['engine'])} {result['interrupted']}")
    return lines
