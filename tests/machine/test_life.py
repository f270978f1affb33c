"""A machine's life: how runs begin and end, from any thread, and that it can go on afterwards."""

from __future__ import annotations

import gc
import math
import os
import re
import resource
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvmpy.errors import UsageError
from kvmpy.machine.machine import Machine
from kvmpy.x86.entry import long_mode

Machines = Callable[..., Machine]

pytestmark = pytest.mark.kvmpy(memory="1M", mode="real", trace=False, timeout=math.inf)

HLT = b"\xf4"
SPIN = b"\xeb\xfe"  # jmp .
STORM = b"\xe6\x80\xeb\xfc"  # 1: out %al, $0x80; jmp 1b
HALTS = b"\xf4\x40\xeb\xfc"  # 1: hlt; inc %ax; jmp 1b
LONG_ENOUGH = 60.0  # seconds; only what hangs takes that long
LATE = 0.5  # seconds a busy machine may be late; the figures that matter are printed


class Trouble(Exception):
    pass


def says(what: str) -> pytest.RaisesExc[UsageError]:
    return pytest.raises(UsageError, match=re.escape(what))


def in_ring_3(machine: Machine, code: bytes) -> None:
    """Code that a host of whatever kind runs natively."""
    entry = long_mode(0x100000, memory_size=machine.memory.size, ring=3)
    machine.memory.write(0x100000, code)
    for gpa, data in entry.memory:
        machine.memory.write(gpa, data)
    machine.cpus[0].load(entry)


@contextmanager
def while_it_runs(machine: Machine, action: Callable[[], object]) -> Iterator[None]:
    """The action happens on another thread, a moment after run() began."""

    def act() -> None:
        while not machine.running:
            time.sleep(0.001)
        time.sleep(0.01)
        action()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# Closing


def test_closing(machines: Machines) -> None:
    with machines(HLT) as machine:
        assert machine.run().reason == "halt"
    assert "closed" in repr(machine)
    machine.close()
    with says("the machine is closed: it can't run any more"):
        machine.run()
    with says("its machine is closed, it has no registers any more"):
        _ = machine.cpus[0].regs.rip
    with says("its machine is closed"):
        _ = machine.cpus[0].exits
    machine.stop()


@pytest.mark.kvmpy(leaks=True)
def test_a_forgotten_machine_is_a_resource_warning(kvmpy_engine: str, machines: Machines) -> None:
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()  # one halfway would put the machine behind its parts, which then warn too
    try:
        with pytest.warns(
            ResourceWarning, match=f"<Machine {kvmpy_engine}, 1 vCPU, 1 MiB, stopped> was never closed"
        ):
            machine: Machine | None = Machine("1M", engine=kvmpy_engine)
            assert machine is not None
            del machine
            gc.collect()
    finally:
        gc.enable()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the engine's own, if it was the first


def test_a_running_machine_is_neither_closed_nor_run(machines: Machines) -> None:
    machine = machines(STORM)
    refused = []

    @machine.ports.on_write(0x80)
    def write(offset: int, value: int, size: int) -> None:
        for action in (machine.close, machine.run):
            try:
                action()
            except UsageError as error:
                refused.append(str(error))
        machine.stop()

    assert machine.run(timeout=LONG_ENOUGH).reason == "stopped"
    assert refused == [
        "the machine is running: stop() it before it is closed",
        "the machine is running already, in another thread or below this handler",
    ]
    assert not machine.running


def test_a_handler_cant_run_another_machine_on_its_thread(machines: Machines) -> None:
    machine, other = machines(STORM), machines(HLT)

    @machine.ports.on_write(0x80)
    def write(offset: int, value: int, size: int) -> None:
        with says("a handler of another machine runs on this thread: run this one on its own"):
            other.run()
        machine.stop()

    assert machine.run(timeout=LONG_ENOUGH).reason == "stopped"
    assert other.run().reason == "halt"


@pytest.mark.threads
def test_stop_and_close_at_the_same_time(machines: Machines) -> None:
    """stop() from a watchdog that comes late mustn't meet a machine that is being freed."""
    over = threading.Event()
    current: list[Machine] = []

    def watchdog() -> None:
        while not over.is_set():
            for machine in current[-1:]:
                machine.stop()

    thread = threading.Thread(target=watchdog)
    thread.start()
    try:
        for _ in range(100):
            with machines(HLT) as machine:
                current.append(machine)
                assert machine.run(timeout=LONG_ENOUGH).reason in ("halt", "stopped")
    finally:
        over.set()
        thread.join()


