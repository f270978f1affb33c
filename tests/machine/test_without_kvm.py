"""With ``/dev/kvm`` taken away, the first command still prints its greeting, and says what would bring KVM back."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from translate_rig import system

ROOT = Path(__file__).parents[2]
GREETING = "Hello from long mode\n"
NOBODY = 65534
# Into an empty /dev goes what any process needs.
HIDDEN = """
mkdir {0}/dev && for name in null zero urandom; do touch {0}/dev/$name && mount --bind /dev/$name {0}/dev/$name; done
mount --rbind {0}/dev /dev
"""


def namespace(setup: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in a mount namespace that a shell has changed; skips where the host has none for this user."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare isn't installed (package util-linux)")
    become = [unshare, "--mount"] if os.geteuid() == 0 else [unshare, "--mount", "--map-root-user"]
    probe = subprocess.run([*become, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no mount namespace for this user: {probe.stderr.strip()}")
    script = f'set -e\n{setup}\nexec "$@"'
    return run([*become, "sh", "-c", script, "sh", *map(str, command)])


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False
    )


def check(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (result.returncode, result.stdout) == (0, GREETING), result.stderr
    [line] = [line for line in result.stderr.splitlines() if line.startswith("kvmpy: ")]
    for word in ("binary translation", "/dev/kvm", *words):
        assert word in line


def scripts_run() -> Path:
    """The script, which builds nothing when this tree was built by it or by scripts/test."""
    system()
    if not Path(ROOT, ".venv", "built").exists():
        pytest.skip(f"{ROOT} wasn't built with scripts/run or scripts/test: no .venv/built")
    return ROOT / "scripts" / "run"


def test_something_else_is_in_its_place() -> None:
    script = scripts_run()
    if not Path("/dev/kvm").exists():
        check(run([str(script)]), "doesn't exist")
        return
    check(namespace("mount --bind /dev/null /dev/kvm", script), "isn't KVM")


def test_it_does_not_exist(tmp_path: Path) -> None:
    script = scripts_run()
    check(namespace(HIDDEN.format(tmp_path), script), "doesn't exist")


def test_a_user_without_permission() -> None:
    system()
    setpriv = shutil.which("setpriv")
    if os.geteuid() or setpriv is None:
        pytest.skip("becoming another user needs root" if setpriv else "setpriv isn't installed (util-linux)")
    if not Path("/dev/kvm").exists():
        pytest.skip("/dev/kvm doesn't exist: there is no permission to lack")
    if os.stat("/dev/kvm").st_mode & stat.S_IROTH:
        pytest.skip("/dev/kvm lets every user in")
    become = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    python = [*become, sys.executable]
    if run([*python, "-c", "import kvmpy"]).returncode:
        pytest.skip(f"user {NOBODY} can't read {sys.executable} or {ROOT}")
    check(run([*python, "-m", "kvmpy", "run", "long-hello"]), "permission denied", "sudo")


def test_quiet_says_nothing() -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("/dev/kvm doesn't exist: the other tests are what happens here")
    result = namespace("mount --bind /dev/null /dev/kvm", scripts_run(), "long-hello", "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, GREETING, "")
