"""Ten thousand machines, made, run and closed, leave nothing behind."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import psutil
import pytest

from kvmpy.testing import new_guest

MACHINES, WARM_UP = 10_000, 500
HALT = b"\xe6\x80\xf4"  # out %al, $0x80; hlt


def _live() -> None:
    with new_guest() as guest:
        guest.ports.drop(0x80)
        guest.code(HALT)
        assert guest.run(timeout=60).reason == "halt"


def _left_over() -> tuple[int, int, int]:
    """File descriptors, mappings and resident bytes of this process."""
    gc.collect()
    process = psutil.Process()
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    return process.num_fds(), maps, process.memory_info().rss


@pytest.mark.slow
@pytest.mark.kvmpy(memory="64K", mode="real", devices="none", trace=False, timeout=math.inf)
def test_ten_thousand_machines_leave_nothing_behind(kvmpy_engine: str) -> None:
    for _ in range(WARM_UP):
        _live()
    fds, maps, resident = _left_over()
    for _ in range(MACHINES):
        _live()
    after = _left_over()
    assert after[0] == fds
    # An allocator may keep an arena more or less; a mapping or a page left by each machine would be 10,000.
    assert abs(after[1] - maps) < 20
    assert after[2] - resident < 8 << 20
