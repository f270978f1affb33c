"""The command line: list, prepare, run, shell."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import cache, catalogue, expected, job, junit, packages, prepare, table
from .catalogue import Host
from .errors import HostsError
from .protocol import Report, Result
from .run import Listener, Plan, run
from .several import default_jobs, run_several
from .shell import end_on_terminate, shell

_DESCRIPTION = """\
Emulated hosts to test KVM on: AMD-V in QEMU, VT-x in Bochs, with Debian's kernel.

  scripts/hosts list                      what there is, and what is missing
  scripts/hosts prepare                   fetch the kernel and make everything ready
  scripts/hosts run amd -- -k dirty       run the hardware suite, or a part of it
  scripts/hosts run local amd             on several, one emulator for each CPU at a time
  scripts/hosts run all                   on every host, with a table at the end
  scripts/hosts shell intel               a shell there
"""


# The best shell that there is, once it is known what there is.
_LOGIN = ("sh", "-c", "exec $(command -v bash || echo sh) -i")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line. Status 0: all is well; 1: a test or a host failed; 2: it can't be done."""
    arguments = _parse(list(sys.argv[1:] if words is None else words))
    end_on_terminate()
    try:
        status: int = arguments.do(arguments)
        return status
    except HostsError as error:
        print(f"scripts/hosts: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parse(words: list[str]) -> argparse.Namespace:
    """The arguments; what follows "--" is for the runner on the host."""
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="scripts/hosts", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|prepare|run|shell")
    command = commands.add_parser("list", help="the hosts, and whether they are ready")
    command.set_defaults(do=_list)
    command = commands.add_parser("prepare", help="fetch and make what the hosts start from")
    command.add_argument(
        "--fresh", action="store_true", help="take apt's present kernel, even if one is here"
    )
    command.set_defaults(do=_prepare)
    _add_run(commands.add_parser("run", help="run the hardware suite on a host"))
    command = commands.add_parser("shell", help="a shell on a host; with -- COMMAND only that")
    command.add_argument("host", metavar="HOST", help=", ".join(catalogue.NAMES))
    _add_source(command)
    command.set_defaults(do=_shell)
    arguments = parser.parse_args(words[:split])
    arguments.rest = words[split + 1 :]
    return arguments


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("hosts", metavar="HOST", nargs="+", help=f"{', '.join(catalogue.NAMES)} or all")
    command.add_argument(
        "--jobs",
        type=int,
        default=default_jobs(),
        metavar="N",
        help="emulators at a time; without, one for each CPU (%(default)s)",
    )
    command.add_argument("--console", action="store_true", help="show all that the host prints")
    command.add_argument("--facts", action="store_true", help="no tests: only start it and say what it is")
    command.add_argument("--repeat", type=int, default=1, metavar="N", help="so many times; all must be good")
    command.add_argument("--table", type=Path, metavar="FILE", help="write the tables to a Markdown file")
    _add_source(command)
    command.set_defaults(do=_run)


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("--source", type=Path, metavar="DIR", help="a built source tree other than this one")


def _list(_: argparse.Namespace) -> int:
    rows = []
    for host in catalogue.HOSTS:
        missing = packages.missing_tools(catalogue.TOOLS[host.emulator])
        state = f"needs {' '.join(missing)}" if missing else "ready"
        rows.append((host.name, f"{host.emulator} {host.cpu}" if host.cpu else "", host.summary, state))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
    kernels = prepare.prepared_kernels()
    version = kernels[-1].name.removeprefix("kernel-") if kernels else "none yet: scripts/hosts prepare"
    print(f"kernel: {version}; cache: {cache.directory()}")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    for tools in catalogue.TOOLS.values():
        packages.require(tools)
    kernel = prepare.prepare_kernel(arguments.fresh, _say)
    project = job.find_project()
    python = prepare.prepare_python(project.python, project.root, _say)
    prepare.prepare_boot_sector()
    size, seconds = python.stat().st_size >> 20, time.monotonic() - began
    _say(f"kernel {kernel.version}, Python {size} MiB: ready ({seconds:.1f} s)")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    chosen = {host.name: host for name in arguments.hosts for host in catalogue.find(name)}
    hosts = list(chosen.values())
    project = job.find_project(arguments.source)
    plan = Plan(project, "facts" if arguments.facts else "suite", arguments.rest)
    allowed = expected.read(project.root / job.SUITE / "EXPECTED.toml")
    console = _show_console if arguments.console else lambda host, line: None

    def one(host: Host, cancelled: Callable[[], bool]) -> Report:
        report = run(host, plan, allowed, Listener(_show_result, console, _say, cancelled))
        _show_problems(report)
        return report

    status = 0
    for _ in range(arguments.repeat):
        reports = run_several(hosts, one, max(1, arguments.jobs))
        _show_tables(reports, arguments)
        status = 1 if status or any(report.failed for report in reports) else 0
    return status


def _shell(arguments: argparse.Namespace) -> int:
    (host,) = catalogue.find(arguments.host)[:1]
    plan = Plan(job.find_project(arguments.source), "command", arguments.rest or _LOGIN)
    if host.emulator == "none" or not arguments.rest:
        return shell(host, plan, _say)
    listener = Listener(lambda host, result: None, lambda host, line: print(line, flush=True), _say)
    report = run(host, plan, expected.Expected({}), listener)
    if report.over and not report.error:
        return report.status
    why = report.error or f"it stopped before the command did: {' '.join(report.last_lines[-1:])}"
    raise HostsError(f"host {host.name}: {why}")


def _show_result(host: Host, result: Result) -> None:
    line = f"{host.name:13} {result.outcome:4} {result.seconds:6.1f} s  {result.test}"
    if result.outcome == "skip":
        line += f"  ({result.reason})"
    if result.outcome == "fail":
        line += "".join(f"\n    {text}" for text in result.reason.splitlines())
    print(line, flush=True)  # at once: other hosts print, too


def _show_console(host: Host, line: str) -> None:
    print(f"{host.name}| {line}", flush=True)


def _show_problems(report: Report) -> None:
    for problem in report.problems:
        print(f"{report.host.name:13} {problem}")
    if report.last_lines:
        print(f"{report.host.name:13} its last lines:")
        print("".join(f"    {line}\n" for line in report.last_lines), end="", flush=True)


def _show_tables(reports: list[Report], arguments: argparse.Namespace) -> None:
    """Print them, and write what is wanted as files: tables as Markdown, results as JUnit XML."""
    for report in reports:
        path = cache.directory() / "runs" / report.host.name / "junit.xml"
        cache.write(path, junit.document([report]).encode())
    short, long = table.summary(reports), table.tests(reports)
    if len(reports) > 1 and any(report.results for report in reports):
        print(f"\n{long}")
    print(f"\n{short}", flush=True)
    if arguments.table:
        cache.write(arguments.table, f"{short}\n\n{long}\n".encode())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
