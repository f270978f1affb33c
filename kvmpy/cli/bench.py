"""``kvmpy bench``: measurements, a subcommand a file."""

from __future__ import annotations

import click

from kvmpy.cli.lazy import Lazy

COMMANDS = {
    "dispatch": ("kvmpy.cli.bench_dispatch", "What handing an exit to its owner costs, against a floor."),
}


@click.command("bench", cls=Lazy, table=COMMANDS)
def command() -> None:
    """Measure what exits cost."""
