"""What it costs to hand an exit to whoever handles it: ``kvmpy bench dispatch``.

Each case is measured in turn with its floor, many times over, in one process: the machine's speed drifts, the ratio of
neighbours doesn't. Floors: for the stub engine's C places a bare loop over the stub; for its Python place an empty cffi
call; for a real engine a bare C loop around the same entry. Times are CPU time of the threads: no exit waits for
anything, so that is what it takes, whatever else runs on the machine.
"""

from __future__ import annotations

import threading
from time import thread_time_ns

from kvmpy._native import lib
from kvmpy.devices.registers import Register, RegisterFile
from kvmpy.errors import EngineError
from kvmpy.machine.engine_stub import StubEngine, memory_read, memory_write, port_read, port_write
from kvmpy.machine.machine import Machine
from kvmpy.machine.rules import Drop, Fifo, Latch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

SCHEMA = 2
PORT, GPA = 0x80, 0x20000
RULES = ("constant", "latch", "registers", "fifo", "native", "ring")

# Real mode: one access, for ever. DS is 0x2000, so offset 0 is at 0x20000, where the machine has no RAM.
GUESTS = {
    ("pio", "write"): bytes.fromhex("e680 ebfc"),  # 1: out %al, $0x80; jmp 1b
    ("pio", "read"): bytes.fromhex("e480 ebfc"),  # 1: in $0x80, %al; jmp 1b
    ("mmio", "write"): bytes.fromhex("a20000 ebfb"),  # 1: mov %al, 0; jmp 1b
    ("mmio", "read"): bytes.fromhex("a00000 ebfb"),  # 1: mov 0, %al; jmp 1b
}


class Case:
    """One line of the table: ``sample()`` and ``floor()`` give ns per exit of one round."""

    def __init__(self, engine: str, place: str, access: str, vcpus: int = 1) -> None:
        self.engine = engine
        self.place = place
        self.access = access
        self.vcpus = vcpus
        self.samples: list[float] = []
        self.floors: list[float] = []
        self.sample: Callable[[], float]
        self.floor: Callable[[], float]
        self.machine: Machine

    def summary(self) -> dict[str, Any]:
        """Medians, and the ratio of neighbouring rounds with its spread (10th to 90th percentile)."""
        ratios = sorted(a / b for a, b in zip(self.samples, self.floors, strict=True))
        added = sorted(a - b for a, b in zip(self.samples, self.floors, strict=True))
        return {
            "engine": self.engine,
            "place": self.place,
            "access": self.access,
            "vcpus": self.vcpus,
            "ns": _at(sorted(self.samples), 0.5),
            "floor_ns": _at(sorted(self.floors), 0.5),
            "added_ns": _at(added, 0.5),
            "ratio": _at(ratios, 0.5),
            "ratio_p10": _at(ratios, 0.1),
            "ratio_p90": _at(ratios, 0.9),
            "rounds": len(ratios),
        }


def _at(ordered: list[float], share: float) -> float:
    return ordered[round((len(ordered) - 1) * share)]


class _Device:
    name = "device"

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, value: int, size: int) -> None:
        pass


class _Registers(RegisterFile):
    name = "registers"
    only = Register(0, 8)


def attach(machine: Machine, place: str, access: str) -> None:
    """Gives the address that is accessed an owner in that place."""
    space, first = (machine.ports, PORT) if access.startswith("pio") else (machine.mmio, GPA)
    if place == "native":
        space.native(first, 1, lib.kvmpy_handler_nothing_address())
    elif place == "ring":
        machine.log(1 << 16, "last", everything=False)
        space.attach(first, 1, _Device(), rule=Drop(0)).place = "ring"
    else:
        owners = {"constant": Drop(0), "latch": Latch(8), "registers": _Registers(), "fifo": Fifo(1 << 20)}
        space.attach(first, 1, owners.get(place) or _Device())


def timed_run(case: Case, exits: int) -> float:
    """ns per exit of a run of that many exits on each vCPU."""
    fifo = [r.owner for r in case.machine.places() if isinstance(r.owner, Fifo)]
    for owner in fifo:
        owner.take()
    result = case.machine.run(max_exits=exits)
    return result.cpu * 1e9 / sum(result.exits.values())


def timed_floor(case: Case, exits: int) -> float:
    """ns per exit of a bare C loop around the same entry, on all vCPUs at once."""
    times: list[int] = []

    def loop(native: Any) -> None:
        began = thread_time_ns()
        lib.kvmpy_floor(native, exits)
        times.append(thread_time_ns() - began)

    first, *others = [cpu.native for cpu in case.machine.cpus]
    threads = [threading.Thread(target=loop, args=(native,)) for native in others]
    for thread in threads:
        thread.start()
    loop(first)
    for thread in threads:
        thread.join()
    return sum(times) / len(times) / exits


def timed_call(case: Case, calls: int) -> float:
    """ns of an empty cffi call from a Python loop."""
    call, native = lib.kvmpy_take_kick, case.machine.cpus[0].native
    began = thread_time_ns()
    for _ in range(calls):
        call(native)
    return (thread_time_ns() - began) / calls


