"""An interactive shell on a host: its console becomes our terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import job
from .catalogue import Host
from .run import Plan, make_job, place_of, set_up
from .watchdog import end


def shell(host: Host, plan: Plan, say: Callable[[str], None]) -> int:
    """Give the user a shell on ``host`` until it is left; returns the status of the program that gave it.

    HostsError if the host can't be prepared or is in use.
    """
    if host.emulator == "none":
        script = job.script(plan.project, make_job(host, plan, ""))
        return subprocess.run(["sh", "-c", script], check=False).returncode
    with place_of(host) as place:
        if host.emulator == "qemu":
            start = set_up(host, plan, place, say, terminal="-")
            say("Ctrl-A X ends the emulator")
            return subprocess.run(start.command, check=False).returncode
        master, slave = pty.openpty()
        start = set_up(host, plan, place, say, terminal=os.ttyname(slave))
        say("Ctrl-] ends the emulator")
        with start.output.open("wb") as log:
            process = subprocess.Popen(
                start.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            with _raw_terminal():
                _relay(master, process)
        finally:
            end(process)
            os.close(master)
            os.close(slave)
        return 0  # Bochs has no status worth passing on: it is 1 after every power-off


def _relay(master: int, process: subprocess.Popen[bytes]) -> None:
    """Carry what is typed to the host and what it prints back, until it ends or Ctrl-] is typed."""
    sources = [sys.stdin.fileno(), master]
    while process.poll() is None:
        ready, _, _ = select.select(sources, [], [], 0.2)
        if master in ready:
            os.write(sys.stdout.fileno(), os.read(master, 65536))
        if sys.stdin.fileno() in ready:
            typed = os.read(sys.stdin.fileno(), 1024)
            if b"\x1d" in typed:
                return
            if not typed:
                sources = [master]
            os.write(master, typed)


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the host, Ctrl-C too."""
    if not os.isatty(sys.stdin.fileno()):
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def end_on_terminate() -> None:
    """Let SIGTERM leave through the same doors as Ctrl-C, so that what was started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
