"""How a run ended."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.crash import Crash

REASONS = {
    "halt": "the guest halted",
    "exit": "the guest gave an exit status",
    "shutdown": "the guest powered the machine off",
    "reset": "the guest asked for a reset",
    "crash": "the guest can't go on",
    "unowned": "the guest used a port or address that nobody owns (strict)",
    "debug": "a breakpoint or a single step",
    "timeout": "the time was up",
    "max-exits": "the number of exits was up",
    "until": "an exit that the caller waited for",
    "ring-full": "a lossless ring is full: drain it and run again",
    "stopped": "somebody called stop()",
}


class Ending:
    """Why the machine stopped, decided once: ``reason`` is a key of REASONS, ``status`` the guest's own (or None)."""

    __slots__ = ("crash", "detail", "reason", "status", "vcpu")

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        vcpu: int | None = None,
        detail: str = "",
        crash: Crash | None = None,
    ) -> None:
        self.reason = reason
        self.status = status
        self.vcpu = vcpu
        self.detail = detail
        self.crash = crash


class Result:
    """What ``Machine.run()`` returns.

    ``reason``   a key of REASONS; ``detail`` says more where there is more
    ``status``   the status the guest gave (0 to 2**32-1), 0 after a plain halt, None if it gave none
    ``vcpu``     index of the vCPU that ended the run, None if it was the host
    ``crash``    a :class:`~kvmpy.machine.crash.Crash` when ``reason`` is "crash" or "unowned"
    ``exits``    number of exits of this run by KVM's name of the reason, C-handled ones included
    ``ranges``   (space, name, first, last, place, accesses in this run) of each range that was accessed
    ``rescued``  instructions that the translate engine carried out for KVM in this run, by name: see docs/rescue.md
    ``unowned``  accesses in this run to ports and addresses that nobody owns
    ``wall``, ``cpu``  seconds; ``cpu`` is user and system time of the threads that ran vCPUs
    ``peak_memory``  of the process so far, in bytes
    """

    __slots__ = (
        "cpu", "crash", "detail", "exits", "peak_memory", "ranges", "reason", "rescued", "status", "unowned", "vcpu",
        "wall",
    )  # fmt: skip

    def __init__(
        self,
        ending: Ending,
        exits: dict[str, int],
        ranges: list[tuple[str, str, int, int, str, int]],
        unowned: int,
        wall: float,
        cpu: float,
        peak_memory: int,
        rescued: dict[str, int],
    ) -> None:
        self.reason = ending.reason
        self.status = ending.status
        self.vcpu = ending.vcpu
        self.detail = ending.detail
        self.crash = ending.crash
        self.exits = exits
        self.ranges = ranges
        self.unowned = unowned
        self.wall = wall
        self.cpu = cpu
        self.peak_memory = peak_memory
        self.rescued = rescued

    def __repr__(self) -> str:
        status = "" if self.status is None else f" status={self.status}"
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"<Result {self.reason}{status}{detail}, {sum(self.exits.values())} exits in {self.wall:.3f} s>"
        )
