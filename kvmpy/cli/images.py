"""``kvmpy images``: the guests that come with kvmpy."""

from __future__ import annotations

import click


@click.command("images")
@click.option("--json", "as_json", is_flag=True, help="JSON for programs instead of a table.")
def command(as_json: bool) -> None:
    """List the bundled guests; `kvmpy run NAME` runs one."""
    from kvmpy.boot.bundled import names

    guests = names()
    if as_json:
        import json

        fields = [
            {
                "name": g.name,
                "mode": g.mode,
                "format": g.format,
                "summary": g.summary,
                "needs": g.needs,
                "path": g.path,
            }
            for g in guests
        ]
        click.echo(json.dumps({"schema": 1, "images": fields}, indent=2))
        return
    width = max(len(guest.name) for guest in guests)
    for guest in guests:
        click.echo(f"{guest.name:<{width}}  {guest.mode:<9}  {guest.summary}")
