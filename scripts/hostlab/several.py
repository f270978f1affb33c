"""Several hosts in one go: this machine first and alone, then the emulated ones, some at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from .catalogue import Host
from .protocol import Report

One = Callable[[Host, Callable[[], bool]], Report]


def default_jobs() -> int:
    """How many emulators this machine runs without making each other slower: each keeps one CPU busy."""
    return len(os.sched_getaffinity(0))


def run_several(hosts: Sequence[Host], one: One, jobs: int) -> list[Report]:
    """``one(host, cancelled)`` for every host, ``jobs`` emulated ones at a time; their reports in order.

    What one of them raises, Ctrl-C too, comes out when the others have ended: ``cancelled()`` tells them to.
    """
    cancelled = threading.Event()
    reports = {host.name: one(host, cancelled.is_set) for host in hosts if host.emulator == "none"}
    emulated = [host for host in hosts if host.emulator != "none"]
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = {host.name: pool.submit(one, host, cancelled.is_set) for host in emulated}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
            reports |= {name: future.result() for name, future in futures.items()}
        except BaseException:
            cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [reports[host.name] for host in hosts]
