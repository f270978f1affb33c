"""scripts/run and scripts/test on machines that lack something: a sentence that names the package, and no build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = (
    "sh",
    "cat",
    "dirname",
    "env",
    "find",
    "flock",
    "mkdir",
    "printf",
    "rm",
    "sha256sum",
    "sort",
    "xargs",
)


class Newcomer:
    """A checkout in a place with a space in its name, and a PATH that holds what is put there."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "my code"
        self.tools = tmp_path / "tools"
        self.tools.mkdir()
        (self.root / "scripts").mkdir(parents=True)
        for name in ("run", "test", "environment.sh"):
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts")
        for name in ("native", "guest_images"):
            (self.root / name).mkdir()
        (self.root / "pyproject.toml").write_text("nothing that could be built")
        for name in NEEDED:
            found = shutil.which(name)
            if found:
                (self.tools / name).symlink_to(found)

    def tool(self, name: str, script: str) -> None:
        path = self.tools / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def python(self, lacks: str = "nothing", headers: bool = True) -> None:
        """A python3 that runs this one, without the module ``lacks``, and with or without its headers."""
        fake = self.tools.parent / "fake"
        (fake / "include").mkdir(parents=True, exist_ok=True)
        if headers:
            (fake / "include" / "Python.h").write_text("")
        (fake / "sitecustomize.py").write_text(
            "import sys, types\n"
            f"sys.modules[{lacks!r}] = None\n"
            f"fake = types.SimpleNamespace(get_path=lambda name: {str(fake / 'include')!r})\n"
            "if 'sysconfig' in sys.orig_argv[-1]: sys.modules['sysconfig'] = fake\n"
        )
        self.tool("python3", f"PYTHONPATH='{fake}' exec '{sys.executable}' \"$@\"")

    def run(self, script: str = "run", **environment: str) -> list[str]:
        """The lines on stderr of a script that fails with status 1."""
        result = subprocess.run(
            [self.root / "scripts" / script], env={"PATH": str(self.tools), **environment}, cwd="/",
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (result.returncode, result.stdout) == (1, ""), result.stderr
        assert not (self.root / ".venv").exists()
        return [line.removeprefix(f"{self.root}/scripts/{script}: ") for line in result.stderr.splitlines()]


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path)


@pytest.mark.parametrize("script", ["run", "test"])
def test_no_python(newcomer: Newcomer, script: str) -> None:
    assert newcomer.run(script) == ["Python 3.11 or newer is needed: install the package python3"]


def test_python_too_old(newcomer: Newcomer) -> None:
    newcomer.tool("python3", "exit 1")
    assert newcomer.run() == ["Python 3.11 or newer is needed: install the package python3"]
    assert newcomer.run(PYTHON="python3") == ["PYTHON=python3 isn't Python 3.11 or newer"]


def test_no_compiler_and_no_linker(newcomer: Newcomer) -> None:
    newcomer.python()
    assert newcomer.run() == [
        "this machine lacks a C compiler (cc): package gcc",
        "this machine lacks a linker (ld): package binutils",
        "install what is missing: sudo apt install gcc libc6-dev binutils",
    ]


def test_no_headers(newcomer: Newcomer) -> None:
    newcomer.python(headers=False)
    newcomer.tool("cc", "exit 1")
    newcomer.tool("ld", "exit 0")
    lines = newcomer.run()
    assert lines[0].startswith("this machine lacks Python's headers (") and lines[0].endswith(
        "package python3-dev"
    )
    assert lines[1] == "this machine lacks the C headers (stdlib.h, linux/kvm.h): package libc6-dev"
    assert lines[2] == "install what is missing: sudo apt install python3-dev libc6-dev"


def test_no_venv(newcomer: Newcomer) -> None:
    newcomer.python(lacks="ensurepip")
    newcomer.tool("cc", "exit 0")
    newcomer.tool("ld", "exit 0")
    assert newcomer.run() == [
        "this machine lacks Python's venv module: package python3-venv",
        "install what is missing: sudo apt install python3-venv",
    ]


def test_another_compiler_is_named(newcomer: Newcomer) -> None:
    newcomer.python()
    newcomer.tool("ld", "exit 0")
    assert newcomer.run(CC="clang")[0] == "this machine lacks a C compiler (clang): package gcc"


def test_what_is_ready_is_not_built_again(newcomer: Newcomer) -> None:
    """With the marks of a build for these sources, the guest starts with no compiler there at all."""
    newcomer.python()
    bin_ = newcomer.root / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python").write_text("#!/bin/sh\n")
    (bin_ / "kvmpy").write_text('#!/bin/sh\necho "$@"\n')
    for name in ("python", "kvmpy"):
        (bin_ / name).chmod(0o755)
    script = f'set -eu; . "{newcomer.root}/scripts/environment.sh"; find_python; fingerprint'
    made = subprocess.run(
        ["sh", "-c", script, f"{newcomer.root}/scripts/run"], env={"PATH": str(newcomer.tools)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (newcomer.root / ".venv" / "built").write_text(made.stdout)
    (newcomer.root / ".venv" / "purpose").write_text("test\n")
    command = [newcomer.root / "scripts" / "run"]
    environment = {"PATH": str(newcomer.tools)}
    assert (
        subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "run long-hello\n"
    )
    more = subprocess.run([*command, "sieve", "--stats"], env=environment, capture_output=True, text=True)
    assert more.stdout == "run sieve --stats\n"
    (newcomer.root / "native" / "new.c").write_text("int changed;")
    stale = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert stale.returncode == 1 and "lacks a C compiler" in stale.stderr


def test_scripts_are_plain_sh() -> None:
    for name in ("run", "test", "environment.sh"):
        subprocess.run(["sh", "-n", ROOT / "scripts" / name], check=True)
        assert name == "environment.sh" or os.access(ROOT / "scripts" / name, os.X_OK)
