"""``kvmpy run``: load an image, run it, say how it ended."""

from __future__ import annotations

import os
import sys

import click

from kvmpy.cli import CRASH, LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from typing import Any

    from kvmpy.boot.bundled import Bundled
    from kvmpy.boot.payload import Payload
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.result import Result

GUEST_STATUS_LIMIT = 119
HISTORY = 16


class Address(click.ParamType[int]):
    """An integer as in C: 0x for hexadecimal."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        try:
            return int(value, 0)
        except (TypeError, ValueError):
            self.fail(f"{value!r} isn't an address: a number, with 0x for hexadecimal", param, context)


def _choice(*names: str) -> click.Choice[str]:
    return click.Choice(names)


@click.command("run")
@click.argument("image")
@click.option(
    "--memory", default="64M", show_default=True, metavar="SIZE", help="RAM: bytes, or with K, M, G."
)
@click.option("--cpus", type=int, metavar="N", help="vCPUs.  [default: what the guest wants, or 1]")
@click.option(
    "--engine",
    type=_choice("auto", "kvm", "translate"),
    default="auto",
    show_default=True,
    help="Hardware virtualization, binary translation, or whichever works.",
)
@click.option(
    "--irqchip",
    type=_choice("auto", "none", "kernel", "split"),
    default="auto",
    show_default=True,
    help="Interrupt controllers and timer in the kernel. auto: where the guest or format needs them.",
)
@click.option(
    "--format", "format_", metavar="NAME", help="Don't recognise the image's format: it is this one."
)
@click.option("--mode", type=_choice("real", "protected", "long"), help="CPU mode a flat image starts in.")
@click.option("--entry", type=Address(), metavar="ADDRESS", help="Where to start instead.")
@click.option("--load-address", type=Address(), metavar="ADDRESS", help="Where a flat image goes.")
@click.option("--append", default="", metavar="TEXT", help="The guest's command line.")
@click.option(
    "--module", "modules", multiple=True, metavar="FILE[ ARGS]", help="A Multiboot module; may be repeated."
)
@click.option("--initrd", metavar="FILE", help="An initial RAM disk.")
@click.option(
    "--serial",
    default="stdio",
    show_default=True,
    metavar="WHERE",
    help="stdio, none, file:PATH or pty. On a terminal Ctrl-A x quits.",
)
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop the guest after that long (status 124).")
@click.option("--max-exits", type=int, metavar="N", help="Stop each vCPU after that many exits (status 124).")
@click.option(
    "--strict", is_flag=True, help="An access to a port or address nobody owns is an error (status 120)."
)
@click.option("--qemu-exit", is_flag=True, help="Exit as QEMU's isa-debug-exit: 2n+1 for a guest's n.")
@click.option("--stats", is_flag=True, help="Print a table of exits on stderr.")
@click.option("--report", "report_path", metavar="FILE", help="Write a report of the run as JSON.")
@click.option("--trace", "trace_path", metavar="FILE", help="Write every exit as a line of JSON.")
@click.option("--quiet", is_flag=True, help="No remarks on stderr; errors are still there.")
def command(image: str, **options: Any) -> int:
    """Run IMAGE, a file or a bundled guest's name (see `kvmpy images`).

    Exits with the guest's status (0-119), 0 after a plain halt, 120 after a crash, 124 when a limit was reached, 2 for
    a bad image, 3 without a usable engine, 130 on Ctrl-C.
    """
    from contextlib import ExitStack

    with ExitStack() as stack:
        return _run(image, options, stack)


def _run(image: str, options: dict[str, Any], stack: ExitStack) -> int:
    from kvmpy.cli.terminal import Console
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.pc import Pc

    guest = _bundled(image)
    data, name = (None, image) if guest else _read(image)
    console = Console(options["serial"])
    cpus = options["cpus"] if options["cpus"] is not None else guest.needs["cpus"] if guest else 1
    machine = stack.enter_context(
        Machine(
            options["memory"], cpus, options["engine"],
            irqchip=_irqchip(options, guest, data, cpus), strict=options["strict"], history=HISTORY,
        )
    )  # fmt: skip
    pc = Pc(machine, console.write, append=options["append"], qemu_exit=options["qemu_exit"])
    payload = machine.load(data if data is not None else image, **_boot_options(options, name))
    for note in payload.notes if not options["quiet"] else ():
        print(f"kvmpy: {note}", file=sys.stderr)
    console.receive, console.quit = pc.serial.receive, machine.stop
    result = _execute(machine, console, options, stack)
    if options["report_path"]:
        _write_report(machine, image, payload, result, options)
    if options["stats"]:
        from kvmpy.cli.report import print_stats

        print_stats(result)
    return _status(machine, result, options)


def _bundled(image: str) -> Bundled | None:
    """A bundled guest, unless there is a file of that name or the name is a path."""
    if os.sep in image or os.path.exists(image):
        return None
    from kvmpy.boot.bundled import find

    return find(image)


def _read(path: str) -> tuple[bytes, str]:
    from kvmpy.boot import read

    return read(path), os.path.basename(path)


def _irqchip(options: dict[str, Any], guest: Bundled | None, data: bytes | None, cpus: int) -> str:
    """A guest that comes as flat bytes and ends with HLT wants none; firmware and kernels expect a PC's."""
    if options["irqchip"] != "auto":
        return str(options["irqchip"])
    if cpus > 1:
        return "kernel"
    if guest is not None:
        return guest.needs["irqchip"]
    from kvmpy.boot import recognise

    return "none" if (options["format_"] or recognise(data or b"\0")) == "flat" else "kernel"


