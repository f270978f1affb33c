"""``kvmpy compare``: one guest on every engine in step, or the same work done in several ways."""

from __future__ import annotations

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.lab.lockstep import Difference
    from kvmpy.lab.twins import Comparison

DIFFERENT, NOT_COMPARABLE = 1, 2
SHOWN_EVERY = 64
ENOUGH = 100
"""Exits for their cost to be seen in the time of a run."""
WHAT = {
    "exit": "an exit",
    "registers": "registers",
    "memory": "memory",
    "output": "the output",
    "end": "how they end",
}


@click.command("compare")
@click.argument("what", metavar="[IMAGE | GROUP]…", nargs=-1)
@click.option("--variants", is_flag=True, help="Compare guests that do the same work in different ways.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(["kvm", "translate"]),
    help="Only this engine; may be repeated.  [default: all that work here]",
)
@click.option(
    "--every",
    default="exit",
    show_default=True,
    metavar="exit|N",
    help="Compare registers and memory after each exit, or after every Nth.",
)
@click.option(
    "--tolerate",
    multiple=True,
    type=click.Choice(["time"]),
    help="Don't compare what clocks make different: their registers and TSC, PIT, RTC and timer accesses.",
)
@click.option("--send", "sent", default="", metavar="TEXT", help="What the guest finds at its serial port.")
@click.option("--memory", default="8M", show_default=True, metavar="SIZE", help="RAM of each machine.")
@click.option("--timeout", type=float, default=60.0, show_default=True, metavar="SECONDS")
@click.option("--max-exits", type=int, default=1_000_000, show_default=True, metavar="N")
@click.option("--rounds", type=int, default=5, show_default=True, help="Runs of each guest, for --variants.")
@click.option("--plot", "plot_path", metavar="FILE", help="Draw exits and time as .svg, .png or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def command(what: tuple[str, ...], variants: bool, as_json: bool, **options: Any) -> int:
    """Run IMAGE on all engines that work here, in step, and show the first difference.

    Exits with 0 if they agree, 1 if they don't, 2 if they can't be compared: only one engine can run the image; 124 if
    they agree as far as the time or the number of exits went.

    With --variants: run the bundled guests that do the same work as an unmodified and as a paravirtual guest does
    (all, or those of a GROUP: console, time, work, wait), and show exits, cost and time side by side.
    """
    if options["plot_path"] is not None:
        from kvmpy.lab.plot import check

        check(options["plot_path"])
    if variants:
        return _variants(what, options, as_json)
    if len(what) != 1:
        raise click.UsageError("give one IMAGE, a file or a bundled guest's name; or --variants")
    return _lockstep(what[0], options, as_json)


def _variants(what: tuple[str, ...], options: dict[str, Any], as_json: bool) -> int:
    from kvmpy.cli.progress import Bar
    from kvmpy.lab.variants import ENGINES, run

    with Bar() as bar:
        report = run(what, options["engines"] or ENGINES, options["rounds"], bar.show)
    if options["plot_path"] is not None:
        from kvmpy.lab.plot_techniques import of_variants, plot

        plot(of_variants(report), options["plot_path"])
    if as_json:
        import json

        click.echo(json.dumps(report, indent=2))
    else:
        import sys

        from kvmpy.cli.drawing import draw

        click.echo(draw(sys.stdout, _table(report)), nl=False)
        for name, why in report["left_out"].items():
            click.echo(f"not on {name}: {why}")
    return DIFFERENT if any("problem" in case for case in report["cases"]) else 0


def _table(report: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("work", "done by", "engine"):
        table.add_column(column, no_wrap=True)
    for column in ("exits", "fewer", "µs/exit", "ms", "faster", "CPU ms"):
        table.add_column(column, justify="right", no_wrap=True)
    before = None
    for case in report["cases"]:
        group = (case["group"], case["engine"])
        if before is not None and group != before:
            table.add_section()
        first, before = group != before, group
        table.add_row(*_row(case, first))
    return table


def _row(case: dict[str, Any], first: bool) -> tuple[str, ...]:
    name = (case["group"] if first else "", case["variant"], case["engine"])
    if "problem" in case:
        return (*name, case["problem"])
    return (
        *name,
        f"{case['exits']:.0f}",
        _times(case.get("fewer_exits"), first),
        f"{case['per_exit'] * 1e6:.1f}" if case["exits"] >= ENOUGH else "",
        f"{case['wall_best'] * 1e3:.2f}",
        _times(case.get("faster"), first),
        f"{case['cpu'] * 1e3:.2f}",
    )


def _times(ratio: float | None, first: bool) -> str:
    return "" if ratio is None or first else f"{ratio:.1f} ×" if ratio < 100 else f"{ratio:.0f} ×"


def _lockstep(image: str, options: dict[str, Any], as_json: bool) -> int:
    from kvmpy.cli import LIMIT
    from kvmpy.cli.messages import say
    from kvmpy.cli.progress import Bar
    from kvmpy.lab.lockstep import NotComparable
    from kvmpy.lab.twins import Guest, compare
    from kvmpy.lab.variants import ENGINES

    try:
        with Bar() as bar:
            found = compare(
                Guest(image, options["memory"], options["sent"].encode()),
                options["engines"] or ENGINES,
                every=_every(options["every"]),
                tolerate=options["tolerate"],
                timeout=options["timeout"],
                max_events=options["max_exits"],
                progress=lambda events: (
                    bar.show(None, f"{events} exits") if events % SHOWN_EVERY == 0 else None
                ),
            )
    except NotComparable as error:
        say(str(error))
        return NOT_COMPARABLE
    if options["plot_path"] is not None:
        _plot(image, found, options["plot_path"])
    if as_json:
        import json

        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _show(found)
    return DIFFERENT if found.difference is not None else LIMIT if found.unfinished else 0


def _plot(image: str, found: Comparison, path: str) -> None:
    from kvmpy.cli.messages import say
    from kvmpy.lab.plot_techniques import of_engines, plot

    if all(found.engines.values()):
        plot(of_engines(image, found.engines), path)
    else:
        say(f"{path} isn't written: what a run costs isn't known of a guest that doesn't end")


def _every(text: str) -> int:
    if text == "exit":
        return 1
    if not text.isdecimal() or int(text) == 0:
        raise click.UsageError(f"--every {text}: 'exit', or a number from 1")
    return int(text)


def _show(found: Comparison) -> None:
    import sys

    from kvmpy.cli.drawing import draw

    names = " and ".join(found.engines)
    if found.difference is not None:
        _show_difference(found.difference)
        if found.timely:
            click.echo("the guest takes interrupts, which come when they do: --tolerate time")
    elif found.unfinished:
        click.echo(f"{names} agree so far: {found.unfinished} (--timeout, --max-exits)")
    else:
        states = f", registers and memory {found.states} times" if found.states else ""
        click.echo(f"{names} agree: {found.events} exits{states}, {len(found.output)} bytes of output")
    for name, why in found.left_out.items():
        click.echo(f"not on {name}: {why}")
    if all(found.engines.values()):
        click.echo(draw(sys.stdout, _side_by_side(found.engines)), nl=False)


def _side_by_side(engines: dict[str, dict[str, Any]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("engine", no_wrap=True)
    for column in ("exits", "µs/exit", "ms", "Mcycles", "CPU ms", "start-up ms", "guest KiB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("exits by reason")
    for name, run in engines.items():
        if "problem" in run:
            table.add_row(name, run["problem"])
            continue
        reasons = ", ".join(f"{reason} {count}" for reason, count in run["exits_by_reason"].items())
        table.add_row(
            name,
            str(run["exits"]),
            "" if run["per_exit"] is None else f"{run['per_exit'] * 1e6:.1f}",
            f"{run['wall'] * 1e3:.2f}",
            f"{run['cycles'] / 1e6:.2f}",
            f"{run['cpu'] * 1e3:.2f}",
            f"{run['start_up'] * 1e3:.1f}",
            f"{run['guest_memory'] >> 10}",
            reasons,
        )
    return table


def _show_difference(difference: Difference) -> None:
    """What differs, where, and what each engine would do next."""
    first, second = difference.sides
    click.echo(
        f"{first} and {second} differ in {WHAT[difference.what]} after {difference.events} exits in common,"
    )
    click.echo(f"the last of which was {difference.before}")
    for name, value in zip(difference.sides, difference.values, strict=True):
        if value:
            click.echo(f"  {name:<10} {value}")
    for register, values in difference.registers.items():
        mine, theirs = (f"{value:#x}" for value in values)
        click.echo(f"  {register:<10} {first} {mine:<18}  {second} {theirs}")
    for gpa, left, right in difference.pages:
        click.echo(f"  {gpa:#x}  {first} {left.hex(' ')}")
        click.echo(f"  {'':{len(hex(gpa))}}  {second} {right.hex(' ')}")
    if difference.page_count > len(difference.pages):
        click.echo(f"  and {difference.page_count - len(difference.pages)} more pages")
    for name, lines in zip(difference.sides, difference.code, strict=True):
        click.echo(f"{name} goes on with")
        for line in lines[:5]:
            click.echo(f"  {line}")
