"""The README is true: its example runs, its commands and files exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engines import need

from kvmpy.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def any_engine() -> None:
    need("auto")


def test_the_example_prints_what_it_says(any_engine: None) -> None:
    (example,), (output,) = blocks("python"), blocks("text")
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    ran = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=120)
    assert (ran.stdout, ran.stderr) == (output, "")


def test_what_the_commands_print(any_engine: None, command: Any) -> None:
    first, second = blocks("console")
    assert first.splitlines()[:3] == ["$ ./scripts/run", "building kvmpy, once ...", "Hello from long mode"]
    assert "building kvmpy, once ..." in (ROOT / "scripts/environment.sh").read_text()
    line, *shown = second.splitlines()
    result = command(*line.removeprefix("$ kvmpy ").split(), "--engine", "auto")
    printed = (result.stdout + result.stderr).decode().splitlines()
    assert printed[: len(shown)] == shown


def test_every_command_is_listed() -> None:
    assert re.findall(r"^\| `kvmpy (\w+)", README, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(((?!https?:)[^)#]+)", text))
    named |= set(re.findall(r"`\.?/?((?:scripts|tests|docs|native|kvmpy|guest_images|\.ci)/[\w./-]*)`", text))
    assert named
    missing = {name for name in named if "NAME" not in name and not (ROOT / name).exists()}
    assert missing == set()
    assert os.path.exists(ROOT / "LICENSE")
