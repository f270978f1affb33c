"""What an emulator is given to start: the parts that QEMU and Bochs have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .watchdog import Limits

# No self-tests and no mitigations: both take long where every instruction is interpreted, and neither is
# under test.
_KERNEL_OPTIONS = (
    "console=ttyS0,115200",
    "quiet",
    "panic=-1",
    "mitigations=off",
    "cryptomgr.notests=1",
    "lsm=",
)


class Start(NamedTuple):
    """How to start a host: the program, and its limits.

    ``console`` and ``report`` are the files it writes, the one for people, the other for us; its own output
    goes to ``output``.
    """

    command: Sequence[str]
    console: Path
    report: Path
    output: Path
    limits: Limits


def command_line(*options: str, **environment: str) -> str:
    """The kernel's command line; Linux hands ``environment`` to ``init`` as environment variables."""
    return " ".join((*_KERNEL_OPTIONS, *options, *(f"{name}={value}" for name, value in environment.items())))


def files_in(place: Path) -> tuple[Path, Path, Path]:
    """console, report and output of a host that runs in ``place``, without what an earlier run left."""
    files = (place / "console.log", place / "report.jsonl", place / "emulator.log")
    for file in files:
        file.unlink(missing_ok=True)
    return files


def bounded(command: Sequence[str], seconds: float) -> list[str]:
    """``command`` that ends after so long even if nobody is left to watch over it."""
    return ["timeout", "-k", "10", str(int(seconds) + 60), *command]
