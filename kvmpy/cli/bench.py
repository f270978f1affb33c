"""``kvmpy bench``: measurements, a subcommand a file."""

from __future__ import annotations

import click

from kvmpy.cli.lazy import Lazy

COMMANDS = {
    "dispatch": ("kvmpy.cli.bench_dispatch", "What handing an exit to its owner costs, against a floor."),
    "exits": (
        "kvmpy.cli.bench_exits",
        "Distributions of what each kind of exit costs, and where the time goes.",
    ),
    "compute": ("kvmpy.cli.bench_compute", "How fast binary translation computes, against QEMU's."),
    "rescue": ("kvmpy.cli.bench_rescue", "What instructions cost that KVM leaves to binary translation."),
    "compare": ("kvmpy.cli.bench_compare", "Whether two reports of exits differ, and whether that is real."),
}


@click.command("bench", cls=Lazy, table=COMMANDS)
def command() -> None:
    """Measure what exits cost, and how fast guests compute."""
