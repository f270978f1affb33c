"""The same guest on machines that are alike but for their engine: in step, and to set the engines side by side."""

from __future__ import annotations

import time

from kvmpy._native import lib
from kvmpy.errors import EngineError, ImageError, KvmpyError
from kvmpy.lab.fingerprint import fingerprint
from kvmpy.lab.lockstep import Lockstep, NotComparable, Side, same_cpuid
from kvmpy.lab.variants import ENGINES, usable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import ExitStack
    from typing import Any

    from kvmpy.lab.lockstep import Difference
    from kvmpy.machine.machine import Machine

SCHEMA = 1
MEMORY = 8 << 20


class Guest:
    """What to run: ``image`` (a path or a bundled guest's name) in ``memory`` bytes, ``sent`` to its serial port."""

    def __init__(self, image: str, memory: int | str = MEMORY, sent: bytes = b"", **options: Any) -> None:
        self.image = image
        self.memory = memory
        self.sent = sent
        self.options = options
        self.irqchip, self.paravirt = self._needs()

    def _needs(self) -> tuple[str, bool]:
        """Interrupt controllers are in user space, so that all engines have the same and their accesses are seen."""
        import os

        from kvmpy.boot import read, recognise
        from kvmpy.boot.bundled import find

        if os.sep not in self.image and not os.path.isfile(self.image):
            needs = find(self.image).needs
            if needs["cpus"] > 1:
                raise NotComparable(
                    f"{self.image} wants {needs['cpus']} vCPUs, and no two runs of several are alike"
                )
            return "user" if needs["irqchip"] != "none" else "none", needs["paravirt"]
        flat = (self.options.get("format") or recognise(read(self.image))) == "flat"
        return "none" if flat else "user", False

    def machine(self, engine: str, stack: ExitStack) -> tuple[Machine, bytearray]:
        """A machine on which it is loaded, and where its output goes. Raises what keeps it from running there."""
        from kvmpy.machine.machine import Machine
        from kvmpy.machine.pc import Pc

        machine = stack.enter_context(Machine(self.memory, 1, engine, irqchip=self.irqchip))
        output = bytearray()
        pc = Pc(machine, output.extend)
        if self.paravirt:
            from kvmpy.machine.paravirt import Paravirt

            Paravirt(machine, output.extend)
        machine.load(self.image, **self.options)
        if self.sent:
            pc.serial.receive(self.sent)
        return machine, output


def sides(guest: Guest, engines: Iterable[str], stack: ExitStack) -> tuple[list[Side], dict[str, str]]:
    """A side for each engine that can run the guest, and why the others can't.

    Raises NotComparable where fewer than two can run it; what all engines say alike (ImageError, UsageError) as it is.
    """
    working, left_out = usable(engines)
    machines: list[tuple[str, Machine, bytearray]] = []
    errors: list[KvmpyError] = []
    for engine in working:
        try:
            machines.append((engine, *guest.machine(engine, stack)))
        except KvmpyError as error:
            left_out[engine] = str(error)
            errors.append(error)
    if not machines and len({str(error) for error in errors}) == 1:
        raise errors[0]  # it isn't the engines
    if len(machines) < 2:
        only = f"only {machines[0][0]} can run it here" if machines else "no engine can run it here"
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise NotComparable(f"not comparable: {only}; {why}" if why else f"not comparable: {only}")
    same_cpuid([machine for _, machine, _ in machines])
    for _, machine, _ in machines:
        for range_ in machine.places():
            if range_.place == "kernel":
                range_.place = "python"  # an exit that only one of them has
    return [Side(*parts) for parts in machines], left_out


class Comparison:
    """What came of it: the guest's ``image``; ``difference`` or None; ``unfinished``, why that isn't all; ``events``;
    ``engines`` by name, with what a free run on each was like; ``left_out``."""

    def __init__(
        self, image: str, lockstep: Lockstep, difference: Difference | None, left_out: dict[str, str]
    ) -> None:
        self.image = image
        self.difference = difference
        self.unfinished = lockstep.unfinished
        self.events = lockstep.events
        self.states = lockstep.states
        self.output = bytes(lockstep.sides[0].output)
        self.left_out = left_out
        self.timely = False
        """It takes interrupts, and time wasn't tolerated."""
        self.engines: dict[str, dict[str, Any]] = {side.name: {} for side in lockstep.sides}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": SCHEMA,
            "host": fingerprint(),
            "image": self.image,
            "agree": self.difference is None,
            "difference": self.difference.as_dict() if self.difference else None,
            "unfinished": self.unfinished,
            "events": self.events,
            "states_compared": self.states,
            "engines": self.engines,
            "left_out": self.left_out,
        }


def compare(
    guest: Guest,
    engines: Iterable[str] = ENGINES,
    *,
    every: int = 1,
    tolerate: Sequence[str] = (),
    timeout: float = 60.0,
    max_events: int = 1_000_000,
    progress: Callable[[int], object] = lambda events: None,
) -> Comparison:
    """Runs a guest on all engines in step, and once more on each by itself to see what it costs there.

    Raises NotComparable, ImageError, UsageError.
    """
    from contextlib import ExitStack

    engines = list(engines)
    with ExitStack() as stack:
        both, left_out = sides(guest, engines, stack)
        lockstep = Lockstep(both, every, tolerate, timeout, max_events, progress)
        difference = lockstep.run()
        found = Comparison(guest.image, lockstep, difference, left_out)
        found.timely = guest.irqchip != "none" and not tolerate
    if not found.unfinished:
        for engine in found.engines:
            found.engines[engine] = measure(guest, engine, timeout)
    return found


def measure(guest: Guest, engine: str, timeout: float) -> dict[str, Any]:
    """What a run by itself costs: seconds, cycles of the TSC, exits by reason, the start-up (seconds from nothing to a
    machine that can run), bytes."""
    from contextlib import ExitStack

    began = time.monotonic()
    with ExitStack() as stack:
        try:
            machine, _ = guest.machine(engine, stack)
        except (EngineError, ImageError) as error:
            return {"problem": str(error)}
        start_up = time.monotonic() - began
        began_at = lib.kvmpy_measure_tsc()
        result = machine.run(timeout=timeout)
        cycles = lib.kvmpy_measure_tsc() - began_at
        resident = sum(_resident(machine, slot.gpa, slot.size) for slot in machine.memory.slots)
    exits = sum(result.exits.values())
    return {
        "reason": result.reason,
        "status": result.status,
        "start_up": start_up,
        "wall": result.wall,
        "cpu": result.cpu,
        "cycles": int(cycles),
        "exits": exits,
        "exits_by_reason": dict(result.exits),
        "rescued": dict(result.rescued),
        "per_exit": result.wall / exits if exits else None,
        "guest_memory": resident,
    }


def _resident(machine: Machine, gpa: int, size: int) -> int:
    """Bytes of a slot's memory that there really are (mincore)."""
    import ctypes

    pages = (size + 4095) // 4096
    vector = (ctypes.c_ubyte * pages)()
    if ctypes.CDLL(None).mincore(
        ctypes.c_void_p(machine.memory.address(gpa, size)), ctypes.c_size_t(size), vector
    ):
        return 0
    return 4096 * sum(one & 1 for one in vector)
