"""What starting up costs: a benchmark that prints what it finds. The limits it names are aims, not assertions.

./scripts/test tests/performance/test_startup.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from engines import why_not

ROUNDS = 15
BARE = "python -c pass"
AIMS = {"import kvmpy": 25, "kvmpy --version": None, "kvmpy run long-hello": 100}
"""Program -> at most so many milliseconds more than a bare Python (None: no aim)."""
PROGRAMS = {
    BARE: ["-c", "pass"],
    "import kvmpy": ["-c", "import kvmpy"],
    "kvmpy --version": ["-m", "kvmpy", "--version"],
    "kvmpy run long-hello": ["-m", "kvmpy", "run", "long-hello"],
}


def measure(programs: dict[str, list[str]], rounds: int = ROUNDS) -> dict[str, float]:
    """Program -> its best wall time in milliseconds; they take turns, so that load hits all of them.

    With compiled modules, as after any first run: only that one may have to make them.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(rounds):
        for name, arguments in programs.items():
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, env=environment,
            )  # fmt: skip
            best[name] = min(best[name], (time.perf_counter() - began) * 1e3)
    return best


def test_startup(capsys: pytest.CaptureFixture[str]) -> None:
    programs = dict(PROGRAMS)
    if why_not("auto"):
        del programs["kvmpy run long-hello"]
    best = measure(programs)
    with capsys.disabled():
        print(f"\n\nstart-up, best of {ROUNDS} runs")
        for name, milliseconds in best.items():
            more, aim = milliseconds - best[BARE], AIMS.get(name)
            wanted = f"   aim: +{aim} ms" if aim is not None else ""
            print(
                f"  {name:<22}{milliseconds:7.1f} ms   {milliseconds / best[BARE]:5.2f} x   +{more:.1f} ms{wanted}"
            )
    assert all(0 < milliseconds < float("inf") for milliseconds in best.values())
