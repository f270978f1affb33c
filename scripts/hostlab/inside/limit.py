"""A limit on the time that one test may take: the test fails, and the ones after it still run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "KVMPY_HOSTS_TEST_SECONDS"
_DEFAULT = 60.0


class TimeLimitError(Exception):
    """A test took too long; raised wherever it was."""


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise TimeLimitError in the main thread after $KVMPY_HOSTS_TEST_SECONDS (60 without) of the host's
    time.

    Uses SIGALRM: a vCPU that runs is kicked out by it, and a system call interrupted.
    """
    seconds = float(os.environ.get(VARIABLE) or _DEFAULT)

    def expire(*_: object) -> None:
        raise TimeLimitError(f"not over after {seconds:g} s; the limit is in ${VARIABLE}")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
