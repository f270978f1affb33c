"""What an instruction costs that KVM leaves to the translate engine: ``kvmpy bench rescue``.

Loops in ring 0 of long mode, in turn with one that makes a plain exit (OUT to a port that a rule in C drops) and an
empty one, many times over in one process. CPU time counts, less that of the empty loop. The ratio to the plain exit of
the same round is the result, for it doesn't change with the machine's load as times do.
"""

from __future__ import annotations

from statistics import median

from kvmpy.errors import EngineError, KvmpyError
from kvmpy.machine.machine import Machine, check_rescue
from kvmpy.machine.rules import Drop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import Any

SCHEMA = 1
PORT = 0x80
TURNS, ROUNDS = 200, 25
ADDPS = "0f58c1"
CASES: tuple[tuple[str, str, int], ...] = (
    ("popcnt", "f3480fb8c3", 1),
    ("cmpxchg16b", "480fc70c2500000200", 1),
    ("addps", ADDPS, 1),
    ("paddd from memory", "660ffe042500000200", 1),
    ("fld1, fstp", "d9e8d91c2500000200", 2),
    ("4 addps in a row", 4 * ADDPS, 4),
    ("16 addps in a row", 16 * ADDPS, 16),
)
"""(Name, machine code, instructions in it); memory is at 0x20000."""
EMPTY, EXIT = "90", "e680"


class NotNeeded(KvmpyError):
    """There is nothing to measure: this host's KVM executes the instructions itself."""


def loop(body: bytes, turns: int) -> bytes:
    """MOV ECX, turns; body; DEC ECX; JNZ back to it; HLT."""
    back = -(len(body) + 8)
    return (
        b"\xb9"
        + turns.to_bytes(4, "little")
        + body
        + b"\xff\xc9\x0f\x85"
        + back.to_bytes(4, "little", signed=True)
        + b"\xf4"
    )


class Loop:
    """A machine that runs one loop as often as wanted."""

    def __init__(self, code: str, stack: ExitStack) -> None:
        self.machine = stack.enter_context(Machine("2M", engine="kvm", rescue=True))
        self.machine.ports.attach(PORT, 1, Drop())
        self.code = loop(bytes.fromhex(code), TURNS)
        self.samples: list[float] = []
        self.rescued = sum(self.run().rescued.values())
        self.samples.clear()

    def run(self) -> Any:
        """Once, to its end; nanoseconds of CPU time for a turn are added to the samples."""
        self.machine.load(self.code, mode="long", format="flat", load_address=0x10000)
        result = self.machine.run(timeout=60)
        self.samples.append(result.cpu / TURNS * 1e9)
        return result


def run(quick: bool = False, progress: Callable[[float], object] = lambda share: None) -> dict[str, Any]:
    """The report: for each case nanoseconds an instruction, and the ratio to a plain exit with its spread (10th to 90th
    percentile). EngineError without both engines, NotNeeded where KVM gives up on none of them."""
    from contextlib import ExitStack

    from kvmpy.machine.engine import open_engine

    try:
        check_rescue(open_engine("kvm"))
    except EngineError as error:
        raise EngineError(f"rescue can't be measured: {error}") from None
    rounds = ROUNDS // 5 if quick else ROUNDS
    with ExitStack() as stack:
        empty, plain = Loop(EMPTY, stack), Loop(EXIT, stack)
        loops = {name: Loop(code, stack) for name, code, _ in CASES}
        if not any(each.rescued for each in loops.values()):
            raise NotNeeded("this host's KVM executes all these instructions: there is nothing to rescue")
        for number in range(rounds):
            for each in (empty, plain, *loops.values()):
                each.run()
            progress((number + 1) / rounds)
    exit_ns = [cost - base for cost, base in zip(plain.samples, empty.samples, strict=True)]
    cases = [_case(name, count, loops[name], empty, exit_ns) for name, _, count in CASES]
    return {"schema": SCHEMA, "exit_ns": median(exit_ns), "rounds": rounds, "cases": cases}


def _case(name: str, count: int, of: Loop, empty: Loop, exit_ns: list[float]) -> dict[str, Any]:
    costs = [(cost - base) / count for cost, base in zip(of.samples, empty.samples, strict=True)]
    ratios = sorted(cost / plain for cost, plain in zip(costs, exit_ns, strict=True))
    return {
        "instructions": name,
        "rescued": of.rescued // TURNS,
        "ns": median(costs),
        "ratio": median(ratios),
        "ratio_p10": ratios[len(ratios) // 10],
        "ratio_p90": ratios[-1 - len(ratios) // 10],
    }
