"""Timers of a machine's devices, in host time: CLOCK_MONOTONIC, nanoseconds.

Callbacks run on the first vCPU's thread between two entries of the guest, so devices need no locks for them: the
thread's own POSIX timer kicks it out of the guest, or out of its sleep, when the next is due. C-handled exits know
nothing of it.
"""

from __future__ import annotations

from threading import get_ident
from time import monotonic_ns

from kvmpy._native import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.machine.cpu import Cpu

    Due = Callable[[], int | None]

NEVER = 1 << 63
GAP_NS = 50_000
"""Time that the guest has at least between two kicks: however often a device wants to be called, it gets on."""


class Timer:
    """One of a machine's timers: see :meth:`Timers.add`."""

    __slots__ = ("due", "when")

    def __init__(self, due: Due) -> None:
        self.due = due
        self.when = NEVER


class Timers:
    """What a machine's devices wait for. ``now()`` is the clock their moments are on."""

    now = staticmethod(monotonic_ns)

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self._timers: list[Timer] = []
        self._thread = 0
        self._set = 0

    def add(self, due: Due) -> Timer:
        """A new timer. ``due()`` is called when its moment has come and returns the next one, None for none."""
        timer = Timer(due)
        self._timers.append(timer)
        return timer

    def arm(self, timer: Timer, when: int | None) -> None:
        """The timer's moment is ``when`` instead, None: never; one that is over is now. From any thread."""
        when = NEVER if when is None else when
        if when == timer.when:
            return
        timer.when = when
        if self._thread == get_ident():
            self._wake_at_next()
        elif self._thread and self._cpu.native is not None:
            lib.kvmpy_kick(self._cpu.native, lib.KVMPY_KICK_WAKE)

    def _wake_at_next(self) -> None:
        soonest = min([timer.when for timer in self._timers], default=NEVER)
        wanted = 0 if soonest == NEVER else max(soonest, 1)
        if wanted != self._set:
            self._set = wanted
            error = lib.kvmpy_wake_at(self._cpu.native, wanted)
            if error:
                raise OSError(-error, f"vCPU {self._cpu.index} can't have a timer")

    def start(self) -> None:
        """This thread is going to run the first vCPU."""
        self._thread = get_ident()
        self._set = -1
        self._wake_at_next()

    def stop(self) -> None:
        """It doesn't any more."""
        self._thread = 0

    def run(self) -> None:
        """Calls what is due. On the first vCPU's thread, with the machine's lock."""
        now = self.now()
        for timer in self._timers:
            if timer.when <= now:
                timer.when = NEVER
                when = timer.due()
                if when is not None:
                    timer.when = min(timer.when, max(when, self.now() + GAP_NS))
        self._set = -1  # the native side has forgotten the moment that brought us here
        self._wake_at_next()
