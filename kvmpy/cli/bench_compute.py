"""``kvmpy bench compute``: the ratios of kvmpy.lab.compute."""

from __future__ import annotations

import click


@click.command("compute")
@click.option("--quick", is_flag=True, help="A third of the rounds.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of lines.")
def command(quick: bool, as_json: bool) -> None:
    """Measure how fast binary translation computes, against QEMU's (TCG) in the same run.

    The same boot sector runs on both, in turn, and times two loops itself: one that counts down, and the sieve of
    Eratosthenes. More than 1 is faster than QEMU.
    """
    from kvmpy.lab.compute import QUICK_ROUNDS, ROUNDS, compare

    report = compare(QUICK_ROUNDS if quick else ROUNDS)
    if isinstance(report, str):
        raise click.ClickException(report)
    if as_json:
        import json

        click.echo(json.dumps(report, indent=2))
        return
    for name, values in report.items():
        click.echo(
            f"{name}: {values['ratio']:.2f} times as fast as QEMU ({values['low']:.2f}..{values['high']:.2f});"
            f" {values['ticks'] / 1e6:.1f} and {values['qemu_ticks'] / 1e6:.1f} million ticks at best"
        )
