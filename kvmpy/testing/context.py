"""What belongs to one running test: its engine, its time, its machines."""

from __future__ import annotations

import os

from kvmpy.errors import UsageError
from kvmpy.testing.machine import Budget, Machines, MachineUnderTest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.testing.build import Builder
    from kvmpy.testing.golden_trace import Golden
    from kvmpy.testing.guest import Guest
    from kvmpy.testing.settings import Settings

_current: Context | None = None


class Context:
    """The running test. ``machines`` are all that it made through the plugin, the main one first."""

    def __init__(
        self,
        nodeid: str,
        path: str,
        engine: str,
        settings: Settings,
        builder: Builder,
        *,
        timeout: float,
        update_golden: bool = False,
    ) -> None:
        self.nodeid = nodeid
        self.path = path
        self.engine = engine
        self.settings = settings
        self.builder = builder
        self.update_golden = update_golden
        self.budget = Budget(settings.timeout if settings.timeout is not None else timeout)
        self._factory = Machines(engine, self.budget)
        self.machines = self._factory.made
        self.many_examples = False
        self.reports: list[tuple[str, str]] = []
        self._main: MachineUnderTest | None = None
        self._guest: Guest | None = None

    def make(self, code: bytes | None = None, mode: str | None = None, **wishes: Any) -> MachineUnderTest:
        """A new machine on the test's engine, in the marker's mode: see :meth:`Machines.make`."""
        return self._factory.make(code, mode or self.settings.mode or "long", **wishes)

    def main(self, **wishes: Any) -> MachineUnderTest:
        """The machine of the fixtures ``machine`` and ``guest``; the markers decide, then ``wishes``."""
        if self._main is None:
            self._main = self.make(**{**wishes, **self.settings.machine})
        return self._main

    def guest(self) -> Guest:
        """The guest of the fixture ``guest``."""
        from kvmpy.testing.guest import Guest

        if self._guest is None:
            self._guest = Guest(self, self.main, self.settings)
        return self._guest

    def new_guest(self, **settings: Any) -> Guest:
        """A guest with a machine of its own."""
        from kvmpy.testing.guest import Guest

        chosen = self.settings.replaced(**settings)
        engine = {"engine": settings["engine"]} if settings.get("engine") else {}

        def make(**wishes: Any) -> MachineUnderTest:
            return self.make(**{**wishes, **engine, **chosen.machine})

        return Guest(self, make, chosen)

    def golden(self, name: str) -> Golden:
        """The golden trace of that name beside the test's file."""
        from kvmpy.testing.golden_trace import Golden

        path = os.path.join(os.path.dirname(self.path), "golden", f"{name}.trace")
        return Golden(name, path, self.update_golden)

    def keep_report(self, machine: MachineUnderTest) -> None:
        """Writes down now what a report would say of ``machine``, which is about to be closed."""
        from kvmpy.testing.report import sections

        self.reports = sections(self, machine)

    def forget(self, machine: MachineUnderTest) -> None:
        """A machine that is closed and whose report is kept: a test may make thousands."""
        self.machines.remove(machine)

    def close(self) -> None:
        """Stops and closes all machines of the test."""
        self._factory.close()


def begin(context: Context | None) -> None:
    """Says which test is running."""
    global _current
    _current = context


def current() -> Context:
    """The running test. UsageError outside."""
    if _current is None:
        raise UsageError(
            "no test with a kvmpy machine is running: use one of the fixtures guest, machine, machines or kvmpy_engine,"
            " or mark the test with @pytest.mark.kvmpy"
        )
    return _current


def new_guest(**settings: Any) -> Guest:
    """A further guest for the running test, with a machine of its own, as a context manager.

    For tests that need several, and for those that run many times, as Hypothesis' do. ``settings`` are the marker's:
    ``memory``, ``cpus``, ``irqchip``, ``mode``, ``devices``, ``strict``. Raises UsageError outside a test::

        with new_guest(memory="2M") as guest:
            guest.asm("hlt")
            assert guest.run().exits == [Hlt()]
    """
    return current().new_guest(**settings)
