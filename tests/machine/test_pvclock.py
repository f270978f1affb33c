"""pvclock as guests read it: KVM's own, and kvmpy's where the engine has none."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmpy._native import lib
from kvmpy.devices.pvclock import ENTRY, elapsed
from kvmpy.errors import KvmpyError
from kvmpy.machine.machine import Machine
from kvmpy.machine.paravirt import Paravirt
from kvmpy.machine.pc import Pc
from kvmpy.machine.pvclock import Clocks

ROOT = Path(__file__).resolve().parents[2]
LONG_ENOUGH = 100.0
Machines = Callable[..., Machine]
pytestmark = pytest.mark.kvmpy(timeout=2 * LONG_ENOUGH)

METADATA = """
[clock]
summary = "reads the clock whenever it is asked to"
mode = "long"
format = "flat"
load_address = 0x100000
ends = "never"
"""
# Ring 3 reads the clock between two TSCs; ring 0 rings at port 0x80, and lets it go on.
CODE = """
        .include "lib/pvclock.inc"
        .include "lib/ring3.inc"
        .include "lib/end.inc"
        .code64
        .globl  _start
        .text
_start: mov     $kernel_stack_top, %esp
        call    pvclock_setup
        jc      1f
        mov     $VECTOR_UD, %edi
        mov     $asked, %esi
        call    set_gate
        call    ring3_setup
        mov     $program, %edi
        mov     $user_stack_top, %esi
        jmp     enter_ring3
1:      exit    1
asked:  out     %al, $0x80
        addq    $2, FRAME_RIP(%rsp)
        iretq
program:
        mov     $100, %ebx              # the first readings are slow: caches, page tables
2:      rdtsc
        mov     %eax, %r8d
        mov     %edx, %r9d
        call    pvclock_read
        mov     %rax, 0x80010
        rdtsc
        mov     %r8d, 0x80000
        mov     %r9d, 0x80004
        mov     %eax, 0x80008
        mov     %edx, 0x8000c
        dec     %ebx
        jnz     2b
        ud2
        jmp     program
pvclock_routines
ring3_support
"""


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    if shutil.which("gcc") is None:
        pytest.skip("the guest is assembled with gcc, which isn't installed")
    spec = importlib.util.spec_from_file_location("kvmpy_images_for_pvclock", ROOT / "native" / "images.py")
    assert spec is not None and spec.loader is not None
    images = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(images)
    shutil.copytree(ROOT / "guest_images" / "lib", tmp_path / "lib")
    (tmp_path / "images.toml").write_text(METADATA)
    (tmp_path / "clock.s").write_text(CODE)
    images.build_images(tmp_path, tmp_path / "out")
    return (tmp_path / "out" / "clock.bin").read_bytes()


def host_moment() -> tuple[int, int]:
    """(TSC, CLOCK_MONOTONIC_RAW) read as closely together as can be."""
    best, tightest = (0, 0), 1 << 62
    for _ in range(20):
        before = lib.kvmpy_measure_tsc()
        raw = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        after = lib.kvmpy_measure_tsc()
        if after - before < tightest:
            tightest, best = after - before, ((before + after) // 2, raw)
    return best


class Samples:
    """What the guest read, each time it was asked, between moments of the host's clock."""

    def __init__(self, machine: Machine, image: bytes, seconds: float, pause: float) -> None:
        self.machine = machine
        self.seconds, self.pause = seconds, pause
        self.readings: list[tuple[float, int]] = []
        self.moments: list[tuple[int, int]] = []
        self.began = time.monotonic()
        machine.ports.attach(0x80, 1, self, "clock")
        machine.load(image, mode="long", format="flat", load_address=0x100000)
        self.result = machine.run(timeout=seconds + LONG_ENOUGH)

    def write(self, offset: int, value: int, size: int) -> None:
        before, after, ns = struct.unpack("<QQQ", self.machine.memory.read(0x80000, 24))
        self.readings.append(((before + after) / 2, ns))
        self.moments.append(host_moment())
        if time.monotonic() - self.began > self.seconds:
            self.machine.stop()
        time.sleep(self.pause)

    def errors(self) -> list[float]:
        """Nanoseconds that the guest's clock has gained on the host's since the first reading.

        Both are seen at the guest's TSC; the host's clock there lies on the line through its own two nearest moments.
        """
        found = []
        for at, (tsc, ns) in enumerate(self.readings):
            first, second = self.moments[max(at - 1, 0)], self.moments[max(at, 1)]
            slope = (second[1] - first[1]) / (second[0] - first[0])
            found.append(ns - (first[1] + (tsc - first[0]) * slope))
        return [error - found[0] for error in found]


