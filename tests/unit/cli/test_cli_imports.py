"""Start-up counts: what a command doesn't use, it doesn't import."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"json", "rich", "difflib", "psutil", "elftools", "capstone", "unicorn", "asyncio", "subprocess"}


def imported(program: str) -> set[str]:
    """The names of all modules after a program in a fresh interpreter that has none of the editable install's."""
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\nbefore = set(sys.modules)\n{program}\n"
         "print('|'.join(set(sys.modules) - before), file=sys.stderr)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(result.stderr.strip().rsplit("\n", 1)[-1].split("|"))


def run(*arguments: str) -> str:
    return f"from kvmpy.cli import main\ntry: main({list(arguments)!r})\nexcept SystemExit: pass"


def test_import_kvmpy_imports_nothing_else() -> None:
    assert imported("import kvmpy") <= {"kvmpy", "kvmpy.lazily"}


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("images",), ("run", "--help")])
def test_commands_without_a_machine_load_none(arguments: tuple[str, ...]) -> None:
    modules = imported(run(*arguments))
    assert modules & HEAVY <= ({"json"} if "images" in arguments else set())  # their index is JSON
    assert not any(name.startswith(("kvmpy.machine", "kvmpy.kvm", "kvmpy._native")) for name in modules)


def test_run_loads_no_more_than_a_flat_image_needs() -> None:
    modules = imported(run("run", "long-hello", "--timeout", "60"))
    assert modules & HEAVY <= {"json"}
    assert not modules & {
        "kvmpy.cli.report",
        "kvmpy.cli.crash_report",
        "kvmpy.boot.elf",
        "kvmpy.machine.host",
    }


def test_info_as_json_draws_nothing() -> None:
    assert "rich" not in imported(run("info", "--json"))
