"""``kvmpy info --lab``: whether this host is set up for quiet numbers."""

from __future__ import annotations

import click


def show(as_json: bool) -> None:
    """The checks of :mod:`kvmpy.lab.quiet` on stdout. Changes nothing."""
    from kvmpy.lab.quiet import NOISY, checks

    found = checks()
    if as_json:
        import json

        import kvmpy

        click.echo(
            json.dumps(
                {"schema": 1, "kvmpy": kvmpy.__version__, "lab": [c.as_dict() for c in found]}, indent=2
            )
        )
        return
    width = max(len(check.name) for check in found)
    for check in found:
        click.echo(f"{check.verdict:<8} {check.name:<{width}}  {check.found}")
        if check.verdict == NOISY:
            click.echo(f"{'':<8} {'':<{width}}    {check.why}")
            click.echo(f"{'':<8} {'':<{width}}    change it: {check.remedy}")
    noisy = sum(check.verdict == NOISY for check in found)
    click.echo(
        f"{noisy} of {len(found)} make numbers noisier. Nothing was changed."
        if noisy
        else "Set up for quiet numbers."
    )
