"""A range moves between all its places while a guest hammers it, and every single access is accounted for."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from kvmpy.machine.machine import Machine
from kvmpy.machine.rules import Drop

PLACES = ("c", "ring", "kernel", "python")
PORT = 0x80
FOREVER = b"\xe6\x80\x66\x41\xeb\xfa"  # 1: out %al, $0x80; inc %ecx; jmp 1b


class Counter:
    """Counts what Python is handed."""

    name = "counter"

    def __init__(self) -> None:
        self.writes = 0

    def write(self, offset: int, value: int, size: int) -> None:
        self.writes += 1


class Mover(threading.Thread):
    """Moves the range ``moves`` times from another thread, each time after the guest has come on, then stops it."""

    def __init__(self, machine: Machine, moves: int) -> None:
        super().__init__()
        self.machine = machine
        self.moves = moves
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            range_ = self.machine.ports[PORT]
            for move in range(self.moves):
                before = range_.count
                range_.place = self.places[move % len(self.places)]
                # Coalesced writes are counted when they are handed over: by a deadline rather than by the count.
                for _ in range(20):
                    if range_.count > before:
                        break
                    threading.Event().wait(0.0002)
        except BaseException as error:
            self.error = error
        finally:
            self.machine.stop()

    @property
    def places(self) -> tuple[str, ...]:
        return PLACES if self.machine.engine.in_kernel else tuple(p for p in PLACES if p != "kernel")


@pytest.mark.threads
@pytest.mark.kvmpy(memory="64K", mode="real", trace=False, timeout=120)
@pytest.mark.parametrize("moves", [1200])
def test_no_access_is_lost_or_handled_twice(machines: Callable[..., Machine], moves: int) -> None:
    with machines(FOREVER) as machine:
        machine.log(1 << 22, "counted", everything=False)
        counter = Counter()
        range_ = machine.ports.attach(PORT, 1, counter, rule=Drop())
        mover = Mover(machine, moves)
        mover.start()
        result = machine.run()
        mover.join()
        assert mover.error is None
        assert result.reason == "stopped"
        range_.place = "python"  # what the kernel still held is handed over
        exits = result.exits["IO"]
        logged = len(machine.rings[0])
        assert machine.rings[0].dropped == 0
        # The guest counts as well: it may have been stopped between its write and its count.
        assert range_.count - machine.cpus[0].regs.rcx in (0, 1)
        # What left the guest is either an exit or was kept by the kernel; every exit was counted once, but for one
        # that had just come when the machine was stopped: the next run would handle it.
        assert exits + range_.kernel_count - range_.count in (0, 1)
        assert counter.writes >= range_.kernel_count
        in_python = counter.writes - range_.kernel_count
        in_c = range_.count - range_.kernel_count - in_python - logged
        assert in_python > 0
        assert logged > 0
        assert in_c > 0
        assert range_.kernel_count > 0 or not machine.engine.in_kernel
