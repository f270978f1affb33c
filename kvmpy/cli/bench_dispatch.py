"""``kvmpy bench dispatch``: the table of kvmpy.lab.dispatch."""

from __future__ import annotations

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@click.command("dispatch")
@click.option("--engine", "engines", multiple=True, type=click.Choice(["kvm", "translate"]),
              help="Only this real engine; may be repeated.  [default: all that work]")  # fmt: skip
@click.option("--quick", is_flag=True, help="A fifth of the rounds.")
@click.option("--qemu", is_flag=True, help="Also run the same guest on QEMU's KVM accelerator, in turn.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def command(engines: tuple[str, ...], quick: bool, qemu: bool, as_json: bool) -> None:
    """Measure what handing an exit to its owner costs, in every place, against a floor of the same run.

    Ratios are the result: nanoseconds change with the machine and its load.
    """
    from kvmpy.cli.progress import Bar
    from kvmpy.lab.dispatch import run

    with Bar() as bar:
        report = run(engines or ("kvm", "translate"), quick, bar.show)
    if qemu:
        from kvmpy.lab.qemu import compare

        report["qemu"] = compare(3 if quick else 9)
    if as_json:
        import json

        click.echo(json.dumps(report, indent=2))
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    import sys

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from kvmpy.cli.drawing import draw

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("engine", "access", "place"):
        table.add_column(column, no_wrap=True)
    for column in ("ns/exit", "floor", "added", "ratio", "10%..90%"):
        table.add_column(column, justify="right", no_wrap=True)
    for case in report["cases"]:
        table.add_row(
            case["engine"], case["access"], case["place"], f"{case['ns']:.1f}", f"{case['floor_ns']:.1f}",
            f"{case['added_ns']:+.1f}", f"{case['ratio']:.3f}", f"{case['ratio_p10']:.3f}..{case['ratio_p90']:.3f}",
        )  # fmt: skip
    click.echo(draw(sys.stdout, table, *(Text(line) for line in _lines(report))), nl=False)


def _lines(report: dict[str, Any]) -> list[str]:
    """What stands below the table."""
    lines = [
        "CPU time. Floors: a bare C loop around the same entry; for the stub's place python an empty cffi call."
    ]
    for engine, two in report["two_vcpus"].items():
        lines.append(
            f"Two vCPUs, C rule, {engine}: {two['ratio']:.2f} times the exits/s of one"
            f" ({two['ratio_p10']:.2f}..{two['ratio_p90']:.2f}); two bare loops {two['floor_ratio']:.2f} times"
            f" those of one; one over the other {two['of_floor']:.3f}"
            f" ({two['of_floor_p10']:.3f}..{two['of_floor_p90']:.3f})"
        )
    if report["ring_records_per_second"]:
        lines.append(f"Ring drained into numpy: {report['ring_records_per_second'] / 1e6:.0f} M records/s")
    lines += _qemu_lines(report.get("qemu"))
    return lines + [f"not measured: {line}" for line in report["missing"]]


def _qemu_lines(qemu: dict[str, Any] | str | None) -> list[str]:
    if isinstance(qemu, str):
        return [f"not measured: QEMU: {qemu}"]
    if not qemu:
        return []
    lines = []
    for name in ("c", "python"):
        low, high = qemu["spread"][name]
        lines.append(
            f"Whole exit, place {name}: {qemu['ratio'][name]:.3f} of QEMU's ({low:.3f}..{high:.3f};"
            f" {qemu['cycles'][name]:.0f} and {qemu['cycles']['qemu']:.0f} cycles)"
        )
    return lines
