"""Ctrl-C, SIGTERM and SIGHUP: the guest stops, what was asked for is still written, and files are never half there."""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from kvmpy.machine.machine import Machine


class Signals:
    """A context manager. A signal stops ``machine`` if it is set and running: its run returns, and ``caught`` is the
    signal's number. At any other time, and the second time, the program ends with KeyboardInterrupt or SystemExit.
    """

    def __init__(self) -> None:
        self.machine: Machine | None = None
        self.caught = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup means it
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: object) -> None:
        first, self.caught = not self.caught, number
        if first and self.machine is not None and self.machine.running:
            self.machine.stop()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(self.status)

    @property
    def status(self) -> int:
        """What a shell makes of a program that this signal ended: 130 for Ctrl-C."""
        return 128 + self.caught
