"""Runs a job on a host and gathers its report."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import bochs, cache, catalogue, job, packages, prepare, qemu
from .catalogue import Host
from .errors import HostsError
from .expected import Expected
from .inside import facts, limit
from .machine import Start, files_in
from .protocol import Report, Result
from .watchdog import Limits, follow

_REPORT_PORT = "/dev/ttyS1"
_LAST_LINES = 20
_preparing = threading.Lock()
"""What a host starts from is made by one of several that run at a time; the others find it made."""


class Plan(NamedTuple):
    """What to run: "suite" with pytest's arguments, "facts" only, or "command": the user's own."""

    project: job.Project
    kind: str
    arguments: Sequence[str] = ()


class Listener(NamedTuple):
    """Who wants to hear while a host runs: of results, of the console's lines, of what is being prepared.

    ``cancelled()`` says that nobody does any more.
    """

    result: Callable[[Host, Result], None]
    console: Callable[[Host, str], None]
    say: Callable[[str], None]
    cancelled: Callable[[], bool] = lambda: False


def run(host: Host, plan: Plan, expected: Expected, listener: Listener) -> Report:
    """Run a plan on a host; the report says how it went, with the console's last lines if it went wrong.

    HostsError if the host can't be prepared or is in use.
    """
    report = Report(host, expected)
    last: list[str] = []

    def on_console(line: str, _: float) -> None:
        last.append(line)
        del last[:-_LAST_LINES]
        listener.console(host, line)

    def on_report(line: str, now: float) -> None:
        result = report.feed(line, now)
        if result:
            listener.result(host, result)

    with place_of(host) as place:
        with _preparing:
            start = set_up(host, plan, place, listener.say)
        files = {start.console: on_console, start.report: on_report}
        ended = follow(
            start.command,
            files,
            start.limits,
            output=start.output,
            done=lambda: report.over,
            cancelled=listener.cancelled,
        )
        (place / "disk.img").unlink(missing_ok=True)
        report.finish(ended.seconds, ended.why)
        if report.problems:
            report.last_lines = last or _last_lines(start.output)
    return report


@contextlib.contextmanager
def place_of(host: Host) -> Iterator[Path]:
    """The directory for a host's run, ours alone meanwhile. HostsError if the host is running already."""
    place = cache.directory() / "runs" / host.name
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HostsError(
                f"host {host.name} is running already, in {place}: wait, or set KVMPY_CACHE"
            ) from None
        yield place


def set_up(host: Host, plan: Plan, place: Path, say: Callable[[str], None], terminal: str = "") -> Start:
    """Prepare what is missing, and say how to start ``host`` for ``plan``.

    With ``terminal`` (a terminal device, or "-" for our own where the emulator can) its console is
    interactive. HostsError if something can't be had.
    """
    if host.emulator == "none":
        return _set_up_local(host, plan, place)
    packages.require(catalogue.TOOLS[host.emulator])
    kernel = prepare.prepare_kernel(fresh=False, say=say)
    script = job.script(plan.project, make_job(host, plan, _REPORT_PORT))
    parts = [kernel.initramfs.read_bytes(), job.script_archive(script)]
    if host.emulator == "qemu":
        initrd = place / "initrd.cpio"
        cache.write(initrd, b"".join(parts))
        return qemu.start(host, kernel.vmlinux, initrd, place, interactive=bool(terminal))
    python = prepare.prepare_python(plan.project.python, plan.project.root, say)
    parts += [python.read_bytes(), job.project_archive(plan.project)]
    sector = prepare.prepare_boot_sector()
    return bochs.start(host, kernel.vmlinux, b"".join(parts), sector, place, terminal=terminal)


def _set_up_local(host: Host, plan: Plan, place: Path) -> Start:
    console, report, _ = files_in(place)
    script = place / "job"
    script.write_text(job.script(plan.project, make_job(host, plan, str(report))))
    return Start(["sh", str(script)], console, report, console, Limits(host.silence, host.limit))


def make_job(host: Host, plan: Plan, report: str) -> job.Job:
    """The job of a plan, with the runner that suits the host, and what the runner has to know of the host."""
    made = _choose_job(host, plan, report)
    about = {facts.NAME_VARIABLE: host.name, limit.VARIABLE: str(host.test_seconds)}
    return made._replace(environment={**made.environment, **about})


def _choose_job(host: Host, plan: Plan, report: str) -> job.Job:
    if plan.kind == "facts":
        return job.facts(plan.project, report)
    if plan.kind == "command":
        return job.command(plan.arguments, report)
    if host.emulator == "bochs":
        return job.light_suite(plan.project, report, plan.arguments)
    return job.pytest_suite(plan.project, report, plan.arguments)


def _last_lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-_LAST_LINES:] if path.exists() else []
