"""One kind on one engine, set up and ready to be measured: a trial gives a round of samples at a time."""

from __future__ import annotations

import errno
import os

from kvmpy._native import ffi, lib
from kvmpy.errors import EngineError, KvmError, KvmpyError
from kvmpy.lab import guests
from kvmpy.lab.histogram import Histogram
from kvmpy.machine.machine import Machine
from kvmpy.machine.rules import Native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from kvmpy.lab.guests import LabImage

PARTS = ("out", "handler", "in")
"""What an interval with one exit to user space splits into."""
CHUNK = 32
"""Samples between two looks at the clock and at the scheduler's counter."""
PATIENCE = 3.0
"""Seconds beyond its time after which a guest that gives no samples is given up."""
FOREVER = (1 << 64) - 1
COLD, WARM = 16, 1
"""Chunks that are thrown away at most before the first is recorded."""


class Unavailable(KvmpyError):
    """This host or engine can't do it; the message says why."""


class Round:
    """What one round gave, in TSC cycles.

    ``total``        the samples
    ``parts``        their split, where exactly one exit to user space lay within: PARTS
    ``interrupted``  samples apart: of chunks in which the scheduler took the CPU away
    ``counters``     of the collector (native/collect.h), by name
    ``stats``        the kernel's own counters of VM and vCPU, what they grew by
    """

    COUNTERS = ("chunks", "chunks_interrupted", "chunks_warming", "without_exit", "with_more", "backwards")

    def __init__(self) -> None:
        self.total = Histogram()
        self.interrupted = Histogram()
        self.parts = {name: Histogram() for name in PARTS}
        self.counters = dict.fromkeys(self.COUNTERS, 0)
        self.stats: dict[str, int] = {}

    def add(self, other: Round) -> None:
        """What came after is part of the same round."""
        self.total.add(other.total)
        self.interrupted.add(other.interrupted)
        for name in PARTS:
            self.parts[name].add(other.parts[name])
        for into, values in ((self.counters, other.counters), (self.stats, other.stats)):
            for key, value in values.items():
                into[key] = into.get(key, 0) + value

    @classmethod
    def of(cls, collector: Any) -> Round:
        """What a ``struct kvmpy_collector *`` holds."""
        self = cls()
        self.total.add_native(collector.total)
        self.interrupted.add_native(collector.interrupted)
        for name in PARTS:
            self.parts[name].add_native(getattr(collector, name))
        for name in cls.COUNTERS:
            self.counters[name] = int(getattr(collector, name))
        return self


class Bench:
    """What all trials of a run share.

    ``engine``     its name
    ``technique``  of the host: "VT-x", "AMD-V", "PVM", "none"
    ``image``      the guests, with the time stamp that suits the host
    ``hz``         TSC cycles in a second
    ``cpu``        the CPU the measured thread is pinned to, None: it isn't
    ``other_cpu``  for a second thread, None: no other CPU is allowed
    ``spin``       cycles that the C handler of *_user kinds spins: a handicap, to try what a comparison finds
    """

    def __init__(
        self,
        engine: str,
        technique: str,
        image: LabImage,
        hz: float,
        cpu: int | None = None,
        other_cpu: int | None = None,
        spin: int = 0,
    ) -> None:
        self.engine = engine
        self.technique = technique
        self.image = image
        self.hz = hz
        self.cpu = cpu
        self.other_cpu = other_cpu
        self.spin = ffi.new("uint64_t *", spin)

    def tsc(self) -> int:
        """Now."""
        return int(lib.kvmpy_measure_tsc())


class Collector:
    """Owns a ``struct kvmpy_collector *``."""

    def __init__(self, chunk: int) -> None:
        self.native: Any = lib.kvmpy_collector_new(chunk)
        if self.native == ffi.NULL:
            raise MemoryError("no memory for histograms")

    def close(self) -> None:
        """Frees it."""
        lib.kvmpy_collector_free(self.native)
        self.native = ffi.NULL


class _Control:
    """The owner in Python of the ports CONTROL and INJECT: C passes on to it when the round is over, or has failed."""

    name = "laboratory"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def write(self, offset: int, value: int, size: int) -> None:
        self._machine.stop()


