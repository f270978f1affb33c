"""Ten thousand machines, made, run and closed, leave nothing behind."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import pytest

from kvmpy.machine.machine import Machine

MACHINES, WARM_UP = 10_000, 500
HALT = b"\xe6\x80\xf4"  # out %al, $0x80; hlt


def _live(engine: str) -> None:
    with Machine("64K", engine=engine) as machine:
        machine.ports.drop(0x80)
        machine.load(HALT, mode="real", format="flat", load_address=0x1000)
        assert machine.run(timeout=60).reason == "halt"


def _left_over() -> tuple[int, int, int]:
    """File descriptors, mappings and resident bytes of this process."""
    gc.collect()
    process = psutil.Process()
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    return process.num_fds(), maps, process.memory_info().rss


@pytest.mark.slow
def test_ten_thousand_machines_leave_nothing_behind(kvmpy_engine: str) -> None:
    for _ in range(WARM_UP):
        _live(kvmpy_engine)
    fds, maps, resident = _left_over()
    for _ in range(MACHINES):
        _live(kvmpy_engine)
    after = _left_over()
    assert after[0] == fds
    # An allocator may keep an arena more or less; a mapping or a page left by each machine would be 10,000.
    assert abs(after[1] - maps) < 20
    assert after[2] - resident < 8 << 20
