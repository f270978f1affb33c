"""A run of several vCPUs: a thread for each; the caller's waits, and keeps time for all."""

from __future__ import annotations

import threading
import time

from kvmpy._native import lib
from kvmpy.machine.cpu import kick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.machine import Machine

PATIENCE = 0.1
"""Seconds until a vCPU that should leave its guest is told so again; and until the caller's thread looks up from
waiting: Python has signals handled by its main thread, but doesn't wake that up if the signal came to another thread,
or to this one between its last look and the wait."""


class VcpuThreads:
    """The threads of one run.

    Whatever a signal handler raises in the caller's thread, and wherever: when :meth:`run` is over no thread is inside
    a vCPU, nor will one that was slow to begin get there.
    """

    def __init__(self, machine: Machine, cpus: list[Cpu], tick: float | None) -> None:
        self.machine = machine
        self.cpus = cpus
        self.tick = tick
        self._lock = threading.RLock()
        self._open = True
        self._inside = 0
        self._errors: list[BaseException] = []
        # Locked: nothing has happened. An Event would do, were it not for signal handlers: one that ends the run while
        # Event.set() is at work waits for ever, one that raises in there leaves it locked.
        self._news = threading.Lock()
        self._news.acquire()
        self._threads = [
            threading.Thread(target=self._thread, args=(cpu,), name=f"vCPU {cpu.index}", daemon=True)
            for cpu in cpus
        ]

    def run(self, deadline: float | None) -> None:
        """Until the machine has an ending; ``deadline`` is one, in seconds of time.monotonic().

        Raises what the first vCPU raised that did, with a note of what others did.
        """
        try:
            for thread in self._threads:
                thread.start()
            self._wait(deadline)
        except BaseException:
            self.machine.end("stopped")
            raise
        finally:
            try:
                self._leave()
            except KeyboardInterrupt:
                self._leave()
                raise
        if self._errors:
            raise self._first_error()

    def wake(self) -> None:
        """The caller's thread looks whether the run is over."""
        try:
            self._news.release()
        except RuntimeError:
            pass  # it hasn't seen the last news yet

    def _wait(self, deadline: float | None) -> None:
        while self.machine.ending is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self.machine.end("timeout")
                return
            step = min(x for x in (left, self.tick, PATIENCE) if x is not None)
            if not self._news.acquire(timeout=step) and self.tick is not None:
                self._kick(lib.KVMPY_KICK_TICK)

    def _kick(self, why: int) -> None:
        for cpu in self.cpus:
            kick(cpu, why)

    def _thread(self, cpu: Cpu) -> None:
        with self._lock:
            if not self._open:
                return
            self._inside += 1
        try:
            self.machine.run_vcpu(cpu)
        except BaseException as error:
            self._errors.append(error)
            self.machine.end("stopped", cpu=cpu, detail=f"{type(error).__name__} in a handler")
        finally:
            with self._lock:
                self._inside -= 1
            self.wake()

    def _leave(self) -> None:
        with self._lock:
            self._open = False
        while self._inside:
            if not self._news.acquire(timeout=PATIENCE):
                self._kick(lib.KVMPY_KICK_STOP)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _first_error(self) -> BaseException:
        first, *others = self._errors
        for error in others:
            notes = ", ".join(getattr(error, "__notes__", ()))
            first.add_note(f"and {type(error).__name__}: {error}, {notes}")
        return first
