"""How fast binary translation computes, against QEMU's: the guest ``compute`` (guest_images/lab) on both, in turn."""

from __future__ import annotations

import shutil
import subprocess
from array import array

from kvmpy.lab import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOOPS = ("count", "sieve")
"""What the guest times, in the order in which it sends the ticks."""
REPEATS = 7
"""ROUNDS of the guest: how often it does each loop."""
ROUNDS, QUICK_ROUNDS = 9, 3


def best_ticks(output: bytes) -> dict[str, int]:
    """Loop -> the fewest TSC ticks of its repeats, from what the guest sent last. ValueError if that is too little."""
    size = 8 * len(LOOPS) * REPEATS
    if len(output) < size:
        raise ValueError(f"the guest sent {len(output)} bytes instead of {size}")
    ticks = array("Q", output[-size:])
    return {name: min(ticks[at :: len(LOOPS)]) for at, name in enumerate(LOOPS)}


def compare(rounds: int = ROUNDS, engine: str = "translate") -> dict[str, Any] | str:
    """Loop -> how many times as fast as on QEMU's TCG it runs here; or why that can't be told.

    Of each loop ``ratio``, ``low`` and ``high``, the median, least and largest of ``rounds``; and the best ``ticks``
    here and ``qemu_ticks`` there.

    Both programs run in turn, and of each run the best repeat counts: other load hits both alike.
    """
    from kvmpy.lab.guests import LabImage

    if shutil.which(qemu.PROGRAM) is None:
        return f"{qemu.PROGRAM} isn't installed (package qemu-system-x86)"
    sector = LabImage.read("compute")
    pairs: list[tuple[dict[str, int], dict[str, int]]] = []
    try:
        for _ in range(rounds):
            theirs = best_ticks(qemu.run_on_qemu(sector, "tcg"))
            pairs.append((best_ticks(qemu.run_on_kvmpy(sector, engine)), theirs))
    except (RuntimeError, ValueError, OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return {name: _summary([(ours[name], theirs[name]) for ours, theirs in pairs]) for name in LOOPS}


def _summary(pairs: list[tuple[int, int]]) -> dict[str, float]:
    ratios = sorted(theirs / ours for ours, theirs in pairs)
    return {
        "ratio": ratios[len(ratios) // 2],
        "low": ratios[0],
        "high": ratios[-1],
        "ticks": min(ours for ours, _ in pairs),
        "qemu_ticks": min(theirs for _, theirs in pairs),
    }