def test_kvms_clock_is_the_hosts_within_a_microsecond_and_drift(machines: Machines, image: bytes) -> None:
    machine = machines(memory="4M")
    if not machine.engine.in_kernel:
        pytest.skip(f"engine {machine.engine.name}: its clock is kvmpy's own")
    offset = machine.cpus[0].msrs["TSC"] - lib.kvmpy_measure_tsc()
    if abs(offset) > 1 << 30:
        pytest.skip("the guest's TSC isn't the host's: the clocks can't be read at the same moment")
    samples = Samples(machine, image, seconds=10, pause=0.1)
    errors = samples.errors()
    span = (samples.moments[-1][1] - samples.moments[0][1]) / 1e9
    drift = errors[-1] / span  # ns a second: thousandths of a ppm
    print(
        f"{len(errors)} readings in {span:.1f} s, drift {drift / 1000:.3f} ppm, worst {max(map(abs, errors)):.0f} ns"
    )
    assert span >= 9
    assert abs(drift) < 100_000  # 100 ppm: an NTP client may turn the host's clock that far
    straight = [
        abs(error - drift * (moment[1] - samples.moments[0][1]) / 1e9)
        for error, moment in zip(errors, samples.moments, strict=True)
    ]
    assert sorted(straight)[len(straight) * 9 // 10] < 1000, straight


class SetBack:
    """Asks a guest for the time, sets its clock ahead, and then back by a second each time, as a host may that has no
    steady counter; ``flags`` are what it says of its clock. ``times`` is what the guest has read."""

    def __init__(self, machine: Machine, image: bytes, flags: int) -> None:
        self.machine, self.flags = machine, flags
        self.times: list[int] = []
        self.clock = Clocks(machine).clocks[0]
        machine.ports.attach(0x80, 1, self, "clock")
        machine.load(image, mode="long", format="flat", load_address=0x100000)
        machine.run(timeout=LONG_ENOUGH)

    def write(self, offset: int, value: int, size: int) -> None:
        self.times.append(struct.unpack("<Q", self.machine.memory.read(0x80010, 8))[0])
        gpa = self.clock.system_time & ~1
        version, pad, tsc, ns, *speed, _ = ENTRY.unpack(self.machine.memory.read(gpa, ENTRY.size))
        ns += 100_000_000_000 if len(self.times) == 1 else -1_000_000_000
        moment = (version + 2, pad, tsc, ns, *speed, self.flags)
        self.machine.memory.write(gpa, ENTRY.pack(*moment))
        if len(self.times) == 5:
            self.machine.stop()


@pytest.mark.parametrize(("flags", "steady"), [(0, True), (1, False)])
def test_a_clock_that_is_set_back_stands_still_unless_it_says_that_it_never_is(
    machines: Machines, image: bytes, flags: int, steady: bool
) -> None:
    machine = machines(memory="4M")
    try:
        times = SetBack(machine, image, flags).times
    except KvmpyError as error:
        pytest.skip(f"engine {machine.engine.name}: {error}")
    assert len(times) == 5
    assert (times == sorted(times)) is steady, times


@pytest.mark.parametrize("readings", [1_000_000])
def test_a_million_readings_never_go_back(machines: Machines, readings: int) -> None:
    machine, output = machines(memory="4M"), bytearray()
    Pc(machine, output.extend)
    Paravirt(machine, output.extend)
    machine.load("time-pvclock")
    machine.cpus[0].regs.rdi = readings
    result = machine.run(timeout=LONG_ENOUGH)
    print(f"{machine.engine.name}: {result.wall / readings * 1e9:.0f} ns a reading")
    assert (result.reason, result.status, bytes(output)) == ("exit", 0, b"steady\n")


def test_kvmpys_own_clock(machines: Machines, image: bytes) -> None:
    """Also on KVM: its MSRs are taken to user space, and the same clock is served from there."""
    machine = machines(memory="4M")
    try:
        clocks = Clocks(machine)
    except KvmpyError as error:
        pytest.skip(f"engine {machine.engine.name}: {error}")
    samples = Samples(machine, image, seconds=0.5, pause=0.01)
    assert clocks.clocks[0].enabled
    assert len(samples.readings) > 5
    times = [ns for _, ns in samples.readings]
    assert times == sorted(times) and times[0] > 0
    worst = max(map(abs, samples.errors()))
    print(f"{machine.engine.name}: {clocks.hz} Hz, off by {worst:.0f} ns after half a second")
    assert worst < 500_000  # a thousandth, should the TSC's speed have to be measured
    gpa = clocks.clocks[0].system_time & ~1
    version, _, then, system, multiplier, shift, _ = ENTRY.unpack(machine.memory.read(gpa, ENTRY.size))
    assert version % 2 == 0
    tsc, ns = clocks._moment(machine.cpus[0])
    assert abs(system + elapsed(tsc - then, multiplier, shift) - ns) < 2_000_000
    before = machine.memory.read(gpa, ENTRY.size)
    clocks.refresh()
    assert machine.memory.read(gpa, ENTRY.size) != before


def test_cpuid_says_that_there_is_one(machines: Machines) -> None:
    machine = machines(memory="4M")
    Paravirt(machine, lambda text: None)
    table = machine.cpus[0].cpuid
    assert table.hypervisor == "KVMKVMKVM"
    assert table.get(0x40000001).eax & 1 << 3
