"""What a thread of the host does while the guest runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

from suite import Host


class Later:
    """A thread that does something once, after some of the host's time; or, as ``every``, again and again."""

    def __init__(self, host: Host, seconds: float, action: Callable[[], object], every: bool = False) -> None:
        self.count = 0
        self._over = threading.Event()
        self._seconds, self._action, self._every = seconds, action, every
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        host.defer(self.end)

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            self._action()
            self.count += 1
            if not self._every:
                return

    def end(self) -> None:
        """No more from now on."""
        self._over.set()
        self._thread.join()
