"""The machine of a test: it writes down every exit, and its runs end when the test's time is up.

The plugin makes it, and so do runners that have no pytest: nothing here needs one.
"""

from __future__ import annotations

import math
import time

from kvmpy.errors import UsageError
from kvmpy.machine.engine import open_engine
from kvmpy.machine.machine import MAX_CPUS, Machine
from kvmpy.testing.problems import CannotRun, GuestAssertion, GuestHang
from kvmpy.testing.settings import MEMORY, check_code, check_mode, find_irqchip, no_irqchip, too_many
from kvmpy.testing.trace import ExitList, Recorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.result import Result
    from kvmpy.machine.ring import Record
    from kvmpy.testing.assertions import Failure
    from kvmpy.testing.build import Program
    from kvmpy.testing.serial import SerialLine

HISTORY = 16
USUAL_PLACE = {"real": 0x1000, "protected": 0x100000, "long": 0x100000}
"""Where code goes in a mode unless the test says otherwise."""
RUNNABLE = 0  # KVM_MP_STATE_RUNNABLE
CLOSE_PATIENCE = 2.0
"""Seconds that a machine which still runs when its test is over gets to stop."""


class Budget:
    """Seconds that all guests of a test may run for, together; math.inf: there is no limit."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.used = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.seconds < math.inf

    @property
    def left(self) -> float:
        """Never quite nothing: a run that starts late still ends by itself."""
        return max(self.seconds - self.used, 1e-3)


class MachineUnderTest(Machine):
    """A :class:`~kvmpy.machine.machine.Machine` for a test.

    ``run()`` without a timeout ends with GuestHang when the test's limit is reached, and with GuestAssertion when an
    ``ASSERT`` in the guest didn't hold. ``trace`` is every exit so far; made with ``trace=False`` it keeps none.
    """

    recorder: Recorder | None = None

    def __init__(self, budget: Budget, trace: bool = True, **settings: Any) -> None:
        # A test is to see what KVM does: nothing is done in its place unless the test wants that.
        super().__init__(**{**settings, "rescue": None if settings.get("rescue") else False})
        self.budget = budget
        self.programs: list[Program] = []
        self.failure: Failure | None = None
        self.result: Result | None = None
        self.settings = settings
        self.load_options: dict[str, Any] = {}
        self.serial: SerialLine | None = None
        if trace:
            self.recorder = Recorder(self)

    def start(self, code: bytes, mode: str = "long", at: int | None = None) -> None:
        """Loads machine code, by default at the mode's usual place, and puts every vCPU at its beginning: those too
        that without interrupt controllers, or without INIT and SIPI, would never run.

        Raises UsageError for an unknown mode or what is no code or address, ImageError for code that doesn't fit into
        memory.
        """
        from kvmpy.testing.build import Program

        check_mode(mode)
        at = USUAL_PLACE[mode] if at is None else at
        check_code(code, at)
        program = Program(bytes(code), at, at)
        entry = self.load(program.data, mode=mode, format="flat", load_address=program.at).entry
        self.programs.append(program)
        self.load_options = {"mode": mode}
        for cpu in self.cpus[1:]:
            cpu.load(entry)
            if self.irqchip != "none":
                cpu.vcpu.set_mp_state(RUNNABLE)

    def serial_text(self) -> str:
        """What a guest sent on the serial line that the plugin attached."""
        return self.serial.text if self.serial is not None else ""

    @property
    def trace(self) -> ExitList:
        """Every exit so far, of all vCPUs. UsageError if they aren't written down."""
        recorder = self.recording()
        recorder.collect()
        return recorder.exits()

    def recording(self) -> Recorder:
        """What writes down the exits. UsageError if the test wanted none."""
        if self.recorder is None:
            raise UsageError("this machine's exits aren't written down: it was made with trace=False")
        return self.recorder

    def history(self, cpu: Cpu) -> list[Record]:
        """The last exits of a vCPU, which stay in the trace."""
        recorder = self.recorder
        if recorder is None or not recorder.active:
            return super().history(cpu)
        recorder.drain(cpu)
        return recorder.last(cpu.index, HISTORY)

    def run(
        self,
        timeout: float | None = None,
        max_exits: int | None = None,
        until: Iterable[int | str] = (),
    ) -> Result:
        """See :meth:`Machine.run`; a ``timeout`` beyond what is left of the test's time counts as none."""
        __tracebackhide__ = True
        left = self.budget.left
        own = timeout is not None and not timeout > left  # also one that no run can have
        limit = timeout if own else left if self.budget.is_limited else None
        began = time.monotonic()
        try:
            self.result = super().run(limit, max_exits, until)
        finally:
            self.budget.used += time.monotonic() - began
            if self.recorder is not None:
                self.recorder.collect()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise GuestAssertion(str(failure))
        if self.result.reason == "timeout" and not own:
            raise GuestHang(self._hang(timeout))
        return self.result

    def _hang(self, timeout: float | None) -> str:
        cpu = self.cpus[0]
        rip = cpu.regs.rip
        near = next((name for program in self.programs if (name := program.symbol_near(rip))), "")
        wanted = f" (a run of {timeout} s was asked for)" if timeout is not None else ""
        return (
            f"the guest was still running after {self.budget.seconds:g} s, the test's limit{wanted}: vCPU 0 at rip"
            f" {rip:#x}{f' ({near})' if near else ''}; more time: @pytest.mark.kvmpy(timeout=SECONDS)"
        )


class Machines:
    """Makes the machines of one test, and closes them when it is over.

    ``made`` are all of them, oldest first.
    """

    def __init__(self, engine: str, budget: Budget) -> None:
        self.engine = engine
        self.budget = budget
        self.made: list[MachineUnderTest] = []

    def make(self, code: bytes | None = None, mode: str = "long", **wishes: Any) -> MachineUnderTest:
        """A new machine, with ``code`` ready to run on every vCPU if there is any (:meth:`MachineUnderTest.start`).

        ``wishes`` are arguments of :class:`Machine`, with ``irqchip="any"`` for wherever the engine has it, or
        ``trace=False``. Raises CannotRun for interrupt controllers or vCPUs that the engine doesn't have.
        """
        arguments: dict[str, Any] = {"memory": MEMORY, "engine": self.engine, **wishes}
        engine = open_engine(arguments["engine"])
        irqchip, cpus = arguments.get("irqchip", "none"), arguments.get("cpus", 1)
        arguments["irqchip"] = find_irqchip(irqchip, engine)
        if not arguments["irqchip"]:
            raise CannotRun(no_irqchip(irqchip, engine))
        if engine.max_vcpus < cpus <= MAX_CPUS:
            raise CannotRun(too_many(cpus, engine))
        machine = MachineUnderTest(self.budget, **arguments)
        self.made.append(machine)
        if code is not None:
            machine.start(code, mode)
        return machine

    def close(self) -> None:
        """Stops and closes all of them, the last one first."""
        for machine in reversed(self.made):
            shut(machine)


def shut(machine: Machine) -> None:
    """Closes a machine, which is stopped first if it runs. UsageError if it doesn't stop."""
    end = time.monotonic() + CLOSE_PATIENCE
    while machine.running and time.monotonic() < end:
        machine.stop()
        time.sleep(0.001)
    machine.close()