def _boot_options(options: dict[str, Any], name: str) -> dict[str, Any]:
    chosen: dict[str, Any] = {"name": name, "append": options["append"], "modules": list(_modules(options))}
    for key, option in (
        ("format", "format_"),
        ("mode", "mode"),
        ("entry", "entry"),
        ("load_address", "load_address"),
    ):
        if options[option] is not None:
            chosen[key] = options[option]
    if options["initrd"]:
        chosen["initrd"] = _read(options["initrd"])[0]
    return chosen


def _modules(options: dict[str, Any]) -> Iterator[tuple[str, bytes, str]]:
    for text in options["modules"]:
        path, _, arguments = text.partition(" ")
        yield path, _read(path)[0], arguments


def _execute(machine: Machine, console: Any, options: dict[str, Any], stack: ExitStack) -> Result:
    tracer = None
    if options["trace_path"]:
        from kvmpy.cli.report import Tracer, WholeFile

        tracer = Tracer(machine, stack.enter_context(WholeFile(options["trace_path"])))
    with console:
        try:
            result = machine.run(options["timeout"], options["max_exits"])
        finally:
            if tracer is not None:
                tracer.finish()
    if tracer is not None and result.crash is not None:
        result.crash.history = list(tracer.last[result.crash.vcpu])
    return result


def _write_report(
    machine: Machine, image: str, payload: Payload, result: Result, options: dict[str, Any]
) -> None:
    from json import dumps

    from kvmpy.cli.report import WholeFile, report

    given = {key.rstrip("_"): value for key, value in options.items() if value not in (None, False, (), "")}
    with WholeFile(options["report_path"]) as file:
        file.write(dumps(report(machine, image, payload, result, given), indent=2) + "\n")


def _status(machine: Machine, result: Result, options: dict[str, Any]) -> int:
    if result.crash is not None:
        from kvmpy.cli.crash_report import render

        sys.stderr.write(render(machine, result.crash))
        return CRASH
    if result.reason in ("timeout", "max-exits"):
        limit = f"{options['timeout']} s" if result.reason == "timeout" else f"{options['max_exits']} exits"
        print(f"kvmpy: the guest was stopped after {limit}", file=sys.stderr)
        return LIMIT
    if result.status is None:
        return 0
    if options["qemu_exit"] and result.reason == "exit":
        return result.status & 0xFF
    if result.status > GUEST_STATUS_LIMIT:
        print(f"kvmpy: the guest's status {result.status} is given as {GUEST_STATUS_LIMIT}", file=sys.stderr)
        return GUEST_STATUS_LIMIT
    return result.status
