"""Machines that a test forgot: each is an error that names the test and the place it was made at."""

from __future__ import annotations

import weakref

from kvmpy.machine.machine import Machine
from kvmpy.testing.machine import shut
from kvmpy.testing.where import Caller, caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.testing.context import Context


class Leaks:
    """Watches machines being made and closed while tests run."""

    def __init__(self) -> None:
        self.failed = False
        self._context: Context | None = None
        self._watching = False
        self._made: list[tuple[weakref.ref[Machine], Caller]] = []
        self._dropped: list[str] = []
        self._install()

    def _install(self) -> None:
        self._init = Machine.__init__
        self._del = Machine.__del__
        leaks = self

        def made(machine: Machine, *arguments: Any, **named: Any) -> None:
            leaks._init(machine, *arguments, **named)
            if leaks._watching:
                leaks._made.append((weakref.ref(machine), caller()))

        def dropped(machine: Machine) -> None:
            if leaks._watching and not getattr(machine, "_closed", True):
                leaks._dropped.append(leaks._describe(machine))
            leaks._del(machine)

        Machine.__init__ = made  # type: ignore[method-assign, assignment]
        Machine.__del__ = dropped  # type: ignore[method-assign, assignment]

    def uninstall(self) -> None:
        """Machines are made as before."""
        Machine.__init__ = self._init  # type: ignore[method-assign]
        Machine.__del__ = self._del  # type: ignore[method-assign]

    def _describe(self, machine: Machine) -> str:
        places = [place for ref, place in self._made if ref() is machine]
        place = f", made at {places[0]}" if places else ""
        return f"{machine!r}{place}: close() it, or use it in a with statement"

    def begin(self, context: Context | None) -> None:
        """A test begins."""
        self._context = context
        self._watching = True
        self.failed = False
        self._made.clear()
        self._dropped.clear()

    def end(self) -> str:
        """Closes what is still open; what there was, in words, or "" if nothing, or if it doesn't count."""
        self._watching = False
        found = list(self._dropped)
        for ref, place in self._made:
            machine = ref()
            if machine is not None and not machine.closed:
                found.append(f"{machine!r}, made at {place}: close() it, or use it in a with statement")
                shut(machine)
        self._made.clear()
        context, self._context = self._context, None
        allowed = context is not None and context.settings.leaks
        # The traceback of a failed test keeps its variables: what is still open then isn't worth a second error.
        return "" if allowed or self.failed else "; ".join(found)
