"""``kvmpy bench rescue``: the table of kvmpy.lab.rescue."""

from __future__ import annotations

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@click.command("rescue")
@click.option("--quick", is_flag=True, help="A fifth of the rounds.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def command(quick: bool, as_json: bool) -> None:
    """Measure what instructions cost that KVM can't emulate and binary translation carries out (see docs/rescue.md).

    The ratio to a plain exit of the same run is the result: nanoseconds change with the machine and its load.
    """
    from kvmpy.cli.progress import Bar
    from kvmpy.lab.rescue import run

    with Bar() as bar:
        report = run(quick, bar.show)
    if as_json:
        import json

        click.echo(json.dumps(report, indent=2))
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    import sys

    from rich import box
    from rich.table import Table

    from kvmpy.cli.drawing import draw

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("instructions", no_wrap=True)
    for column in ("rescued", "µs each", "plain exits", "10%..90%"):
        table.add_column(column, justify="right", no_wrap=True)
    for case in report["cases"]:
        table.add_row(
            case["instructions"], str(case["rescued"]), f"{case['ns'] / 1e3:.1f}", f"{case['ratio']:.2f}",
            f"{case['ratio_p10']:.2f}..{case['ratio_p90']:.2f}",
        )  # fmt: skip
    click.echo(draw(sys.stdout, table), nl=False)
    click.echo(f"A plain exit, OUT to a rule in C: {report['exit_ns'] / 1e3:.1f} µs.")