# Endings


@pytest.mark.parametrize("timeout", [0, -1, 1e9, float("nan"), float("inf")])
def test_timeouts_that_cant_be(machines: Machines, timeout: float) -> None:
    with says("it must be more than 0 and less than 1e9"):
        machines(HLT).run(timeout=timeout)


@pytest.mark.parametrize("max_exits", [0, -1, 1 << 63])
def test_numbers_of_exits_that_cant_be(machines: Machines, max_exits: int) -> None:
    with says("it must be at least 1"):
        machines(HLT).run(max_exits=max_exits)


@pytest.mark.parametrize("guest", ["spin", "ring 3", "exits in Python", "exits in C", "two vCPUs"])
def test_a_timeout_is_kept(machines: Machines, guest: str, capsys: pytest.CaptureFixture[str]) -> None:
    machine = machines(
        STORM if "exits" in guest else SPIN, memory="2M", cpus=2 if guest == "two vCPUs" else 1
    )
    if guest == "ring 3":
        in_ring_3(machine, SPIN)
    if guest == "exits in Python":
        machine.ports.on_write(0x80)(lambda offset, value, size: None)
    elif guest == "exits in C":
        machine.ports.drop(0x80)
    late = []
    for _ in range(7):
        began = time.monotonic()
        assert machine.run(timeout=0.05).reason == "timeout"
        late.append(time.monotonic() - began - 0.05)
    with capsys.disabled():
        print(
            f" [{guest}: {statistics.median(late) * 1000:.2f} ms late, {max(late) * 1000:.2f} at most]",
            end="",
        )
    assert min(late) >= 0
    assert statistics.median(late) < 0.03


def test_so_many_exits_and_no_more(machines: Machines) -> None:
    machine = machines(STORM)
    seen = []
    machine.ports.on_write(0x80)(lambda offset, value, size: seen.append(value))
    for exits in (1, 10, 500):
        seen.clear()
        result = machine.run(max_exits=exits)
        assert (result.reason, result.exits, len(seen)) == ("max-exits", {"IO": exits}, exits)
    machine.ports.detach(machine.ports[0x80])
    machine.ports.drop(0x80)
    assert machine.run(max_exits=1000).exits == {"IO": 1000}


def test_until_an_exit_of_a_kind(machines: Machines) -> None:
    machine = machines(b"\xe6\x80\xe6\x80\xf4\xeb\xf9")  # 1: out; out; hlt; jmp 1b
    result = machine.run(until=["IO"], timeout=LONG_ENOUGH)
    assert result.exits == {"IO": 1}
    assert machine.run(until=["HLT"], timeout=LONG_ENOUGH).exits == {"IO": 1, "HLT": 1}


@pytest.mark.threads
@pytest.mark.parametrize("code", [SPIN, STORM])
@pytest.mark.parametrize("cpus", [1, 2])
def test_stop_from_another_thread(machines: Machines, code: bytes, cpus: int) -> None:
    machine = machines(code, cpus=cpus)
    for _ in range(3):
        with while_it_runs(machine, lambda: machine.stop(7)):
            result = machine.run(timeout=LONG_ENOUGH)
        assert (result.reason, result.status) == ("stopped", 7)


@pytest.mark.threads
def test_a_kick_whose_signal_could_not_be_sent_leaves_the_way_to_the_next(machines: Machines) -> None:
    machine = machines(SPIN)
    limits = resource.getrlimit(resource.RLIMIT_SIGPENDING)

    def stop_twice() -> None:
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, limits[1]))
        try:
            machine.stop(1)
        finally:
            resource.setrlimit(resource.RLIMIT_SIGPENDING, limits)
        machine.stop(2)

    with while_it_runs(machine, stop_twice):
        result = machine.run(timeout=LONG_ENOUGH)
    assert (result.reason, result.status) == ("stopped", 1)
    assert result.wall < LONG_ENOUGH / 2


