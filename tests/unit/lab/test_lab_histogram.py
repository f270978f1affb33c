"""Histograms: the layout is HdrHistogram's, nothing gets lost, and the text form is the one others read."""

from __future__ import annotations

import base64
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy._native import ffi, lib
from kvmpy.lab import histogram as h

values = st.one_of(
    st.integers(0, 5000), st.integers(0, h.HIGHEST), st.integers(0, 40).map(lambda n: (1 << n) - 1)
)


def filled(recorded: list[int]) -> h.Histogram:
    native = lib.kvmpy_histogram_new()
    try:
        for value in recorded:
            lib.kvmpy_histogram_record(native, value)
        found = h.Histogram()
        found.add_native(native)
        return found
    finally:
        lib.kvmpy_histogram_free(native)


@given(values)
def test_a_counter_holds_its_value_to_a_thousandth(value: int) -> None:
    index = lib.kvmpy_histogram_index(value)
    assert index < h.LENGTH
    assert h.lowest(index) <= value <= h.highest(index)
    assert h.highest(index) - h.lowest(index) <= max(value / 1000, 0)


def test_counters_adjoin() -> None:
    for index in range(h.LENGTH - 1):
        assert h.highest(index) + 1 == h.lowest(index + 1)
    assert h.highest(h.LENGTH - 1) == h.HIGHEST


@settings(max_examples=60)
@given(st.lists(values, min_size=1, max_size=200))
def test_percentiles_are_those_of_the_sorted_values(recorded: list[int]) -> None:
    found = filled(recorded)
    ordered = sorted(recorded)
    assert (found.total, found.sum, found.min, found.max) == (
        len(ordered),
        sum(ordered),
        ordered[0],
        ordered[-1],
    )
    for percent in (1, 50, 90, 99, 99.9, 100):
        exact = ordered[max(int(percent / 100 * len(ordered) + 0.5), 1) - 1]
        assert exact <= found.percentile(percent) <= exact + exact / 1000 + 1


@settings(max_examples=60)
@given(st.lists(values, max_size=100))
def test_text_form_and_back(recorded: list[int]) -> None:
    found = filled(recorded)
    again = h.Histogram.decode(found.encode())
    assert again.counts == found.counts and again.total == found.total


@given(st.dictionaries(st.integers(0, h.LENGTH - 1), st.integers(1, (1 << 62) - 1), max_size=5))
def test_counts_of_any_size_and_back(counts: dict[int, int]) -> None:
    whole = h.Histogram()
    whole.counts, whole.total = counts, sum(counts.values())
    assert h.Histogram.decode(whole.encode()).counts == counts


def test_the_reference_implementation_reads_it_and_we_read_its() -> None:
    hdrh = pytest.importorskip("hdrh.histogram", reason="pip install hdrhistogram")
    source = random.Random(1)
    recorded = [int(source.lognormvariate(9, 1)) + 1 for _ in range(5000)] + [1, 2047, 2048, 1 << 39]
    found = filled(recorded)
    reference = hdrh.HdrHistogram(1, h.HIGHEST, h.DIGITS)
    for value in recorded:
        reference.record_value(value)
    theirs = hdrh.HdrHistogram.decode(found.encode())
    assert theirs.get_total_count() == len(recorded)
    for percent in (50, 90, 99, 99.9):
        assert theirs.get_value_at_percentile(percent) == reference.get_value_at_percentile(percent)
        assert found.percentile(percent) == reference.get_value_at_percentile(percent)
    assert h.Histogram.decode(reference.encode().decode()).counts == found.counts


def test_too_large_values_count_as_the_highest_and_are_counted() -> None:
    native = lib.kvmpy_histogram_new()
    lib.kvmpy_histogram_record(native, 1 << 50)
    assert (native.max, native.clipped, native.total) == (h.HIGHEST, 1, 1)
    lib.kvmpy_histogram_free(native)


def test_c_and_python_add_alike() -> None:
    first, second = filled([5, 700, 90_000]), filled([3, 700])
    first.add(second)
    together = filled([5, 700, 90_000, 3, 700])
    assert (first.counts, first.total, first.sum, first.min, first.max) == (
        together.counts, together.total, together.sum, together.min, together.max,
    )  # fmt: skip
    python = h.Histogram()
    for value in (5, 700, 90_000, 3, 700):
        python.record(value)
    assert python.counts == together.counts and python.summary() == together.summary()
    into, more = lib.kvmpy_histogram_new(), lib.kvmpy_histogram_new()
    lib.kvmpy_histogram_record(into, 10)
    lib.kvmpy_histogram_record(more, 4)
    lib.kvmpy_histogram_add(into, more)
    assert (into.total, into.min, into.max, into.sum) == (2, 4, 10, 14)
    for native in (into, more):
        lib.kvmpy_histogram_free(native)


def test_pairs_say_how_many_there_are_even_without_room() -> None:
    native = lib.kvmpy_histogram_new()
    for value in (1, 5000, 1 << 30):
        lib.kvmpy_histogram_record(native, value)
    indices, counts = ffi.new("uint32_t[]", 2), ffi.new("uint64_t[]", 2)
    assert lib.kvmpy_histogram_pairs(native, indices, counts, 2) == 3
    lib.kvmpy_histogram_free(native)


@pytest.mark.parametrize(
    "text",
    ["", "xyz", "HISTF", base64.b64encode(b"\x1c\x84\x93\x14\0\0\0\x04abcd").decode(),
     base64.b64encode(b"\x1c\x84\x93\x14\0\0\0\x20" + zlib.compress(b"short")).decode()],
)  # fmt: skip
def test_damage_is_told(text: str) -> None:
    with pytest.raises(h.HistogramError):
        h.Histogram.decode(text)


def test_more_counters_than_there_are() -> None:
    whole = h.Histogram()
    whole.counts = {h.LENGTH + 3: 1}
    whole.total = 1
    with pytest.raises(h.HistogramError, match="more than"):
        h.Histogram.decode(whole.encode())