class _Open:
    """What has to be ended; a context manager that does."""

    def __init__(self) -> None:
        self.closing: list[Callable[[], object]] = []

    def close(self) -> None:
        """Ends the machine and what the kind set up beside it, the last one first."""
        while self.closing:
            self.closing.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


class GuestTrial(_Open):
    """A machine whose guest loops over one kind of exit.

    ``settings`` are a guest kind's (kvmpy.lab.kinds.Guest). A context manager; Unavailable when it can't be set up.
    """

    def __init__(self, bench: Bench, settings: Any) -> None:
        super().__init__()
        self.bench = bench
        self.settings = settings
        self.keep: list[Any] = []
        self._collector = Collector(settings.chunk)
        self.closing.append(self._collector.close)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        settings = self.settings
        try:
            self.machine = Machine(
                settings.memory,
                settings.cpus,
                self.bench.engine,
                irqchip=self._irqchip(),
                backing=settings.backing,
                rescue=False,  # what KVM does is measured, not what is done in its place
            )
            self.closing.append(self.machine.close)
            self._load()
            self._prepare()
            if settings.setup is not None:
                settings.setup(self)
        except (EngineError, KvmError) as error:
            raise Unavailable(str(error)) from error

    def _irqchip(self) -> str:
        """Where the interrupt controllers are: in the kernel, or for an engine that isn't there, in user space."""
        wanted: str = self.settings.irqchip
        return "user" if wanted == "kernel" and self.bench.engine != "kvm" else wanted

    def _load(self) -> None:
        settings, machine, image = self.settings, self.machine, self.bench.image
        machine.memory.write(guests.IMAGE_AT, image.data)
        entries = [settings.entry, *settings.others]
        handler = [settings.handler, *[settings.other_handler] * len(settings.others)]
        for index, entry in enumerate(entries):
            size = min(machine.memory.size, guests.REGION_AT)
            state = image.state(
                entry, size, settings.chunk, settings.r14, settings.r15, handler[index], second=index > 0
            )
            for gpa, data in state.memory:
                machine.memory.write(gpa, data)
            machine.cpus[index].load(state)
            if index:
                machine.cpus[index].vcpu.set_mp_state(0)  # running, as after SIPI
            align_tsc(machine.cpus[index].vcpu)

    def _prepare(self) -> None:
        collector = self._collector.native
        self.measure = measure = ffi.new("struct kvmpy_measure *")
        measure.collector = collector
        samples = self.machine.memory.address(guests.SAMPLES_AT, 16 * self.settings.chunk)
        collector.samples = ffi.cast("uint64_t *", samples)
        owner = _Control(self.machine)
        rule = Native(lib.kvmpy_measure_control_address(), measure)
        control = self.machine.ports.attach(guests.CONTROL, 2, owner, "laboratory", rule)
        control.place = "c"

    def round(self, seconds: float, chunks: int = FOREVER, warm: bool = False) -> Round:
        """Measures for that long, or until that many chunks are recorded, after some that are thrown away: until they
        are steady, or, when the trial is ``warm`` from a moment before, one.

        Raises Unavailable if nothing comes.
        """
        measure, bench = self.measure, self.bench
        measure.collector.warm_most = WARM if warm else COLD
        lib.kvmpy_measure_start(measure, self.machine.cpus[0].native)
        try:
            measure.deadline = bench.tsc() + int(seconds * bench.hz)
            measure.most = chunks
            result = self.machine.run(timeout=seconds + PATIENCE)
        finally:
            lib.kvmpy_measure_stop(measure)
        if measure.error:
            raise Unavailable(f"the host refuses what the kind needs: {os.strerror(measure.error)}")
        if result.reason != "stopped":
            what = result.detail or result.reason
            if result.reason == "timeout":
                what = f"no samples within {seconds + PATIENCE:.1f} seconds"
            raise Unavailable(f"the guest can't go on: {what}")
        return Round.of(measure.collector)

    def stats(self) -> dict[str, int]:
        """The kernel's cumulative counters (KVM_GET_STATS_FD) of the VM and its first vCPU; {} where it has none."""
        found: dict[str, int] = {}
        if self.machine.engine.name != "kvm":
            return found
        for owner in (self.machine.vm, self.machine.cpus[0].vcpu):
            try:
                with owner.get_stats() as stats:
                    values = stats.read()
                    plain = [counter.name for counter in stats.counters if counter.kind == "cumulative"]
            except (KvmError, OSError):
                continue
            for name in plain:
                value = values[name]
                if isinstance(value, int) and value:
                    found[name] = found.get(name, 0) + value
        return found


