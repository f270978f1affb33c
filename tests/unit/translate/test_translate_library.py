"""Finding and refusing Unicorn libraries: one line with the reason and the remedy, never a crash. No guest runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvmpy.errors import EngineError
from kvmpy.translate import cpuid, library
from kvmpy.translate.system import MSRS

# The library is loaded once in a process, so each of these has its own.
OPEN = "import sys\nfrom kvmpy.translate import System\nSystem(sys.argv[1])"
VERSION = (
    "unsigned uc_version(unsigned *a, unsigned *b) { return (2u << 24) + (%d << 16) + (%d << 8) + 255; }"
)


def shared_library(folder: Path, source: str) -> Path:
    """A shared library of this source."""
    path = folder / "libunicorn.so.2"
    (folder / "a.c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, "a.c"], cwd=folder, check=True)
    return path


def refusal(path: Path) -> str:
    """What System() says about it."""
    result = subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True)
    assert result.returncode == 1, (result.returncode, result.stderr)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("kvmpy.errors.EngineError: ")
    assert "pip install 'kvmpy[translate]'" in last
    assert str(path) in last
    return last


def test_a_library_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "libunicorn.so.2"
    path.write_bytes(b"not a library")
    assert "invalid ELF header" in refusal(path) or "file too short" in refusal(path)


def test_a_library_without_the_functions(tmp_path: Path) -> None:
    assert "it has no uc_open" in refusal(shared_library(tmp_path, VERSION % (1, 4)))


@pytest.mark.parametrize(("minor", "patch", "name"), [(1, 3, "2.1.3"), (2, 0, "2.2.0"), (0, 1, "2.0.1")])
def test_another_version(tmp_path: Path, minor: int, patch: int, name: str) -> None:
    functions = "\n".join(f"void {symbol}(void) {{}}" for symbol in symbols() if symbol != "uc_version")
    source = VERSION % (minor, patch) + functions
    assert f"it is version {name}" in refusal(shared_library(tmp_path, source))


def test_the_right_version_laid_out_differently(tmp_path: Path) -> None:
    """Engines of this one are zeros: no CPU is found in them."""
    others = "\n".join(
        f"int {symbol}(void) {{ return 0; }}"
        for symbol in symbols()
        if symbol not in ("uc_version", "uc_open")
    )
    engine = "static char zeros[65536]; int uc_open(int a, int m, void **e) { *e = zeros; return 0; }"
    source = VERSION % (1, 4) + engine + others
    assert "CPU state isn't where" in refusal(shared_library(tmp_path, source))


def symbols() -> list[str]:
    """The functions the engine takes from the library."""
    text = (Path(__file__).parents[3] / "native" / "translate_unicorn.c").read_text()
    return [line.split('"')[1] for line in text.splitlines() if line.startswith("\tSYMBOL(")]


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.PathFinder, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"isn't installed: pip install 'kvmpy\[translate\]'"):
        library.find()


def test_a_package_without_its_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(library.PathFinder, "find_spec", lambda name: Spec())
    with pytest.raises(EngineError, match=r"without its libunicorn\.so\.2"):
        library.find()


def test_the_package_is_not_imported() -> None:
    code = "import sys\nfrom kvmpy.translate import library\ntry:\n library.find()\nexcept Exception: pass\n"
    code += "print([m for m in ('unicorn', 'ctypes') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_cpuid_tables_survive_packing() -> None:
    entries = [(1, 0, 0, 2, 3, 4, 5), (7, 1, 1, 6, 7, 8, 9)]
    assert cpuid.unpack(cpuid.pack(entries)) == entries


def test_msrs_are_listed_once() -> None:
    assert len(set(MSRS)) == len(MSRS)
