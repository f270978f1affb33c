"""native/images.py: the same bytes everywhere, one clear line when it can't, and nothing half-done."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "guest_images"
METADATA = """
[tiny]
summary = "a test"
mode = "long"
format = "flat"
load_address = 0x100000
memory = "3M"
ends = "halt"
"""
CODE = ".globl _start\n_start: hlt\n"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kvmpy_images_under_test", ROOT / "native" / "images.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


images = _load()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source directory with one guest."""
    path = tmp_path / "source"
    shutil.copytree(SOURCES / "lib", path / "lib")
    (path / "images.toml").write_text(METADATA)
    (path / "tiny.s").write_text(CODE)
    return path


def _index(output: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((output / "index.json").read_text())
    return index


def _failure(source: Path, output: Path, cc: str = "gcc") -> str:
    with pytest.raises(images.ImageBuildError) as caught:
        images.build_images(source, output, cc)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_only_the_standard_library_is_imported() -> None:
    """The package is built where nothing else may be installed yet."""
    needed = {
        line.split()[1].split(".")[0]
        for line in (ROOT / "native" / "images.py").read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    assert needed <= set(sys.stdlib_module_names)


def test_every_source_is_built(tmp_path: Path) -> None:
    built = images.build_images(SOURCES, tmp_path, "gcc")
    assert {path.stem for path in built} == {path.stem for path in SOURCES.glob("*.s")} | {"index"}
    assert sorted(built) == sorted(tmp_path.iterdir())  # and nothing is left behind


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_the_same_bytes_wherever_it_is_built(tmp_path: Path, cc: str) -> None:
    if shutil.which(cc) is None:
        pytest.skip(f"the compiler {cc} is not installed")
    elsewhere = tmp_path / "a, directory with spaces"
    shutil.copytree(SOURCES, elsewhere)
    first = images.build_images(SOURCES, tmp_path / "one", cc)
    second = images.build_images(elsewhere, tmp_path / "two", cc)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in second)


def test_compilers_that_make_position_independent_code_by_default(tmp_path: Path) -> None:
    """Debian's and Ubuntu's compilers do; others don't: the flags decide, not the default."""
    plain = images.build_images(SOURCES, tmp_path / "plain", "gcc")
    other = images.build_images(SOURCES, tmp_path / "pie", "gcc -fPIE -pie -g -O3 -flto")
    assert [p.read_bytes() for p in plain[:-1]] == [p.read_bytes() for p in other[:-1]]


def test_flat_image_starts_with_its_first_instruction(source: Path, tmp_path: Path) -> None:
    images.build_images(source, tmp_path / "out", ["gcc"])
    assert (tmp_path / "out" / "tiny.bin").read_bytes() == b"\xf4"


def test_index_holds_the_metadata(source: Path, tmp_path: Path) -> None:
    images.build_images(source, tmp_path / "out")
    index = _index(tmp_path / "out")
    assert index["schema"] == 1
    assert index["images"] == [
        {
            "name": "tiny", "file": "tiny.bin", "summary": "a test", "mode": "long", "format": "flat",
            "load_address": 0x100000, "cpus": 1, "irqchip": "none", "memory": 3 << 20,
            "serial_input": False, "ends": "halt", "status": 0, "paravirt": False, "group": "",
        }
    ]  # fmt: skip


def test_status_is_unset_where_the_guest_sets_none(source: Path, tmp_path: Path) -> None:
    (source / "images.toml").write_text(METADATA.replace('"halt"', '"crash"'))
    images.build_images(source, tmp_path / "out")
    assert _index(tmp_path / "out")["images"][0]["status"] is None


def test_linked_for_its_load_address(source: Path, tmp_path: Path) -> None:
    (source / "tiny.s").write_text(".globl _start\n_start: nop\nhere: .long here\n")
    images.build_images(source, tmp_path / "out")
    assert (tmp_path / "out" / "tiny.bin").read_bytes() == b"\x90\x01\x00\x10\x00"


def test_nothing_is_done_twice(source: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    cc = _script(tmp_path / "cc", f'echo once >> {log}\nexec gcc "$@"\n')
    first = images.build_images(source, tmp_path / "out", cc)
    assert images.build_images(source, tmp_path / "out", cc) == first
    assert log.read_text() == "once\n"


@pytest.mark.parametrize("change", ["source", "lib", "metadata", "lost image", "damaged index"])
def test_what_changed_is_built_again(source: Path, tmp_path: Path, change: str) -> None:
    log = tmp_path / "log"
    cc = _script(tmp_path / "cc", f'echo once >> {log}\nexec gcc "$@"\n')
    images.build_images(source, tmp_path / "out", cc)
    if change == "source":
        (source / "tiny.s").write_text(CODE + "nop\n")
    elif change == "lib":
        (source / "lib" / "end.inc").write_text("# changed\n")
    elif change == "metadata":
        (source / "images.toml").write_text(METADATA.replace("a test", "another"))
    elif change == "lost image":
        (tmp_path / "out" / "tiny.bin").unlink()
    else:
        (tmp_path / "out" / "index.json").write_text("{")
    images.build_images(source, tmp_path / "out", cc)
    assert log.read_text() == "once\nonce\n"
    assert _index(tmp_path / "out")["images"][0]["name"] == "tiny"


def test_a_guest_that_went_away_is_removed(source: Path, tmp_path: Path) -> None:
    images.build_images(source, tmp_path / "out")
    (source / "tiny.s").rename(source / "renamed.s")
    (source / "images.toml").write_text(METADATA.replace("[tiny]", "[renamed]"))
    images.build_images(source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"renamed.bin", "index.json"}


def test_no_compiler(source: Path, tmp_path: Path) -> None:
    assert "install the package gcc" in _failure(source, tmp_path / "out", "no-such-cc -O2")
    assert "install the package gcc" in _failure(source, tmp_path / "out", "")


@pytest.mark.parametrize(
    "message",
    [
        "gcc: fatal error: cannot execute 'as': execvp: No such file or directory",
        "collect2: fatal error: cannot find 'ld'",
        'clang: error: unable to execute command: Executable "ld" doesn\'t exist!',
        "clang: error: invalid linker name in argument '-fuse-ld=bfd'",
    ],
)
def test_no_assembler_or_linker(source: Path, tmp_path: Path, message: str) -> None:
    (tmp_path / "message").write_text(message + "\ncompilation terminated.\n")
    cc = _script(tmp_path / "cc", f"cat {tmp_path}/message >&2\nexit 1\n")
    assert "install the package binutils" in _failure(source, tmp_path / "out", cc)


def test_gcc_really_says_so(source: Path, tmp_path: Path) -> None:
    """With a PATH that holds nothing: what this machine's gcc prints when it has no assembler."""
    cc = _script(tmp_path / "cc", f'PATH={tmp_path} COMPILER_PATH= exec {shutil.which("gcc")} -B/none "$@"\n')
    assert "install the package binutils" in _failure(source, tmp_path / "out", cc)


def test_bad_source_is_named_with_its_line(source: Path, tmp_path: Path) -> None:
    (source / "tiny.s").write_text(".globl _start\n_start: no_such_instruction\n")
    message = _failure(source, tmp_path / "out")
    assert message.startswith("guest tiny: ") and "tiny.s:2" in message and "no_such_instruction" in message


def test_code_in_front_of_the_entry(source: Path, tmp_path: Path) -> None:
    (source / "tiny.s").write_text("nop\n" + CODE)
    assert "_start must be the first thing" in _failure(source, tmp_path / "out")


def test_missing_source(source: Path, tmp_path: Path) -> None:
    (source / "tiny.s").unlink()
    assert "guest tiny: its source" in _failure(source, tmp_path / "out")


def test_a_failure_leaves_the_old_images(source: Path, tmp_path: Path) -> None:
    images.build_images(source, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (source / "tiny.s").write_text(CODE + "nop\n")
    (source / "images.toml").write_text(METADATA + METADATA.replace("[tiny]", "[missing]"))
    assert "missing" in _failure(source, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('mode = "long"\n', "", "field 'mode' is missing"),
        ('"long"', '"virtual"', "mode is 'virtual', not one of real, protected, long"),
        ('"flat"', '"com"', "format is 'com'"),
        ('"halt"', '"sometimes"', "ends is 'sometimes'"),
        ("0x100000", "-1", "load_address is -1, not in 0x0-0xffffffff"),
        ("0x100000", '"0x100000"', "load_address is '0x100000'"),
        ('"3M"', '"3 apples"', "memory is '3 apples', not a size"),
        ('"3M"', "0", "memory is 0, not a size"),
        ('"halt"', '"exit"\nstatus = 120', "status is 120, not in 0x0-0x77"),
        ('"halt"', '"halt"\ncolour = 1', "unknown field 'colour'"),
        ('"halt"', '"halt"\nparavirt = 1', "paravirt is 1, not one of False, True"),
        ('"halt"', '"halt"\ngroup = "big"', "guest tiny: of the group 'big' is big-…"),
        ("[tiny]", "tiny = 1\n[other]", "'tiny' is not a table"),
        ("[tiny]", "[tiny", "images.toml: "),
    ],
)
def test_bad_metadata(source: Path, tmp_path: Path, old: str, new: str, says: str) -> None:
    (source / "images.toml").write_text(METADATA.replace(old, new))
    assert says in _failure(source, tmp_path / "out")


def test_no_metadata(tmp_path: Path) -> None:
    assert "images.toml" in _failure(tmp_path, tmp_path / "out")


def test_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert images.main([str(source), str(tmp_path / "out")]) == 0
    assert "tiny.bin" in capsys.readouterr().out
    assert images.main([str(source), str(tmp_path / "out"), "no-such-cc"]) == 1
    assert "install the package gcc" in capsys.readouterr().err
    assert images.main([]) == 2