def align_tsc(vcpu: Any) -> bool:
    """Makes the guest's TSC the host's, so that time stamps of both are on one scale; False where that can't be asked
    for. Whether it has worked shows in the samples."""
    try:
        vcpu.set_tsc_offset(0)
    except (KvmError, AttributeError):
        return False
    return True


class FloorTrial(_Open):
    """The same exits from a bare C loop (native/floor.c): no run loop, no bus, no Python. The kvm engine's only.

    Raises Unavailable.
    """

    def __init__(self, bench: Bench, floor: Any, chunk: int = CHUNK) -> None:
        super().__init__()
        self.bench = bench
        image = ffi.from_buffer(bench.image.data)
        name = ffi.new("char[]", floor.entry.encode())
        flags = lib.KVMPY_FLOOR_IRQCHIP if floor.irqchip else 0
        setup = ffi.new(
            "struct kvmpy_floor_setup *",
            (image, len(bench.image.data), name, floor.r14, floor.r15, chunk, flags, floor.msr),
        )
        self._method = floor.method
        self._native: Any = lib.kvmpy_floor_open(setup)
        if self._native == ffi.NULL:
            raise MemoryError("no memory for the floor")
        self.closing.append(self._end)
        if self._native.failed != ffi.NULL:
            step, number = ffi.string(self._native.failed).decode(), ffi.errno
            self.close()
            raise Unavailable(f"the floor's {step}: {os.strerror(number)}")

    def stats(self) -> dict[str, int]:
        """None: the floor isn't looked into."""
        return {}

    def round(self, seconds: float, chunks: int = FOREVER, warm: bool = False) -> Round:
        """As GuestTrial's."""
        self._native.collector.warm_most = WARM if warm else COLD
        native, deadline = self._native, self.bench.tsc() + int(seconds * self.bench.hz)
        error = self._run(deadline, chunks)
        if error:
            reason = f" (exit reason {native.exit_reason})" if error == -errno.EPROTO else ""
            raise Unavailable(f"the floor: {os.strerror(-error)}{reason}")
        return Round.of(native.collector)

    def _run(self, deadline: int, chunks: int) -> int:
        native = self._native
        if self._method == "run":
            return int(lib.kvmpy_floor_run(native, deadline, chunks))
        lib.kvmpy_collector_start(native.collector)
        while True:
            if self._method == "immediate":
                error = lib.kvmpy_floor_immediate(native, CHUNK)
            else:
                error = lib.kvmpy_floor_regs(native, CHUNK, self._method == "set_regs")
            if error or native.collector.chunks >= chunks or self.bench.tsc() >= deadline:
                return int(error)

    def _end(self) -> None:
        native, self._native = self._native, ffi.NULL
        lib.kvmpy_floor_close(native)


class LoopTrial(_Open):
    """Something the host does without a guest, or to one: ``settings.start(trial)`` gives a function that does one
    chunk and records it (kvmpy.lab.host_kinds)."""

    def __init__(self, bench: Bench, settings: Any) -> None:
        super().__init__()
        self.bench = bench
        self.settings = settings
        collector = Collector(CHUNK)
        self.closing.append(collector.close)
        self.collector = collector.native
        try:
            self._chunk = settings.start(self)
        except (EngineError, KvmError) as error:
            self.close()
            raise Unavailable(str(error)) from error
        except BaseException:
            self.close()
            raise

    def stats(self) -> dict[str, int]:
        """None: several VMs may have been at it."""
        return {}

    def round(self, seconds: float, chunks: int = FOREVER, warm: bool = False) -> Round:
        """As GuestTrial's, but the first chunk alone warms up."""
        deadline = self.bench.tsc() + int(seconds * self.bench.hz)
        lib.kvmpy_collector_start(self.collector)
        self._do()
        lib.kvmpy_collector_start(self.collector)
        self.collector.chunks_warming = 1
        while True:
            self._do()
            if self.collector.chunks >= chunks or self.bench.tsc() >= deadline:
                return Round.of(self.collector)

    def _do(self) -> None:
        try:
            self._chunk()
        except (EngineError, KvmError) as error:
            raise Unavailable(str(error)) from error
