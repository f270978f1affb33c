"""Memory that C works on outlives what the garbage collector clears."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kvmpy._native import ffi
from kvmpy.machine.pinned import pinned

CYCLES = """
import gc
from kvmpy.machine.pinned import pinned

class Holder:
    pass

gc.disable()
for _ in range(50):
    holder = Holder()
    holder.view = memoryview(bytearray(64))[8:]
    holder.pointer = pinned(holder.view)
    holder.itself = holder
    del holder
    gc.collect()
"""


def test_it_is_the_memory_of_a_view() -> None:
    memory = bytearray(range(32))
    pointer = pinned(memoryview(memory)[8:])
    assert bytes(ffi.buffer(pointer, 4)) == bytes((8, 9, 10, 11))
    pointer[1] = 0xAA
    assert memory[9] == 0xAA


def test_it_stays_while_it_is_held() -> None:
    memory = bytearray(32)
    pointer = pinned(memory)
    with pytest.raises(BufferError):
        memory.extend(b"more")
    del pointer
    memory.extend(b"more")


def test_a_view_in_a_cycle_doesnt_end_the_process() -> None:
    """CPython clears such a memoryview although it is exported, and crashes when the export ends."""
    done = subprocess.run(
        [sys.executable, "-c", CYCLES], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
