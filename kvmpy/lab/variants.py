"""The same work done in several ways: as an unmodified guest does it, and as one that knows it is a guest.

Bundled guests of one group are run in turns on every engine that works here; each must print the same and end well.
What it took is compared with the group's first guest, the unmodified one, on the same engine.
"""

from __future__ import annotations

from kvmpy.errors import EngineError, KvmpyError, UsageError
from kvmpy.lab.fingerprint import fingerprint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from kvmpy.boot.bundled import Bundled
    from kvmpy.machine.result import Result

SCHEMA = 1
MEMORY = 4 << 20
PATIENCE = 60.0  # seconds for one run
ENGINES = ("kvm", "translate")


def groups() -> dict[str, list[Bundled]]:
    """The bundled guests that come in variants, by group; the unmodified one first."""
    from kvmpy.boot.bundled import names

    found: dict[str, list[Bundled]] = {}
    for guest in names():
        if guest.group:
            found.setdefault(guest.group, []).append(guest)
    return found


def usable(engines: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The engines that work here, and the others with the reason."""
    from kvmpy.machine.engine import open_engine

    working, left_out = [], {}
    for name in engines:
        try:
            open_engine(name)
        except EngineError as error:
            left_out[name] = str(error)
        else:
            working.append(name)
    return working, left_out


def run(
    wanted: Iterable[str] = (),
    engines: Iterable[str] = ENGINES,
    rounds: int = 5,
    progress: Callable[[float], object] = lambda share: None,
) -> dict[str, Any]:
    """Runs the groups of these names (all by default) ``rounds`` times on every engine; a report for JSON.

    Raises UsageError for a name that no group has, or no rounds; EngineError when no engine works.
    """
    known = groups()
    chosen = list(wanted) or list(known)
    for name in chosen:
        if name not in known:
            raise UsageError(f"no guests come in variants called {name!r}: there are {', '.join(known)}")
    if rounds < 1:
        raise UsageError(f"{rounds} rounds: at least 1")
    working, left_out = usable(engines)
    if not working:
        raise EngineError("no engine works here: " + "; ".join(f"{n}: {why}" for n, why in left_out.items()))
    cases = [Case(guest, engine) for name in chosen for engine in working for guest in known[name]]
    for number in range(rounds):  # in turns, so that what else the host does hits all alike
        for at, case in enumerate(cases):
            case.run()
            progress((number * len(cases) + at + 1) / (rounds * len(cases)))
    return {
        "schema": SCHEMA,
        "host": fingerprint(),
        "rounds": rounds,
        "left_out": left_out,
        "cases": _report(cases),
    }


class Case:
    """One guest on one engine, and what its runs were like."""

    def __init__(self, guest: Bundled, engine: str) -> None:
        self.guest = guest
        self.engine = engine
        self.results: list[Result] = []
        self.output = b""
        self.problem = ""

    def run(self) -> None:
        """Once more, unless it didn't work before."""
        if self.problem:
            return
        try:
            output, result = execute(self.guest, self.engine)
        except KvmpyError as error:
            self.problem = str(error)
            return
        if result.status != 0:
            self.problem = f"it ended with {result.reason}, status {result.status}"
        self.output = output
        self.results.append(result)

    def measured(self) -> dict[str, Any]:
        """Medians over the rounds, and the best; times in seconds, exits to user space by reason and together."""
        exits = {
            reason: _median([result.exits.get(reason, 0) for result in self.results])
            for reason in sorted({reason for result in self.results for reason in result.exits})
        }
        total = _median([sum(result.exits.values()) for result in self.results])
        best = min(result.wall for result in self.results)
        wall, cpu = _median([r.wall for r in self.results]), _median([r.cpu for r in self.results])
        return {
            "exits": total,
            "exits_by_reason": exits,
            "wall": wall,
            "wall_best": best,
            "cpu": cpu,
            "cpu_best": min(result.cpu for result in self.results),
            "per_exit": best / total if total else None,
        }


def execute(guest: Bundled, engine: str) -> tuple[bytes, Result]:
    """Runs a bundled guest once, on the machine it needs."""
    from kvmpy.machine.engine import open_engine
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.pc import Pc

    needs, output = guest.needs, bytearray()
    irqchip = needs["irqchip"]
    if irqchip == "kernel" and not open_engine(engine).in_kernel:
        irqchip = "user"
    with Machine(max(MEMORY, needs["memory"]), needs["cpus"], engine, irqchip=irqchip) as machine:
        Pc(machine, output.extend)
        if needs["paravirt"]:
            from kvmpy.machine.paravirt import Paravirt

            Paravirt(machine, output.extend)
        machine.load(guest.name)
        result = machine.run(timeout=PATIENCE)
    return bytes(output), result


def _report(cases: list[Case]) -> list[dict[str, Any]]:
    """Each case as a table's row, with its ratios to the unmodified guest of its group on its engine."""
    rows: list[dict[str, Any]] = []
    first: dict[tuple[str, str], Case] = {}
    for case in cases:
        group = case.guest.group
        row: dict[str, Any] = {
            "group": group,
            "variant": case.guest.name.removeprefix(f"{group}-"),
            "guest": case.guest.name,
            "engine": case.engine,
        }
        base = first.setdefault((group, case.engine), case)
        if not case.problem and base.output != case.output:
            case.problem = f"its output isn't that of {base.guest.name}"
        if case.problem:
            row["problem"] = case.problem
        else:
            row.update(case.measured())
            if not base.problem:
                row.update(_ratios(base.measured(), row))
        rows.append(row)
    return rows


def _ratios(base: dict[str, Any], row: dict[str, Any]) -> dict[str, float | None]:
    """How many times fewer exits and less time than the unmodified guest; above 1 is better than it."""
    return {
        "fewer_exits": base["exits"] / row["exits"] if row["exits"] else None,
        "faster": base["wall_best"] / row["wall_best"] if row["wall_best"] else None,
    }


def _median(values: list[Any]) -> Any:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