def test_stop_from_a_handler_completes_the_access(machines: Machines) -> None:
    machine = machines(b"\xe4\x80\xe6\x81\xf4")  # in $0x80, %al; out %al, $0x81; hlt
    seen = []

    @machine.ports.on_read(0x80)
    def read(offset: int, size: int) -> int:
        machine.stop(3, "exit")
        return 0x42

    machine.ports.on_write(0x81)(lambda offset, value, size: seen.append(value))
    result = machine.run()
    assert (result.reason, result.status, result.vcpu) == ("exit", 3, None)
    assert machine.cpus[0].regs.rip == 0x1002 - (machine.cpus[0].sregs.cs.base)
    assert machine.cpus[0].regs.rax & 0xFF == 0x42
    assert machine.run().reason == "halt"
    assert seen == [0x42]


def test_the_first_ending_counts(machines: Machines) -> None:
    machine = machines(STORM)

    @machine.ports.on_write(0x80)
    def write(offset: int, value: int, size: int) -> None:
        machine.stop(1, "exit")
        machine.stop(2, "reset")

    assert machine.run().status == 1


@contextmanager
def on_alarm(action: Callable[[], object], seconds: float) -> Iterator[None]:
    old = signal.signal(signal.SIGALRM, lambda number, frame: action())
    signal.setitimer(
        signal.ITIMER_REAL, seconds, seconds
    )  # again and again: the first may come before the run
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("code", [SPIN, STORM])
@pytest.mark.parametrize("cpus", [1, 2])
def test_stop_from_a_signal_handler(machines: Machines, code: bytes, cpus: int) -> None:
    machine = machines(code, cpus=cpus)
    machine.ports.on_write(0x80)(lambda offset, value, size: None)
    for _ in range(5):
        with on_alarm(lambda: machine.stop(9), 0.01):
            assert machine.run(timeout=LONG_ENOUGH).status == 9


def test_other_signals_dont_end_a_run(machines: Machines) -> None:
    machine = machines(SPIN)
    seen = []
    with on_alarm(lambda: seen.append(1), 0.01):
        assert machine.run(timeout=0.1).reason == "timeout"
    assert len(seen) > 1


@pytest.mark.parametrize("code", [SPIN, STORM])
@pytest.mark.parametrize("cpus", [1, 2])
def test_ctrl_c_reaches_the_caller_and_the_machine_goes_on(
    machines: Machines, code: bytes, cpus: int
) -> None:
    machine = machines(code, cpus=cpus)
    seen = [0]

    @machine.ports.on_write(0x80)
    def write(offset: int, value: int, size: int) -> None:
        seen[0] += 1

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    for _ in range(5):
        with while_it_runs(machine, interrupt), pytest.raises(KeyboardInterrupt):
            machine.run(timeout=LONG_ENOUGH)
        assert not machine.running
    assert machine.run(timeout=0.01).reason == "timeout"
    assert seen[0] == machine.ports[0x80].count
    assert (seen[0] > 0) == (code == STORM)


def test_the_callers_thread_looks_for_signals_that_others_got(machines: Machines) -> None:
    """Python has them handled by the main thread, and doesn't wake it up."""
    machine = machines(SPIN, cpus=2)

    def interrupt() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    began = time.monotonic()
    with while_it_runs(machine, interrupt), pytest.raises(KeyboardInterrupt):
        machine.run(timeout=LONG_ENOUGH)
    assert time.monotonic() - began < LONG_ENOUGH / 2


def test_no_access_is_lost_or_done_twice_by_ctrl_c(machines: Machines) -> None:
    """The guest counts its own accesses, and is interrupted as often as it goes."""
    machine = machines(b"\x41\xe6\x80\xeb\xfb")  # 1: inc %cx; out %al, $0x80; jmp 1b
    machine.cpus[0].regs.rcx = 0
    seen = [0]

    @machine.ports.on_write(0x80)
    def write(offset: int, value: int, size: int) -> None:
        seen[0] += 1

    for n in range(40):
        old = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + n * 0.00003)
                machine.run(timeout=LONG_ENOUGH)
        finally:
            signal.signal(signal.SIGALRM, old)
    machine.run(max_exits=1)
    assert seen[0] & 0xFFFF == machine.cpus[0].regs.rcx & 0xFFFF
    assert machine.ports[0x80].count == seen[0]


