"""``kvmpy bench compare``: two reports of `kvmpy bench exits`, or more."""

from __future__ import annotations

import click

from kvmpy.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rich.console import RenderableType

    from kvmpy.lab.compare import Comparison


class Share(click.ParamType[float]):
    """5%, or 0.05."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is no share: 5% or 0.05", param, context)
        if not 0 <= share < 10:
            self.fail(f"{value!r} is no share: 0% to 999%", param, context)
        return share


@click.command("compare")
@click.argument("reports", nargs=-1, required=True, metavar="BEFORE AFTER [AFTER]...")
@click.option("--fail-if-slower", type=Share(), metavar="SHARE",
              help="Exit status 1 if a kind is surely slower, and by more than that (5%).")  # fmt: skip
@click.option("--confidence", type=Share(), default="95%", show_default=True, metavar="SHARE",
              help="Of all verdicts together.")  # fmt: skip
@click.option("--resolution", type=Share(), default="1%", show_default=True, metavar="SHARE",
              help="Smaller differences are none: two runs of the same program differ as much.")  # fmt: skip
@click.option("--by", type=click.Choice(["auto", "floor", "time"]), default="auto", show_default=True,
              help="Compare times, or times over the floor of their round. auto: that on one host.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="JSON for programs instead of tables.")
def command(
    reports: tuple[str, ...],
    fail_if_slower: float | None,
    confidence: float,
    resolution: float,
    by: str,
    as_json: bool,
) -> int:
    """Say which kinds of exit got faster or slower from the first report to each of the others."""
    from kvmpy.lab.compare import compare
    from kvmpy.lab.report import load

    if len(reports) < 2:
        raise UsageError("give two reports or more: the first is what the others are compared with")
    found = compare([load(path) for path in reports], confidence, resolution, by)
    if as_json:
        import json

        click.echo(
            json.dumps(
                [_as_dict(reports[0], path, c) for path, c in zip(reports[1:], found, strict=True)], indent=1
            )
        )
    else:
        for path, comparison in zip(reports[1:], found, strict=True):
            _print(reports[0], path, comparison)
    if fail_if_slower is None:
        return 0
    slow = [line for comparison in found for line in comparison.lines if line.slower_than(fail_if_slower)]
    for line in slow:
        assert line.ratio is not None
        click.echo(f"{line.kind} ({line.engine}) is slower by {line.ratio.value - 1:.1%}", err=True)
    return 1 if slow else 0


def _as_dict(before: str, after: str, comparison: Comparison) -> dict[str, Any]:
    return {
        "before": before, "after": after, "by": comparison.by, "drift": comparison.drift,
        "confidence": comparison.confidence, "resolution": comparison.resolution,
        "hosts": [{"name": name, "before": b, "after": a} for name, b, a in comparison.hosts],
        "only_before": [list(key) for key in comparison.only_before],
        "only_after": [list(key) for key in comparison.only_after],
        "kinds": [line.as_dict() for line in comparison.lines],
    }  # fmt: skip


def _print(before: str, after: str, comparison: Comparison) -> None:
    import sys

    from rich.text import Text

    from kvmpy.cli.drawing import draw
    from kvmpy.lab.text import comparison_table

    hosts = [Text(f"  differs: {name}: {old} → {new}") for name, old, new in comparison.hosts]
    how = {"floor": "times over the floor of the same round", "time": "times"}[comparison.by]
    drift = (
        "" if comparison.drift is None else f"; the floor itself took {comparison.drift:.3f} times as long"
    )
    alone = [
        f"{words}: {', '.join(f'{kind} ({engine})' for kind, engine in keys)}"
        for words, keys in (("only before", comparison.only_before), ("only after", comparison.only_after))
        if keys
    ]
    what: list[RenderableType] = [
        Text(f"{before} → {after}", style="bold"),
        *(hosts or [Text("  the hosts are the same")]),
        comparison_table(comparison),
        Text(f"by {how}, {comparison.confidence:g} confidence for all verdicts together, differences above"
             f" {comparison.resolution:.1%}{drift}"),
        *(Text(line) for line in alone),
    ]  # fmt: skip
    click.echo(draw(sys.stdout, *what), nl=False)
