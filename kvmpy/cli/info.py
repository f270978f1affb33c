"""``kvmpy info``: what this host can do, as a table for people or JSON for programs."""

from __future__ import annotations

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.host import Fact, HostFacts

SCHEMA = 1
SIZES = ("memory", "memory_available")
NUMBERS = ("cpus", "nr_memslots", "max_vcpus", "irq_routing", "hugetlb_2m", "hugetlb_1g")
"""Other values above 1 are masks of what there is."""


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="JSON for programs instead of tables.")
@click.option(
    "--lab", is_flag=True, help="Whether it is set up for quiet measurements, and what would change that."
)
def command(as_json: bool, lab: bool) -> None:
    """Say what this host can do, and what would help it do more.

    Never fails: where there is no KVM it says so, and exits with status 0.
    """
    if lab:
        from kvmpy.cli.info_lab import show as show_lab

        show_lab(as_json)
        return
    from kvmpy.machine.host import facts

    host = facts()
    if as_json:
        import json

        import kvmpy

        click.echo(json.dumps({"schema": SCHEMA, "kvmpy": kvmpy.__version__, **host.as_dict()}, indent=2))
    else:
        click.echo(render(host), nl=False)


def render(host: HostFacts) -> str:
    """Tables for stdout, a group each."""
    import sys

    from rich.table import Table
    from rich.text import Text

    from kvmpy.cli.drawing import draw
    from kvmpy.machine.host import GROUPS

    shown: list[Text | Table] = [Text(headline(host))]
    for group, found in host.groups().items():
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(no_wrap=True, min_width=26)
        table.add_column(no_wrap=True, max_width=40, style="bold")
        table.add_column(overflow="fold", style="dim")
        for fact in worth_showing(found):
            note = fact.about if group == "capabilities" else fact.source
            table.add_row(Text("  " + fact.name), Text(value_text(fact)), Text(note))
        shown += [Text(), Text(GROUPS[group], style="underline"), table]
    return draw(sys.stdout, *shown)


def worth_showing(found: list[Fact]) -> list[Fact]:
    """Without what merely follows from the technique: AMD-V's features on VT-x, and the other way round."""
    technique = next((fact for fact in found if fact.name == "technique"), None)
    if technique is None:
        return found
    return [fact for fact in found if fact is technique or fact.source != technique.source]


def headline(host: HostFacts) -> str:
    """The answer most people want, in a line or two."""
    import os

    where = "inside a virtual machine" if _value(host, "nested") else "on bare metal"
    works = [fact.name for fact in host.groups()["engines"] if fact]
    lines = [
        f"Linux {os.uname().release} {where}: " + (f"guests run with {' and '.join(works)}." if works else "")
    ]
    if not works:
        lines[0] += "no engine works, see below."
    if "kvm" in works:
        lines.append(f"KVM uses {_how(host)}.")
    return "\n".join(lines)


def _how(host: HostFacts) -> str:
    """The technique with what matters of it: "VT-x with EPT and unrestricted guest"."""
    technique = str(_value(host, "technique"))
    paging = {"VT-x": "ept", "AMD-V": "npt"}.get(technique)
    if paging is None:
        return {"PVM": "PVM (page-table based, no hardware virtualization)"}.get(technique, technique)
    said = (
        f"{technique} with {paging.upper()}" if _value(host, paging) else f"{technique}, shadow page tables"
    )
    if technique == "VT-x":
        said += " and unrestricted guest" if _value(host, "unrestricted_guest") else ", no unrestricted guest"
    return said


def _value(host: HostFacts, name: str) -> object:
    return getattr(host, name, None)


def value_text(fact: Fact) -> str:
    """A fact's value for people."""
    if fact.value is None:
        return "unknown"
    if isinstance(fact.value, bool):
        return "yes" if fact.value else "no"
    if isinstance(fact.value, int) and fact.name not in (*SIZES, *NUMBERS):
        return "yes"
    if fact.name in SIZES and isinstance(fact.value, int):
        from kvmpy.machine.sizes import format_size

        return format_size(fact.value)
    return str(fact.value)
