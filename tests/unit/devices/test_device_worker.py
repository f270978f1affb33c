"""The worker: sums and jobs."""

from __future__ import annotations

from collections.abc import Callable

from kvmpy.devices.worker import ITEM, JOB, STATUS, SUM, Worker


def make() -> tuple[Worker, list[tuple[float, Callable[[], None]]], list[bool]]:
    jobs: list[tuple[float, Callable[[], None]]] = []
    line: list[bool] = []
    return Worker(lambda seconds, function: jobs.append((seconds, function)), line.append), jobs, line


def test_it_adds_up_modulo_32_bits() -> None:
    worker, _, _ = make()
    for item in (1, 2, 0xFFFFFFFF):
        worker.write(ITEM, item, 4)
    assert worker.read(SUM, 4) == 2
    assert worker.items == 3


def test_work_that_waits_elsewhere_is_brought_in_first() -> None:
    worker = Worker(lambda *_: None, lambda level: None, lambda: worker.add(5))
    assert worker.read(SUM, 4) == 5


def test_a_job_takes_its_time_and_raises_the_line() -> None:
    worker, jobs, line = make()
    worker.write(JOB, 20, 4)
    assert [seconds for seconds, _ in jobs] == [0.02]
    assert worker.read(STATUS, 4) == 0
    jobs[0][1]()
    assert line[-1] is True
    assert worker.read(STATUS, 4) == 1
    assert line[-1] is False
    worker.write(JOB, 1 << 31, 4)
    assert jobs[1][0] == 10 and worker.read(STATUS, 4) == 0
