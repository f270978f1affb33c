"""Guests of random bytes: no crash, no hang past the deadline, no leak. ``KVMPY_HOSTILE``: how many in each mode."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from translate_rig import system

COUNT = int(os.environ.get("KVMPY_HOSTILE", "150"))
FIRST = int(os.environ.get("KVMPY_HOSTILE_FIRST", "0"))
SLOWEST = 2.0  # seconds for a deadline of 3 ms: only a guest that can't be stopped takes that
MOST_GROWTH = 96 << 20  # bytes: translated code fills its buffer of 64 MiB before it is thrown away


@pytest.mark.parametrize(("bits", "ring"), [(16, 0), (32, 0), (32, 3), (64, 0), (64, 3)])
def test_random_bytes(bits: int, ring: int) -> None:
    system()
    script = Path(__file__).with_name("translate_hostile.py")
    arguments = [str(argument) for argument in (bits, ring, FIRST, COUNT)]
    result = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=60 + COUNT * 0.5
    )
    last = result.stderr.splitlines()[-1:]
    assert result.returncode == 0, f"status {result.returncode} at seed {last}: {result.stderr[-2000:]}"
    report = ast.literal_eval(result.stdout)
    assert sum(report["ends"].values()) == COUNT
    assert report["slowest"] < SLOWEST
    assert report["grew"] < MOST_GROWTH
