"""``kvmpy bench exits``: the laboratory on the command line."""

from __future__ import annotations

import os
import sys

import click

from kvmpy.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rich.console import RenderableType

    Writer = Callable[[dict[str, Any]], str]

INTERRUPTED = 130


@click.command("exits")
@click.argument("kinds", nargs=-1, metavar="[KIND]...")
@click.option("--engine", "engines", multiple=True, type=click.Choice(["kvm", "translate"]),
              help="Only this engine; may be repeated.  [default: all that work]")  # fmt: skip
@click.option("--quick", is_flag=True, help="Less than ten seconds: fewer rounds, machines kept.")
@click.option(
    "--seconds", type=float, metavar="N", help="Time for everything.  [default: 45, with --quick 6]"
)
@click.option(
    "--rounds", type=int, metavar="N", help="Rounds through all kinds at most.  [default: 60, with --quick 7]"
)
@click.option("--samples", type=int, metavar="N", help="Samples of a kind that are enough.  [default: 10000]")
@click.option("--cpu", type=int, metavar="N", help="Measure on this CPU.  [default: the least busy]")
@click.option("--no-floor", is_flag=True, help="Don't measure the bare C loop beside each kind.")
@click.option("--kernel", is_flag=True, help="Also read KVM's tracepoints (as root, with tracefs).")
@click.option("--handicap", type=int, default=0, metavar="CYCLES",
              help="Let C handlers spin that long: to see what `kvmpy bench compare` finds.")  # fmt: skip
@click.option("--json", "json_file", metavar="FILE", help="The whole report, with histograms; - for stdout.")
@click.option("--csv", "csv_file", metavar="FILE", help="A line for each kind; - for stdout.")
@click.option("--html", "html_file", metavar="FILE", help="A page that needs nothing else.")
@click.option("--plot", "plot_file", metavar="FILE", help="A picture, .svg, .png or .pdf (needs matplotlib).")
@click.option("--openmetrics", "openmetrics_file", metavar="FILE", help="For Prometheus' textfile collector.")
@click.option("--list", "only_list", is_flag=True, help="List the kinds and stop.")
def command(
    kinds: tuple[str, ...], only_list: bool, quick: bool, plot_file: str | None, html_file: str | None,
    json_file: str | None, csv_file: str | None, openmetrics_file: str | None, **options: Any,
) -> int:  # fmt: skip
    """Measure what exits cost: distributions, where the time goes, and how far above a bare C loop.

    KINDs are names, groups or patterns such as mmio*; without any, everything is measured.
    """
    from kvmpy.cli.progress import Bar
    from kvmpy.lab.measuring import Laboratory

    if only_list:
        _list(kinds)
        return 0
    files = [path for path in (json_file, csv_file, html_file, openmetrics_file) if path]
    _check_outputs(files, plot_file)
    settings = _settings(kinds, quick, **options)
    with Bar() as bar:
        lab = Laboratory(settings, bar.show)
        lab.run()
    from kvmpy.lab import exports, report
    from kvmpy.lab.page import page

    found = report.build(lab)
    _print(
        found, to_stderr="-" in files
    )  # first: a file that can't be written doesn't take the numbers along
    writers: list[tuple[str | None, Writer]] = [
        (json_file, report.dumps), (csv_file, exports.csv), (html_file, page),
        (openmetrics_file, exports.openmetrics),
    ]  # fmt: skip
    for path, writer in writers:
        if path:
            report.save(path, writer(found))
    if plot_file:
        from kvmpy.lab.plot import plot

        plot(found, plot_file)
    return INTERRUPTED if found["partial"] else 0


def _settings(
    kinds: tuple[str, ...], quick: bool, engines: tuple[str, ...], seconds: float | None, rounds: int | None,
    samples: int | None, cpu: int | None, no_floor: bool, kernel: bool, handicap: int,
) -> Any:  # fmt: skip
    from kvmpy.lab import measuring as m

    if seconds is None:
        seconds = m.QUICK_SECONDS if quick else m.SECONDS
    if rounds is None:
        rounds = m.QUICK_ROUNDS if quick else m.ROUNDS
    return m.Settings(
        kinds, engines, seconds, rounds, m.SAMPLES if samples is None else samples, cpu=cpu, handicap=handicap,
        floor=not no_floor, kernel=kernel, keep=quick,
    )  # fmt: skip


def _check_outputs(files: list[str], plot_file: str | None) -> None:
    """Before the time is spent: can what is measured be written?"""
    if files.count("-") > 1:
        raise UsageError("stdout (-) can take one output only")
    for path in (*files, *([plot_file] if plot_file else [])):
        folder = os.path.dirname(path) or "."
        if path != "-" and not os.path.isdir(folder):
            raise UsageError(f"{path}: there is no directory {folder}")
        if path != "-" and (
            os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK)
        ):
            raise UsageError(f"{path} can't be written")
    if plot_file:
        from kvmpy.lab.plot import check

        check(plot_file)


def _list(patterns: tuple[str, ...]) -> None:
    from kvmpy.lab.kinds import choose

    kinds = choose(patterns)
    width = max(len(kind.name) for kind in kinds)
    group = ""
    for kind in kinds:
        if kind.group != group:
            group = kind.group
            click.echo(f"{group}:")
        click.echo(f"  {kind.name:<{width}}  {kind.summary}")


def _print(report: dict[str, Any], to_stderr: bool) -> None:
    from rich.text import Text

    from kvmpy.cli.drawing import draw
    from kvmpy.lab import text

    split = text.split_table(report)
    traced = text.trace_lines(report)
    lines = (*(["KVM's tracepoints:"] if traced else []), *traced, *text.missing(report), *text.notes(report))
    what: list[RenderableType] = [*text.tables(report), *([split] if split else []), *map(Text, lines)]
    click.echo(draw(sys.stderr if to_stderr else sys.stdout, *what), nl=False, err=to_stderr)