# Again


def test_again_after_a_halt(machines: Machines) -> None:
    machine = machines(HALTS)
    machine.cpus[0].regs.rax = 0
    for n in range(5):
        assert machine.run().reason == "halt"
        assert machine.cpus[0].regs.rax == n


def test_again_after_every_other_ending(machines: Machines) -> None:
    machine = machines(STORM)
    steps = iter(["stop", "raise", "reset", ""])

    @machine.ports.on_write(0x80)
    def write(offset: int, value: int, size: int) -> None:
        step = next(steps, "")
        if step == "stop":
            machine.stop()
        elif step == "reset":
            machine.stop(reason="reset")
        elif step:
            raise Trouble

    assert machine.run().reason == "stopped"
    with pytest.raises(Trouble):
        machine.run()
    assert machine.run().reason == "reset"
    assert machine.run(timeout=0.01).reason == "timeout"
    assert machine.run(max_exits=3).reason == "max-exits"
    machine.memory.write(0x1000, b"\xf4\xf4\xf4\xf4")
    assert machine.run().reason == "halt"


def test_again_after_a_crash(machines: Machines) -> None:
    machine = machines(b"\xea\x00\x00\x00\xf0", memory="64K")  # ljmp $0xf000, $0: nothing is there
    first = machine.run(timeout=LONG_ENOUGH)
    assert first.reason == "crash" and first.crash is not None
    machine.load(b"\xf4", mode="real", format="flat", load_address=0x1000)
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"


# Several


@pytest.mark.threads
def test_machines_in_threads_leave_each_other_alone(machines: Machines) -> None:
    failed: list[BaseException] = []

    def live(number: int) -> None:
        try:
            # 1: inc %cx; mov $number, %al; out %al, $0x80; cmp $500, %cx; jne 1b; hlt
            code = bytes((0x41, 0xB0, number, 0xE6, 0x80, 0x81, 0xF9, 0xF4, 0x01, 0x75, 0xF5, 0xF4))
            machine = machines(code)
            machine.cpus[0].regs.rcx = 0
            seen = []
            machine.ports.on_write(0x80)(lambda offset, value, size: seen.append(value))
            assert machine.run(timeout=0.0005).reason in ("timeout", "halt")
            assert machine.run(timeout=LONG_ENOUGH).reason == "halt" or len(seen) == 500
            assert seen == [number] * 500
            machine.close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_one_machine_after_the_other(machines: Machines) -> None:
    with machines(HALTS) as first, machines(HALTS) as second:
        first.cpus[0].regs.rax, second.cpus[0].regs.rax = 10, 20
        for n in range(3):
            assert first.run().reason == second.run().reason == "halt"
            assert (first.cpus[0].regs.rax, second.cpus[0].regs.rax) == (10 + n, 20 + n)


@pytest.mark.threads
def test_a_machine_moves_between_threads(machines: Machines) -> None:
    machine = machines(HALTS)
    machine.cpus[0].regs.rax = 0
    results: list[str] = []
    for _ in range(4):
        thread = threading.Thread(target=lambda: results.append(machine.run(timeout=LONG_ENOUGH).reason))
        thread.start()
        thread.join()
    assert results == ["halt"] * 4
    assert machine.cpus[0].regs.rax == 3


