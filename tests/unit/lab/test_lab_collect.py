"""From time stamps to histograms (native/collect.c), with stamps made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from kvmpy._native import ffi, lib
from kvmpy.lab.trial import Round

CHUNK = 4


class Stamps:
    """A collector and the samples it looks at."""

    def __init__(self) -> None:
        self.native: Any = lib.kvmpy_collector_new(CHUNK)
        self.samples = ffi.new("uint64_t[]", 2 * CHUNK)
        self.native.samples = self.samples
        self.native.warm_most = 0
        lib.kvmpy_collector_start(self.native)

    def collect(
        self,
        samples: list[tuple[int, int]],
        crossings: Sequence[tuple[int, int]] = (),
        switches: int = 0,
    ) -> Round:
        """One chunk: (begin, end) of the guest, (enter, leave) of the host, context switches in between."""
        for at, pair in enumerate(samples):
            self.samples[2 * at], self.samples[2 * at + 1] = pair
        for at, (enter, leave) in enumerate(crossings):
            self.native.crossings[at].enter, self.native.crossings[at].leave = enter, leave
        self.native.crossed = len(crossings)
        self.native.switches = lib.kvmpy_switches() - switches
        lib.kvmpy_collect(self.native)
        return Round.of(self.native)


@pytest.fixture
def stamps() -> Iterator[Stamps]:
    found = Stamps()
    yield found
    lib.kvmpy_collector_free(found.native)


def parts(found: Round) -> dict[str, list[int]]:
    return {name: sorted(histogram.counts) for name, histogram in found.parts.items()}


def test_an_exit_splits_in_three(stamps: Stamps) -> None:
    samples = [(100, 200), (300, 410), (500, 620), (700, 830)]
    crossings = [(50, 130), (150, 330), (350, 530), (550, 730), (750, 900)]
    found = stamps.collect(samples, crossings)
    assert sorted(found.total.counts) == [100, 110, 120, 130]
    assert parts(found) == {"out": [30], "handler": [20], "in": [50, 60, 70, 80]}
    assert found.counters["without_exit"] == found.counters["with_more"] == 0


def test_the_parts_of_each_sample_sum_up_to_it(stamps: Stamps) -> None:
    samples = [(100, 200), (300, 410), (500, 620), (700, 830)]
    found = stamps.collect(samples, [(50, 110), (190, 310), (311, 599), (600, 701), (829, 900)])
    assert found.total.sum == sum(histogram.sum for histogram in found.parts.values())


def test_samples_without_an_exit_and_with_several_are_counted_apart(stamps: Stamps) -> None:
    samples = [(100, 200), (300, 400), (500, 600), (700, 800)]
    crossings = [(50, 310), (320, 330), (340, 550), (560, 900)]
    found = stamps.collect(samples, crossings)
    assert found.total.total == 4
    assert found.counters["without_exit"] == 2
    assert found.counters["with_more"] == 1
    assert parts(found) == {"out": [50], "handler": [10], "in": [40]}


def test_another_offset_of_the_guests_clock(stamps: Stamps) -> None:
    stamps.native.tsc_offset = 1000
    found = stamps.collect([(1100, 1200)] + [(5000, 5001)] * 3, [(50, 130), (150, 900)])
    assert parts(found) == {"out": [30], "handler": [20], "in": [50]}


def test_an_end_before_its_beginning_is_no_sample(stamps: Stamps) -> None:
    found = stamps.collect([(100, 90), (300, 400), (500, 600), (700, 800)])
    assert found.total.total == 3 and found.counters["backwards"] == 1


def test_chunks_the_scheduler_interrupted_go_elsewhere(stamps: Stamps) -> None:
    found = stamps.collect([(100, 200)] * 4, switches=1)
    assert (found.total.total, found.interrupted.total, found.counters["chunks_interrupted"]) == (0, 4, 1)
    assert found.counters["chunks"] == 1


def test_warming_up_ends_when_two_chunks_agree(stamps: Stamps) -> None:
    stamps.native.warm_most = 10
    lib.kvmpy_collector_start(stamps.native)
    for duration, recorded in ((500, 0), (300, 0), (200, 0), (199, 0), (198, 4)):
        found = stamps.collect([(0, duration)] * CHUNK)
        assert found.total.total == recorded, duration
    assert found.counters["chunks_warming"] == 4


def test_warming_up_has_an_end(stamps: Stamps) -> None:
    stamps.native.warm_most = 3
    lib.kvmpy_collector_start(stamps.native)
    for duration in (100, 1000, 10, 7):
        found = stamps.collect([(0, duration)] * CHUNK)
    assert found.total.total == CHUNK and found.counters["chunks_warming"] == 3


@pytest.mark.parametrize("chunk", [0, lib.KVMPY_CHUNK_MAX + 1])
def test_a_chunk_that_cant_be(chunk: int) -> None:
    assert lib.kvmpy_collector_new(chunk) == ffi.NULL
