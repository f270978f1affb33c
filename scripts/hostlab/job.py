"""What a host is to do: a shell script; with the project, for hosts that can't see our files."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from . import cpio
from .errors import HostsError
from .inside.report import VARIABLE

ROOT = Path(__file__).resolve().parents[2]
SUITE = "tests/hosts"
_INSIDE = "scripts.hostlab.inside"
# What goes along of the project: the library, the suite, and the programs that run it.
_PARTS = (
    "kvmpy",
    SUITE,
    "tests/machine/expected_outputs.py",
    "scripts/hostlab/inside",
    "scripts/hostlab/__init__.py",
)


class Project(NamedTuple):
    """The source tree under test, and the Python whose environment has what it needs."""

    root: Path
    python: Path


class Job(NamedTuple):
    """A command to run in the project's directory with additions to its environment."""

    command: Sequence[str]
    environment: Mapping[str, str]


def find_project(source: Path | None = None) -> Project:
    """The project at ``source``, or this one. Its Python is $KVMPY_PYTHON, that of its .venv, or ours."""
    root = (source or ROOT).resolve()
    if not (root / "kvmpy").is_dir():
        raise HostsError(f"{root} isn't a source tree of kvmpy: it has no directory kvmpy")
    named = os.environ.get("KVMPY_PYTHON")
    for python in (Path(named) if named else None, root / ".venv/bin/python", ROOT / ".venv/bin/python"):
        if python and python.exists():
            return Project(root, python.absolute())
    return Project(root, Path(sys.executable))


def facts(project: Project, report: str) -> Job:
    """Say what kind of host it is, and nothing more."""
    return Job([str(project.python), "-m", f"{_INSIDE}.facts"], _environment(report))


def pytest_suite(project: Project, report: str, arguments: Sequence[str]) -> Job:
    """The suite under pytest, with the user's arguments.

    Of the plugins that are installed only kvmpy's: on an emulated host the others take a minute to import.
    """
    paths = [] if any(SUITE in word for word in arguments) else [SUITE]
    options = ["-p", f"{_INSIDE}.pytest_report", "-p", "kvmpy.testing.plugin", "-p", "no:cacheprovider"]
    environment = {**_environment(report), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return Job([str(project.python), "-m", "pytest", *options, *paths, *arguments], environment)


def light_suite(project: Project, report: str, arguments: Sequence[str]) -> Job:
    """The suite under the light runner, which knows a few of pytest's arguments."""
    return Job([str(project.python), "-m", f"{_INSIDE}.light", SUITE, *arguments], _environment(report))


def command(words: Sequence[str], report: str) -> Job:
    """The user's own command."""
    return Job(list(words), _environment(report))


def script(project: Project, job: Job) -> str:
    """The job as a shell script."""
    variables = [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
    variables.append(f"export PATH={shlex.quote(str(project.python.parent))}:$PATH")
    return "\n".join(
        (*variables, f"cd {shlex.quote(str(project.root))} || exit 1", shlex.join(job.command), "")
    )


def script_archive(text: str) -> bytes:
    """An archive with the script where ``init`` looks for it."""
    archive = cpio.Archive()
    archive.file("/job", text.encode(), 0o755)
    return archive.finish()


def project_archive(project: Project) -> bytes:
    """An archive with the project's files where they are here, compiled so that the host needn't do it."""
    with tempfile.TemporaryDirectory(prefix="kvmpy-hosts-") as name:
        top = Path(name)
        place = top / project.root.relative_to("/")
        place.mkdir(parents=True)
        for part in _PARTS:
            _copy(project.root / part, place / part)
        # by contents, not by time: an archive has no times
        mode = ("--invalidation-mode", "unchecked-hash")
        command = (
            str(project.python),
            "-I",
            "-m",
            "compileall",
            "-q",
            *mode,
            "-s",
            str(top),
            "-p",
            "/",
            str(place),
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise HostsError(f"the project can't be compiled: {done.stdout.strip()[:300]}")
        archive = cpio.Archive()
        archive.tree(top)
        return archive.finish()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    elif source.exists():
        shutil.copy(source, target)


def _environment(report: str) -> dict[str, str]:
    return {VARIABLE: report, "PYTHONUNBUFFERED": "1"}