@pytest.mark.threads
def test_an_exception_stops_the_other_vcpus(machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    machine = machines(SPIN, cpus=2)
    machine.memory.write(0x2000, STORM)
    machine.cpus[1].regs.rip = machine.cpus[1].regs.rip + 0x1000
    raised = [0.0]

    @machine.ports.on_write(0x80)
    def write(offset: int, value: int, size: int) -> None:
        time.sleep(0.005)  # for the other to be in its guest
        raised[0] = time.monotonic()
        raise Trouble

    late = []
    for _ in range(7):
        with pytest.raises(Trouble) as caught:
            machine.run(timeout=LONG_ENOUGH)
        late.append(time.monotonic() - raised[0])
        assert caught.value.__notes__ == ["at 1 byte write of 0x0, port 0x80 on vCPU 1"]
    with capsys.disabled():
        print(f" [{statistics.median(late) * 1000:.2f} ms, {max(late) * 1000:.2f} at most]", end="")
    assert statistics.median(late) < 0.03
    machine.skip(1)
    with pytest.raises(Trouble):
        machine.run(timeout=LONG_ENOUGH)
    assert machine.ports[0x80].count == 1


@pytest.mark.threads
def test_two_vcpus_in_c(machines: Machines) -> None:
    """Every access of both is counted, and neither needs Python."""
    # 1: out %al, $0x80; dec %cx; jnz 1b; hlt
    machine = machines(b"\xe6\x80\x49\x75\xfb\xf4", cpus=2)
    machine.ports.count(0x80)
    for cpu in machine.cpus:
        cpu.regs.rcx = 20_000
    result = machine.run(timeout=LONG_ENOUGH)
    assert result.reason == "halt"
    assert result.exits == {"IO": 40_000, "HLT": 2}
    assert [(name, place, count) for _, name, _, _, place, count in result.ranges] == [("count", "c", 40_000)]
    assert all(cpu.exits[2] == 20_000 for cpu in machine.cpus)


@pytest.mark.threads
def test_parked_vcpus_dont_run(machines: Machines) -> None:
    machine = machines(HLT, cpus=3)
    machine.cpus[1].parked = machine.cpus[2].parked = True
    result = machine.run(timeout=LONG_ENOUGH)
    assert (result.reason, result.exits) == ("halt", {"HLT": 1})


# Halted for good


@pytest.mark.kvmpy(engine="kvm")
def test_halted_with_interrupts_off_is_the_end(machines: Machines) -> None:
    for cpus in (1, 2):
        machine = machines(b"\xfa\xf4", cpus=cpus, irqchip="kernel")  # cli; hlt
        result = machine.run(timeout=LONG_ENOUGH)
        assert (result.reason, result.status) == ("halt", 0)


@pytest.mark.kvmpy(engine="kvm")
def test_halted_with_interrupts_on_is_not(machines: Machines) -> None:
    machine = machines(b"\xfb\xf4\xeb\xfd", irqchip="kernel")  # sti; 1: hlt; jmp 1b
    assert machine.run(timeout=0.2).reason == "timeout"


@pytest.mark.threads
@pytest.mark.kvmpy(engine="kvm")
def test_one_vcpu_that_works_keeps_the_machine_alive(machines: Machines) -> None:
    machine = machines(b"\xfa\xf4", cpus=2, irqchip="kernel")
    # 1: dec %ecx; jnz 1b; mov $5, %al; out %al, $0xf4
    machine.memory.write(0x2000, b"\x66\x49\x75\xfc\xb0\x05\xe6\xf4")
    machine.cpus[1].regs.update({"rip": machine.cpus[1].regs.rip + 0x1000, "rcx": 200_000})
    machine.ports.on_write(0xF4)(lambda offset, value, size: machine.stop(value, "exit"))
    result = machine.run(timeout=LONG_ENOUGH)
    assert (result.reason, result.status) == ("exit", 5)


# Results


def test_what_a_result_says(machines: Machines) -> None:
    machine = machines(b"\xe6\x80\xe6\x81\xe4\x82\xf4")  # out $0x80; out $0x81; in $0x82; hlt
    machine.ports.drop(0x80, name="post")
    machine.ports.on_write(0x81)(lambda offset, value, size: None)
    result = machine.run()
    assert (result.reason, result.status, result.vcpu) == ("halt", 0, 0)
    assert result.exits == {"IO": 3, "HLT": 1}
    assert result.ranges == [
        ("port", "post", 0x80, 0x80, "c", 1),
        ("port", "<lambda>", 0x81, 0x81, "python", 1),
    ]
    assert result.unowned == 1
    assert 0 < result.wall < LONG_ENOUGH
    assert 0 <= result.cpu < LONG_ENOUGH
    assert result.peak_memory > 1 << 20
    assert repr(result).startswith("<Result halt status=0, 4 exits in ")


def test_cpu_time_is_that_of_the_vcpus(machines: Machines) -> None:
    machine = machines(SPIN)
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(1000))

    thread = threading.Thread(target=burn)
    thread.start()
    try:
        result: Any = machine.run(timeout=0.2)
    finally:
        over.set()
        thread.join()
    assert result.cpu <= result.wall * 1.1
