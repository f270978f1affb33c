"""A project of its own that has nothing but the built wheel: its guest tests run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("kvmpy", "native", "guest_images", "pyproject.toml", "README.md", "LICENSE")
TEST = '''
from kvmpy.testing import Hlt, Out


def test_counts(guest):
    guest.asm("mov $3, %ecx; 1: out %al, $0x80; loop 1b; hlt", mode="long")
    assert guest.run().exits == [Out(0x80), Out(0x80), Out(0x80), Hlt()]


def test_assertions_in_c(guest):
    guest.c("""
        #include "kvmpy.h"
        int main(void) { ASSERT_EQ(inb(0x80), 0xff); print("fine"); return 0; }
    """)
    assert guest.run().status == 0
    assert guest.serial.text == "fine"


def test_bundled_guest(guest):
    guest.image("long-hello")
    guest.serial.expect("Hello from long mode")
'''
WITHOUT_GIL = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
NO_INDEX = ("Could not find a version", "No matching distribution", "NewConnectionError", "Temporary failure")


def _run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))
    }
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=clean, capture_output=True, text=True, timeout=900
    )


def _pip(python: Path | str, *arguments: str | Path, cwd: Path) -> None:
    done = _run(python, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)
    if done.returncode and any(words in done.stderr for words in NO_INDEX):
        pytest.skip(f"the package index can't be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.kvmpy(timeout=60)
def test_three_guest_tests_with_nothing_but_the_wheel(
    kvmpy_engine: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if WITHOUT_GIL and kvmpy_engine == "translate":
        pytest.skip("Unicorn has no wheel for a Python without a GIL")
    home = tmp_path_factory.mktemp("small")
    python = _installed(home)
    project = home / "project"
    project.mkdir()
    (project / "test_x.py").write_text(TEST)
    done = _run(python, "-m", "pytest", "-q", f"--kvmpy-engine={kvmpy_engine}", cwd=project)
    assert "3 passed" in done.stdout, done.stdout + done.stderr
    where = _run(python, "-c", "import kvmpy; print(kvmpy.__file__)", cwd=project).stdout
    assert str(home.parent) in where


def _installed(home: Path) -> Path:
    """A virtual environment with the wheel built from a copy of the sources, and pytest; made once a session."""
    kept = home.parent / "small-environment"
    python = kept / "venv" / "bin" / "python"
    ready = kept / "ready"
    if ready.exists():
        return python
    shutil.rmtree(kept, ignore_errors=True)  # of an attempt that ended in a skip
    kept.mkdir()
    source = kept / "source"
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "_images")
            )
        else:
            shutil.copy(ROOT / name, source / name)
    _pip(sys.executable, "wheel", "-q", "--no-deps", "-w", kept, source, cwd=kept)
    (wheel,) = kept.glob("kvmpy-*.whl")
    assert _run(sys.executable, "-m", "venv", kept / "venv", cwd=kept).returncode == 0
    kvmpy = "kvmpy" if WITHOUT_GIL else "kvmpy[translate]"
    _pip(python, "install", "-q", f"{kvmpy} @ {wheel.as_uri()}", "pytest>=8", cwd=kept)
    ready.touch()
    return python