def stub_case(place: str, access: str, vcpus: int = 1, longer: int = 1) -> Case:
    """A case without a guest: nothing but the run loop is measured. ``longer``: so many times the exits a round."""
    exits = {
        "pio write": port_write(PORT, b"\0"),
        "pio read": port_read(PORT),
        "mmio write": memory_write(GPA, b"\0"),
        "mmio read": memory_read(GPA, 1),
        "pio string": port_write(PORT, bytes(1024), 1),
    }
    case = Case("stub", place, access, vcpus)
    case.machine = Machine("64K", vcpus, StubEngine([exits[access]], fixed=True))
    attach(case.machine, place, access)
    many = longer * (20_000 if place == "python" else 1_000 if access == "pio string" else 200_000)
    case.sample = lambda: timed_run(case, many)
    case.floor = (lambda: timed_call(case, many)) if place == "python" else (lambda: timed_floor(case, many))
    return case


def engine_case(engine: str, place: str, access: str, exits: int, vcpus: int = 1) -> Case:
    """A case with a guest that does nothing but that access. Raises EngineError where it can't run here."""
    case = Case(engine, place, access, vcpus)
    case.machine = Machine("64K", vcpus, engine, rescue=False)
    kind, _, direction = access.partition(" ")
    payload = case.machine.load(GUESTS[kind, direction], mode="real", format="flat", load_address=0x1000)
    payload.entry.segments["ds"] = payload.entry.segments["ds"].replace(selector=GPA >> 4, base=GPA)
    for cpu in case.machine.cpus:
        cpu.load(payload.entry)
    attach(case.machine, place, access)
    case.sample = lambda: timed_run(case, exits)
    case.floor = lambda: timed_floor(case, exits)
    return case


def cases(engines: Iterable[str], quick: bool) -> tuple[list[Case], list[str]]:
    """All that can be measured here, and a line for each engine that can't run."""
    found = [stub_case(place, access) for access in ("pio write", "pio read", "mmio write", "mmio read")
             for place in (*RULES, "python")]  # fmt: skip
    found += [stub_case(place, "pio string") for place in ("constant", "fifo")]
    missing = []
    for engine in engines:
        exits = (500 if quick else 5000) if engine == "kvm" else 20_000
        try:
            found += [engine_case(engine, place, access, exits) for access in ("pio write", "pio read", "mmio write",
                      "mmio read") for place in ("constant", "ring", "python")]  # fmt: skip
        except EngineError as error:
            missing.append(f"{engine}: {error}")
    return found, missing


def measure(found: list[Case], rounds: int, progress: Callable[[float], None] = lambda share: None) -> None:
    """Round by round through all cases, each beside its floor; the first round warms up and doesn't count."""
    for round_ in range(rounds + 1):
        for number, case in enumerate(found):
            pair = [case.floor(), case.sample()] if round_ % 2 else [case.sample(), case.floor()][::-1]
            if round_:
                case.floors.append(pair[0])
                case.samples.append(pair[1])
            progress((round_ * len(found) + number) / ((rounds + 1) * len(found)))


def scaling(make: Callable[[int], Case], rounds: int) -> dict[str, float]:
    """Exits per second of CPU time of two vCPUs over one; and that over what two and one bare C loops do in the same
    rounds, which is what the machine itself makes of two of anything. ``make`` makes the case of so many vCPUs."""
    one, two = make(1), make(2)
    measure([one, two], rounds)
    for case in (one, two):
        case.machine.close()
    pairs = list(zip(one.samples, two.samples, one.floors, two.floors, strict=True))
    found = {
        "ratio": sorted(2 * single / double for single, double, _, _ in pairs),
        "floor_ratio": sorted(2 * single / double for _, _, single, double in pairs),
        "of_floor": sorted(a / b / (c / d) for a, b, c, d in pairs),
    }
    return {
        f"{name}{suffix}": _at(values, share)
        for name, values in found.items()
        for suffix, share in (("", 0.5), ("_p10", 0.1), ("_p90", 0.9))
    }


def two_vcpus(engines: Iterable[str], rounds: int, exits: int) -> dict[str, dict[str, float]]:
    """:func:`scaling` with a C rule, of the stub engine and of KVM. Rounds long enough for threads to meet."""
    found = {"stub": scaling(lambda vcpus: stub_case("constant", "pio write", vcpus, longer=20), rounds)}
    if "kvm" in engines:
        try:
            found["kvm"] = scaling(
                lambda vcpus: engine_case("kvm", "constant", "pio write", exits, vcpus), rounds
            )
        except EngineError:
            pass  # it is among what is missing already
    return found


def drain_rate(records: int = 1 << 20) -> float:
    """Records per second from a full ring into a numpy array."""
    import numpy

    from kvmpy.machine.ring import DTYPE

    best = 0.0
    for _ in range(5):
        with Machine("64K", engine=StubEngine([port_write(PORT, b"\0")], fixed=True)) as machine:
            machine.log(records, "counted")
            machine.run(max_exits=records)
            began = thread_time_ns()
            array = numpy.frombuffer(machine.rings[0].drain(), dtype=DTYPE)
            best = max(best, len(array) * 1e9 / (thread_time_ns() - began))
    return best


def run(engines: Iterable[str] = ("kvm", "translate"), quick: bool = False,
        progress: Callable[[float], None] = lambda share: None) -> dict[str, Any]:  # fmt: skip
    """The whole benchmark as JSON-able values."""
    engines = tuple(engines)
    rounds = 5 if quick else 21
    found, missing = cases(engines, quick)
    try:
        measure(found, rounds, progress)
    finally:
        for case in found:
            case.machine.close()
    try:
        drained: float | None = drain_rate()
    except ImportError:
        drained = None
        missing.append("draining into numpy: numpy isn't installed")
    return {
        "schema": SCHEMA,
        "cases": [case.summary() for case in found],
        "two_vcpus": two_vcpus(engines, rounds, 500 if quick else 5000),
        "ring_records_per_second": drained,
        "missing": missing,
    }
