"""``kvmpy run``: the options; what they do is in kvmpy/cli/session.py."""

from __future__ import annotations

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    IntType = click.ParamType[int]
else:
    IntType = click.ParamType


class Address(IntType):
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
    type=_choice("auto", "none", "kernel", "split", "user"),
    default="auto",
    show_default=True,
    help="Interrupt controllers and timer: in the kernel, or in Python. auto: if the guest or format needs them, in"
    " the kernel where the engine can.",
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
@click.option(
    "--rescue/--no-rescue",
    default=None,
    help="Let binary translation carry out instructions that KVM can't emulate.  [default: where both engines work]",
)
@click.option("--qemu-exit", is_flag=True, help="Exit as QEMU's isa-debug-exit: 2n+1 for a guest's n.")
@click.option(
    "--persona",
    type=_choice("kvm", "kvmpy", "none", "hyperv", "xen"),
    help="Which hypervisor CPUID shows.  [default: KVM, or the engine's own]",
)
@click.option("--paravirt", is_flag=True, help="Serve kvmpy's hypercalls, as bundled guests use them.")
@click.option("--stats", is_flag=True, help="Print a table of exits on stderr.")
@click.option("--report", "report_path", metavar="FILE", help="Write a report of the run as JSON.")
@click.option("--trace", "trace_path", metavar="FILE", help="Write every exit as a line of JSON.")
@click.option("--quiet", is_flag=True, help="No remarks on stderr; errors are still there.")
def command(image: str, **options: Any) -> int:
    """Run IMAGE, a file or a bundled guest's name (see `kvmpy images`).

    Exits with the guest's status (0-119), 0 after a plain halt, 120 after a crash, 124 when a limit was reached, 2 for
    a bad image, 3 without a usable engine, 130 on Ctrl-C.
    """
    from kvmpy.cli.session import Session

    return Session(image, options).run()
