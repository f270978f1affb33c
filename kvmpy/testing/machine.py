"""The machine of a test: it writes down every exit, and its runs end when the test's time is up."""

from __future__ import annotations

import time

from kvmpy.machine.machine import Machine
from kvmpy.testing.problems import GuestAssertion, GuestHang
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


class Budget:
    """Seconds that all guests of a test may run for, together."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.used = 0.0

    @property
    def left(self) -> float:
        """Never quite nothing: a run that starts late still ends by itself."""
        return max(self.seconds - self.used, 1e-3)


class MachineUnderTest(Machine):
    """A :class:`~kvmpy.machine.machine.Machine` for a test.

    ``run()`` without a timeout ends with GuestHang when the test's limit is reached, and with GuestAssertion when an
    ``ASSERT`` in the guest didn't hold. ``trace`` is every exit so far.
    """

    recorder: Recorder | None = None

    def __init__(self, budget: Budget, **settings: Any) -> None:
        super().__init__(**settings)
        self.budget = budget
        self.programs: list[Program] = []
        self.failure: Failure | None = None
        self.result: Result | None = None
        self.settings = settings
        self.load_options: dict[str, Any] = {}
        self.serial: SerialLine | None = None
        self.recorder = Recorder(self)

    def serial_text(self) -> str:
        """What a guest sent on the serial line that the plugin attached."""
        return self.serial.text if self.serial is not None else ""

    @property
    def trace(self) -> ExitList:
        """Every exit so far, of all vCPUs."""
        assert self.recorder is not None
        self.recorder.collect()
        return self.recorder.exits()

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
        own = timeout is not None and timeout <= left
        began = time.monotonic()
        try:
            self.result = super().run(timeout if own else left, max_exits, until)
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
