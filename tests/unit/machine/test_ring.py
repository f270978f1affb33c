"""The rings: nothing is lost without being counted, and numpy reads them as they are."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy._native import ffi, lib
from kvmpy.errors import UsageError
from kvmpy.machine.engine_stub import StubEngine, StubExit, memory_write, port_read, port_write
from kvmpy.machine.machine import Machine
from kvmpy.machine.ring import DTYPE, LIMIT, NOT_AN_ACCESS, RECORD_SIZE, Ring


def machine(*script: StubExit, repeat: int = 0, cpus: int = 1) -> Machine:
    return Machine("4K", cpus, engine=StubEngine(script, repeat=repeat))


def array(records: memoryview) -> Any:
    return numpy.frombuffer(records, dtype=DTYPE)


def test_the_dtype_is_the_structure() -> None:
    kind = numpy.dtype(DTYPE)
    assert kind.itemsize == RECORD_SIZE == ffi.sizeof("struct kvmpy_record") == 40
    for name, field in ffi.typeof("struct kvmpy_record").fields or []:
        assert (kind.fields[name][1], kind[name].itemsize) == (field.offset, ffi.sizeof(field.type.cname)), (
            name
        )


def test_a_batch_in_numpy() -> None:
    script = [port_write(0x80, b"\x01\x02"), port_read(0x81), memory_write(0x9000, b"12345678")]
    with machine(*script) as made:
        made.log(16)
        post = made.ports.drop(0x80)
        made.mmio.drop(0x9000, 8).place = "ring"
        made.run()
        records = array(made.rings[0].drain())
        assert records["address"].tolist() == [0x80, 0x81, 0x81, 0x9000, 5]
        assert records["value"].tolist() == [1, 2, 0xFF, int.from_bytes(b"12345678", "little"), 0]
        assert records["size"].tolist() == [1, 1, 1, 8, 0]
        assert records["is_write"].tolist() == [1, 1, 0, 1, 0]
        assert records["space"].tolist() == [0, 0, 0, 1, NOT_AN_ACCESS]
        assert records["range"].tolist()[:3] == [post.id, lib.KVMPY_UNOWNED, lib.KVMPY_UNOWNED]
        assert (numpy.diff(records["tsc"].astype("i8")) >= 0).all()
        assert len(made.rings[0]) == 0 and len(made.rings[0].drain()) == 0


def test_only_what_has_the_place_ring_is_logged() -> None:
    with machine(port_write(0x80, b"a"), port_write(0x81, b"b"), port_write(0x82, b"c")) as made:
        made.ports.drop(0x80)
        made.ports.drop(0x81).place = "ring"
        made.run()
        assert [record.address for record in made.records()] == [0x81]
        assert made.rings[0].capacity == 1 << 16


@pytest.mark.parametrize("capacity", [0, -1, LIMIT + 1, 1 << 40, 1 << 70])
def test_capacities_that_cant_be(capacity: int) -> None:
    message = f"a ring of {capacity} records: 1 to {LIMIT} are possible"
    with pytest.raises(UsageError, match="^" + re.escape(message)):
        Ring(capacity)
    with machine(port_read(0x80)) as made:
        made.log(4)
        with pytest.raises(UsageError, match=re.escape(message)):
            made.log(capacity)
        assert made.rings[0].capacity == 4
        made.run()
        assert len(made.records()) == 2


def test_a_mode_that_isnt_one() -> None:
    with pytest.raises(UsageError, match=r"^ring mode 'forgetful': one of counted, lossless, last$"):
        Ring(4, "forgetful")


@pytest.mark.parametrize(("asked", "made"), [(1, 1), (2, 2), (3, 4), (1000, 1024), (1 << 12, 1 << 12)])
def test_capacities_are_rounded_up(asked: int, made: int) -> None:
    ring = Ring(asked)
    assert ring.capacity == made
    ring.close()
    ring.close()


def test_counted_counts_what_it_drops() -> None:
    with machine(*[port_write(0x80, bytes([n])) for n in range(10)]) as made:
        made.log(4, everything=False)
        made.ports.drop(0x80).place = "ring"
        made.run()
        ring = made.rings[0]
        assert (len(ring), ring.dropped) == (4, 6)
        assert [record.value for record in ring.records()] == [0, 1, 2, 3]
        assert (len(ring), ring.dropped) == (0, 6)


def test_last_forgets_the_oldest_and_says_how_many() -> None:
    with machine(*[port_write(0x80, bytes([n])) for n in range(10)], repeat=1) as made:
        made.log(4, "last", everything=False)
        made.ports.drop(0x80).place = "ring"
        made.run(max_exits=10)
        ring = made.rings[0]
        assert (len(ring), ring.dropped) == (4, 6)
        assert [record.value for record in ring.records()] == [6, 7, 8, 9]
        made.run(max_exits=2)
        assert [record.value for record in ring.records()] == [0, 1]
        assert ring.dropped == 6
        made.run()
        assert (len(ring), ring.dropped) == (4, 6 + 4)


def test_lossless_stops_the_vcpu_until_it_is_drained() -> None:
    with machine(*[port_write(0x80, bytes([n])) for n in range(10)]) as made:
        made.log(4, "lossless", everything=False)
        counted = made.ports.drop(0x80)
        counted.place = "ring"
        seen = []
        for batch in (4, 4):
            assert made.run().reason == "ring-full"
            assert made.run().reason == "ring-full"  # nothing was drained
            assert len(made.rings[0]) == batch
            seen += [record.value for record in made.rings[0].records()]
        assert made.run().reason == "halt"
        seen += [record.value for record in made.records()]
        assert seen == list(range(10))
        assert (made.rings[0].dropped, counted.count) == (0, 10)


def test_lossless_holds_back_any_exit_when_all_are_logged() -> None:
    with machine(port_write(0x80, b"a")) as made:
        made.log(1, "lossless")
        assert made.run().reason == "ring-full"
        assert [record.address for record in made.records()] == [0x80]
        result = made.run()
        assert (result.reason, result.exits) == ("halt", {})
        assert [record.space for record in made.records()] == [NOT_AN_ACCESS]
        assert made.rings[0].dropped == 0


def test_a_string_longer_than_a_lossless_ring() -> None:
    data = bytes(range(100))
    with machine(port_write(0x80, data, 1)) as made:
        batches: list[list[int]] = []
        sink = lambda cpu: batches.append([record.value for record in made.rings[cpu.index].records()])  # noqa: E731
        made.log(8, "lossless", everything=False, sink=sink)
        made.ports.drop(0x80).place = "ring"
        assert made.run().reason == "halt"
        last = [record.value for record in made.records()]
        assert bytes(value for batch in [*batches, last] for value in batch) == data
        assert {len(batch) for batch in batches} == {8}


def test_a_sink_that_raises() -> None:
    with machine(*[port_write(0x80, bytes([n])) for n in range(3)]) as made:
        made.log(1, "lossless", sink=lambda cpu: 1 // 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                made.run()
        assert len(made.records()) == 1


def test_drain_takes_as_many_as_it_is_asked_for() -> None:
    with machine(*[port_write(0x80, bytes([n])) for n in range(6)]) as made:
        made.log(8, everything=False)
        made.ports.drop(0x80).place = "ring"
        made.run()
        ring = made.rings[0]
        assert array(ring.drain(0)).size == 0
        assert array(ring.drain(4))["value"].tolist() == [0, 1, 2, 3]
        assert array(ring.drain(100))["value"].tolist() == [4, 5]


@pytest.mark.threads
def test_each_vcpu_has_its_own() -> None:
    with machine(port_write(0x80, b"a"), repeat=99, cpus=3) as made:
        for cpu in made.cpus:
            cpu.parked = False
        made.log(1 << 10, everything=False)
        made.ports.drop(0x80).place = "ring"
        made.run()
        for index, ring in enumerate(made.rings):
            assert set(array(ring.drain())["vcpu"].tolist()) == {index}
        assert made.ports[0x80].count == 300


def test_a_ring_that_is_closed_with_its_machine() -> None:
    with machine(port_write(0x80, b"a")) as made:
        made.log(4)
        made.run()
    ring = made.rings[0]
    for use in (ring.drain, lambda: len(ring), lambda: ring.dropped, made.records):
        with pytest.raises(UsageError, match="the ring is closed: drain it before its machine is"):
            use()


def test_new_rings_in_place_of_old_ones() -> None:
    with machine(*[port_write(0x80, bytes([n])) for n in range(4)]) as made:
        made.log(4)
        made.run(max_exits=2)
        made.log(8)
        made.run()
        assert [record.value for record in made.records() if record.space == 0] == [2, 3]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["counted", "last"]),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=12),
)
def test_a_ring_is_a_bounded_queue(mode: str, capacity: int, steps: list[tuple[int, int]]) -> None:
    """Writes and drains in any order, against a deque."""
    total = sum(writes for writes, _ in steps)
    with machine(*[port_write(0x80, n.to_bytes(4, "little")) for n in range(total)]) as made:
        made.log(capacity, mode, everything=False)
        made.ports.drop(0x80, 4).place = "ring"
        ring, model, dropped, at = made.rings[0], deque[int](), 0, 0
        for writes, drains in steps:
            assert made.run(max_exits=writes).reason == "max-exits"
            wanted, at = range(at, at + writes), at + writes
            for value in wanted:
                if len(model) == ring.capacity and mode == "last":
                    model.popleft()
                    dropped += 1
                if len(model) < ring.capacity:
                    model.append(value)
                else:
                    dropped += 1
            assert (len(ring), ring.dropped) == (len(model), dropped)
            taken = array(ring.drain(drains))["value"].tolist()
            assert taken == [model.popleft() for _ in range(min(drains, len(model)))]


@pytest.mark.threads
def test_draining_while_the_vcpu_writes() -> None:
    """One thread writes, one drains: everything arrives once and in order, however they meet."""
    count = 100_000
    with machine(*[port_write(0x80, bytes([n])) for n in range(250)], repeat=count // 250 - 1) as made:
        made.log(1 << 11, "lossless", everything=False, sink=lambda cpu: time.sleep(0.0001))
        made.ports.drop(0x80).place = "ring"
        over, seen = threading.Event(), []

        def reader() -> None:
            while not over.is_set() or len(made.rings[0]):
                seen.append(array(made.rings[0].drain())["value"])
                time.sleep(0)

        thread = threading.Thread(target=reader)
        thread.start()
        try:
            assert made.run(timeout=60).reason == "halt"
        finally:
            over.set()
            thread.join()
        values = numpy.concatenate(seen)
        assert values.size == count
        assert (values == numpy.tile(numpy.arange(250), count // 250)).all()
        assert made.rings[0].dropped == 0
