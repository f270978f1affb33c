"""The hardware suite can fail: with one line of the library wrong, a test on the host concerned goes red.

Minutes for each; run them by name: ``./scripts/test -m mutation tests/mutation``. Without ``-m mutation`` they are left
out, in CI too (tests/conftest.py).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.mutation
ROOT = Path(__file__).resolve().parents[2]
PARTS = ("kvmpy", "native", "guest_images", "scripts", "tests", "pyproject.toml", "README.md", "LICENSE")
LONG_ENOUGH = 900.0  # seconds


class Mutation(NamedTuple):
    """One line of ``file`` in which ``right`` becomes ``wrong``; ``tests`` on ``host`` must notice."""

    file: str
    right: str
    wrong: str
    host: str
    tests: str


MUTATIONS = {
    "real-mode-segments": Mutation(
        "kvmpy/x86/segments.py",
        "return Segment(selector, selector << 4, 0xFFFF, CODE_READ",
        "return Segment(selector, selector << 3, 0xFFFF, CODE_READ",
        "intel-no-ug",
        "test_real_mode.py",
    ),
    "tss-address": Mutation(
        "kvmpy/machine/engine_kvm.py",
        "        self.vm.set_tss_addr(KVM_TSS)\n",
        "        pass\n",
        "intel-no-ug",
        "test_virtual_8086.py",
    ),
    "xsave-size": Mutation(
        "kvmpy/kvm/vm.py",
        "self._xsave_size = max(self.check_extension(KVM_CAP_XSAVE2), 4096)",
        "self._xsave_size = max(self.check_extension(KVM_CAP_XSAVE2), 4096) * 2",
        "amd",
        "test_fpu.py",
    ),
    "dirty-ring-reset": Mutation(
        "kvmpy/kvm/vm.py",
        "return self.call_value(ioctls.KVM_RESET_DIRTY_RINGS)",
        "return self.dirty_ring_entries",
        "amd",
        "test_dirty_pages.py",
    ),
    "sipi": Mutation(
        "native/run.c",
        "\t\tvcpu->eagain++;\n\t\treturn 0;\n",
        "\t\tvcpu->eagain++;\n\t\tbreak;\n",
        "amd",
        "test_smp.py",
    ),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of this source tree, as it is built."""
    copy = tmp_path / "tree"
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / part)
    return copy


def mutate(tree: Path, mutation: Mutation) -> None:
    """Makes the line wrong, and builds what has to be built."""
    file = tree / mutation.file
    text = file.read_text()
    assert text.count(mutation.right) == 1, f"{mutation.right!r} isn't in {mutation.file} just once"
    file.write_text(text.replace(mutation.right, mutation.wrong))
    if mutation.file.startswith("native/"):
        built = tree.parent / "built"
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
        subprocess.run((*pip, "--target", str(built), str(tree)), check=True, timeout=LONG_ENOUGH)
        for library in (built / "kvmpy").glob("_native*.so"):
            shutil.copy(library, tree / "kvmpy" / library.name)


def outcomes(tree: Path, mutation: Mutation) -> dict[str, str]:
    """The tests' outcomes on the host, by name. A host that doesn't come to its end has no outcome."""
    command = (
        str(ROOT / "scripts" / "hosts"),
        *("run", mutation.host, "--source", str(tree), "--", f"tests/hosts/{mutation.tests}"),
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_ENOUGH, check=False)
    found = re.findall(rf"^{mutation.host} +(pass|fail|skip) +\S+ s  (\S+)", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    assert "report is incomplete" not in done.stdout, done.stdout
    return {test: outcome for outcome, test in found}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_line_makes_a_test_fail(name: str, tree: Path) -> None:
    mutation = MUTATIONS[name]
    before = outcomes(tree, mutation)
    assert "fail" not in before.values(), before
    mutate(tree, mutation)
    red = [test for test, outcome in outcomes(tree, mutation).items() if outcome == "fail"]
    print(f"{name} on {mutation.host}: red: {', '.join(red)}")
    assert red
