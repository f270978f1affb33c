"""What a run leaves behind for people and programs: files that are whole or not there, JSON reports, traces, tables."""

from __future__ import annotations

import os

from kvmpy.cli.messages import write
from kvmpy.errors import UsageError
from kvmpy.machine.exits import name_of
from kvmpy.machine.ring import NOT_AN_ACCESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from kvmpy.boot.payload import Payload
    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.crash import Crash
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.result import Result
    from kvmpy.machine.ring import Record

SCHEMA = 1
SPACES = ("pio", "mmio", "msr", "hypercall")
OWNERS = {"port": "IO", "mmio": "MMIO", "hypercall": "HYPERCALL"}
"""The exit reason that accesses to a space come with."""


class WholeFile:
    """A text file that appears under its name when all of it is written, and not at all if anything fails.

    A path that isn't a plain file (a pipe, /dev/stderr) is written as it is. ``option`` is what asked for it.
    UsageError if it can't be opened; OSError with the path as its ``filename`` if it can't be written.
    """

    def __init__(self, path: str, option: str) -> None:
        self.path = path
        self._option = option
        self._direct = os.path.exists(path) and not os.path.isfile(path)
        self._target = path if self._direct else os.path.realpath(path)
        self._part = path if self._direct else f"{self._target}.{os.getpid()}.part"

    def __enter__(self) -> Self:
        try:
            if not self.path:
                raise UsageError(f"{self._option}: the file's name is empty")
            self._file = open(self._part, "w", encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{self._option} {self.path}: it can't be written: {reason}") from None
        return self

    def write(self, text: str) -> None:
        """Adds text."""
        try:
            self._file.write(text)
        except OSError as error:
            error.filename = self.path
            raise

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self._file.close()
            if kind is None and not self._direct:
                os.replace(self._part, self._target)
        except OSError as error:
            self._discard()
            if kind is not None:
                return  # the first failure is the one to tell
            error.filename = self.path
            raise
        if kind is not None:
            self._discard()

    def _discard(self) -> None:
        if not self._direct and os.path.exists(self._part):
            os.unlink(self._part)


def record_fields(machine: Machine, record: Record) -> dict[str, Any]:
    """A logged exit as JSON-able values."""
    fields: dict[str, Any] = {"vcpu": record.vcpu, "tsc": record.tsc}
    if record.space == NOT_AN_ACCESS:
        return {**fields, "exit": name_of(record.address)}
    owner = machine.bus.by_id.get(record.range)
    fields |= {
        "exit": SPACES[record.space],
        "direction": "write" if record.is_write else "read",
        "address": record.address,
        "size": record.size,
        "value": record.value,
        "range": owner.name if owner else None,
    }
    return fields


def describe_record(fields: dict[str, Any]) -> str:
    """The same in a line for people."""
    if "address" not in fields:
        return f"vCPU {fields['vcpu']}: {fields['exit']}"
    arrow = "<-" if fields["direction"] == "write" else "->"
    return (
        f"vCPU {fields['vcpu']}: {fields['exit']} {fields['address']:#x} {arrow}"
        f" {fields['value']:#0{2 + 2 * fields['size']}x} ({fields['range'] or 'nobody'})"
    )


class Tracer:
    """``--trace``: every exit as a line of JSON, in the order of each vCPU."""

    CAPACITY = 4096
    LAST = 16

    def __init__(self, machine: Machine, file: WholeFile) -> None:
        from collections import deque
        from json import dumps

        self._machine = machine
        self._file = file
        self._dumps = dumps
        self.last: dict[int, Any] = {cpu.index: deque(maxlen=self.LAST) for cpu in machine.cpus}
        machine.log(self.CAPACITY, "lossless", sink=self._full)

    def _full(self, cpu: Cpu) -> None:
        with self._machine.guard:
            self.drain(cpu)

    def drain(self, cpu: Cpu) -> None:
        """Writes down what the vCPU's ring holds."""
        for record in self._machine.rings[cpu.index].records():
            fields = record_fields(self._machine, record)
            self.last[cpu.index].append(record)
            self._file.write(self._dumps(fields) + "\n")

    def finish(self) -> None:
        """What is left in the rings."""
        for cpu in self._machine.cpus:
            self.drain(cpu)


def crash_fields(machine: Machine, crash: Crash) -> dict[str, Any]:
    """A crash as JSON-able values."""
    return {
        "vcpu": crash.vcpu,
        "what": crash.what,
        "remark": crash.remark,
        "registers": crash.registers,
        "system": crash.system,
        "segments": {
            name: {"selector": selector, "base": base, "limit": limit}
            for name, (selector, base, limit) in crash.segments.items()
        },
        "code_at": crash.code_at,
        "code": crash.code.hex(),
        "last_exits": [record_fields(machine, record) for record in crash.history],
    }


def report(
    machine: Machine, image: str, payload: Payload, result: Result, options: dict[str, Any]
) -> dict[str, Any]:
    """``--report``: everything about a run; ``schema`` changes when a field changes its meaning or goes."""
    import kvmpy
    from kvmpy.machine.host import summary

    return {
        "schema": SCHEMA,
        "kvmpy": kvmpy.__version__,
        "image": image,
        "format": payload.format,
        "mode": payload.entry.mode,
        "engine": machine.engine.name,
        "irqchip": machine.irqchip,
        "memory": machine.memory.size,
        "cpus": len(machine.cpus),
        "options": options,
        "host": summary(),
        "result": result.reason,
        "detail": result.detail,
        "guest_status": result.status,
        "exits": result.exits,
        "rescued": result.rescued,
        "unowned_accesses": result.unowned,
        "ranges": [
            {"space": space, "name": name, "first": first, "last": last, "place": place, "accesses": count}
            for space, name, first, last, place, count in result.ranges
        ],
        "wall_seconds": result.wall,
        "cpu_seconds": result.cpu,
        "peak_memory": result.peak_memory,
        "crash": crash_fields(machine, result.crash) if result.crash else None,
    }


def print_stats(result: Result) -> None:
    """``--stats``: a table on stderr."""
    import sys

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from kvmpy.cli.drawing import draw

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("exits", justify="right")
    for column in ("reason", "owner", "handled in"):
        table.add_column(column, no_wrap=True)
    for row in stats_rows(result):
        table.add_row(*(Text(cell) for cell in row))
    rate = sum(result.exits.values()) / result.wall if result.wall else 0.0
    total = (
        f"{result.reason}: {result.wall * 1e3:.1f} ms wall, {result.cpu * 1e3:.1f} ms CPU,"
        f" {rate:,.0f} exits/s, peak memory {result.peak_memory >> 20} MiB"
    )
    write(draw(sys.stderr, table) + total + "\n")


def stats_rows(result: Result) -> list[tuple[str, str, str, str]]:
    """(count, reason, owner, where it was handled): a row an exit reason, most frequent first, and below it one for
    each owner of its ports or addresses with the accesses it had. Last the rescued instructions, which are no exits."""
    rows = []
    for reason, count in sorted(result.exits.items(), key=lambda item: -item[1]):
        rows.append((str(count), reason, "", ""))
        for space, name, first, last, place, accesses in sorted(result.ranges, key=lambda row: -row[5]):
            if OWNERS.get(space) == reason or (space == "msr" and reason.startswith("X86_")):
                rows.append((str(accesses), "", f"{name} {first:#x}-{last:#x}", place))
    if result.unowned:
        rows.append((str(result.unowned), "", "nobody", "c"))
    if result.rescued:
        rows.append((str(sum(result.rescued.values())), "rescued", "", ""))
        for name, count in sorted(result.rescued.items(), key=lambda item: -item[1]):
            rows.append((str(count), "", name, "translate"))
    return rows
