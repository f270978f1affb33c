"""kvmpy.machine.hypercalls: the convention, on a machine whose guest is only played."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmpy.errors import BusError, DeviceError, GuestMemoryError, UsageError
from kvmpy.machine.engine_stub import StubEngine, port_write
from kvmpy.machine.hypercalls import (
    DOORBELL,
    KVM_E2BIG,
    KVM_EFAULT,
    KVM_EINVAL,
    KVM_ENOSYS,
    KVM_EPERM,
    Call,
    Hypercalls,
    Refused,
)
from kvmpy.machine.machine import Machine

MEMORY = 1 << 20
NONE = (0, 0, 0, 0)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(MEMORY, engine=StubEngine([port_write(DOORBELL, b"\0")])) as made:
        yield made


def registry(machine: Machine) -> Hypercalls:
    assert machine.hypercall_registry is not None
    return machine.hypercall_registry


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def test_arguments_in_and_answer_out(machine: Machine) -> None:
    seen: list[Call] = []

    @machine.hypercall(0x77)
    def double(call: Call) -> int:
        seen.append(call)
        return 2 * call.args[0]

    answer = registry(machine).call(machine.cpus[0], 0x77, (21, 2, 3, 4), True, 0)
    assert answer == 42
    assert (seen[0].nr, seen[0].args, seen[0].long, seen[0].cpu) == (
        0x77,
        (21, 2, 3, 4),
        True,
        machine.cpus[0],
    )
    assert repr(seen[0]) == "<hypercall 0x77(0x15, 0x2, 0x3, 0x4) of vCPU 0>"
    assert registry(machine).calls == {0x77: 1}


def test_an_unknown_number(machine: Machine) -> None:
    machine.hypercall(1)(lambda call: 0)
    assert signed(registry(machine).call(machine.cpus[0], 2, NONE, True, 0)) == -KVM_ENOSYS
    assert signed(registry(machine).call(machine.cpus[0], 1 | 1 << 32, NONE, True, 0)) == -KVM_ENOSYS
    assert registry(machine).calls == {2: 1, 1 | 1 << 32: 1}


def test_only_the_lower_halves_count_outside_long_mode(machine: Machine) -> None:
    seen = []
    machine.hypercall(1)(lambda call: seen.append(call.args) or -KVM_EINVAL)
    high = 0xAAAA_AAAA_0000_0000
    answer = registry(machine).call(
        machine.cpus[0], high | 1, (high | 5, high, 7, high | 0xFFFFFFFF), False, 0
    )
    assert seen == [(5, 0, 7, 0xFFFFFFFF)]
    assert answer == (1 << 32) - KVM_EINVAL
    assert registry(machine).call(machine.cpus[0], high | 1, NONE, True, 0) == (1 << 64) - KVM_ENOSYS


@pytest.mark.parametrize("ring", [1, 2, 3])
def test_programs_may_not(machine: Machine, ring: int) -> None:
    machine.hypercall(1)(lambda call: pytest.fail("it was called"))
    assert signed(registry(machine).call(machine.cpus[0], 1, NONE, True, ring)) == -KVM_EPERM


@pytest.mark.parametrize(
    ("gpa", "length", "code"),
    [
        (MEMORY - 4, 4, 0),
        (0, 0, 0),
        (MEMORY - 4, 5, KVM_EFAULT),
        (MEMORY, 1, KVM_EFAULT),
        (0xFFFF_FFFF_FFFF_FFFF, 1, KVM_EFAULT),
        (0xFFFF_FFFF_FFFF_FFF0, 0x20, KVM_EFAULT),
        (0, 0x1001, KVM_E2BIG),
        (0, 0xFFFF_FFFF_FFFF_FFFF, KVM_E2BIG),
    ],
)
def test_pointers_are_checked(machine: Machine, gpa: int, length: int, code: int) -> None:
    machine.hypercall(1)(lambda call: len(call.read(call.args[0], call.args[1], most=0x1000)))
    answer = signed(registry(machine).call(machine.cpus[0], 1, (gpa, length, 0, 0), True, 0))
    assert answer == (-code if code else length)


def test_writes_are_whole_or_not_there(machine: Machine) -> None:
    machine.hypercall(1)(lambda call: call.write(call.args[0], b"abcd"))
    call = registry(machine).call
    assert call(machine.cpus[0], 1, (0x1000, 0, 0, 0), True, 0) == 0
    assert machine.memory.read(0x1000, 4) == b"abcd"
    assert signed(call(machine.cpus[0], 1, (MEMORY - 2, 0, 0, 0), True, 0)) == -KVM_EFAULT
    assert machine.memory.read(MEMORY - 2, 2) == b"\0\0"
    machine.memory.add(0x200000, 0x1000, readonly=True)
    assert signed(call(machine.cpus[0], 1, (0x200000, 0, 0, 0), True, 0)) == -KVM_EFAULT


def test_a_shared_buffer_lies_in_memory_and_is_aligned(machine: Machine) -> None:
    machine.hypercall(1)(lambda call: call.check(call.args[0], 64, 8))
    results = [
        signed(registry(machine).call(machine.cpus[0], 1, (gpa, 0, 0, 0), True, 0))
        for gpa in (0x1000, 0x1004, MEMORY - 56)
    ]
    assert results == [0, -KVM_EINVAL, -KVM_EFAULT]


def test_a_handler_refuses(machine: Machine) -> None:
    @machine.hypercall(1)
    def picky(call: Call) -> int:
        raise Refused(KVM_EINVAL)

    assert signed(registry(machine).call(machine.cpus[0], 1, NONE, True, 0)) == -KVM_EINVAL


def test_a_handlers_own_mistakes_are_no_answers(machine: Machine) -> None:
    machine.hypercall(1)(lambda call: 1 // call.args[0])
    machine.hypercall(2)(lambda call: machine.memory.read(MEMORY, 1)[0])
    machine.hypercall(3)(lambda call: "text")  # type: ignore[arg-type, return-value]
    machine.hypercall(4)(lambda call: 1 << 64)
    machine.hypercall(5)(lambda call: -(1 << 63) - 1)
    call = registry(machine).call
    with pytest.raises(ZeroDivisionError):
        call(machine.cpus[0], 1, NONE, True, 0)
    with pytest.raises(GuestMemoryError):
        call(machine.cpus[0], 2, NONE, True, 0)
    for nr in (3, 4, 5):
        with pytest.raises(DeviceError, match="not None or an integer that fits in RAX"):
            call(machine.cpus[0], nr, NONE, True, 0)
    assert registry(machine).calls == {}


def test_numbers_are_taken_once(machine: Machine) -> None:
    machine.hypercall(1)(lambda call: 0)
    with pytest.raises(UsageError, match=r"hypercall 0x1 is served already, by .*lambda"):
        machine.hypercall(1)(lambda call: 0)
    for nr in (-1, 1 << 64):
        with pytest.raises(UsageError, match="a number is what RAX holds"):
            machine.hypercall(nr)(lambda call: 0)
    registry(machine).remove(1)
    with pytest.raises(UsageError, match="isn't served by anybody"):
        registry(machine).remove(1)
    machine.hypercall(1)(lambda call: 5)
    assert registry(machine).call(machine.cpus[0], 1, NONE, True, 0) == 5


def test_the_doorbells_port_is_taken(machine: Machine) -> None:
    machine.ports.drop(DOORBELL)
    with pytest.raises(BusError, match="overlaps"):
        machine.hypercall(1)(lambda call: 0)
    assert machine.hypercall_registry is None


def test_the_doorbell_is_rung_by_the_vcpu_of_this_thread(machine: Machine) -> None:
    seen = []
    machine.hypercall(0)(lambda call: seen.append(call.cpu.index))
    machine.run(timeout=5)
    assert seen == [0]
    with pytest.raises(UsageError, match="no vCPU runs on this thread"):
        machine.current_cpu()


def test_a_machine_without_hypercalls_says_nothing_of_them(machine: Machine) -> None:
    assert machine.hypercall_registry is None
    assert machine.ports.find(DOORBELL) is None
    assert 0x40000000 not in machine.cpus[0].cpuid
    machine.hypercall(1)(lambda call: 0)
    assert machine.cpus[0].cpuid.hypervisor == "kvmpykvmpyVM"
    assert machine.cpus[0].cpuid.get(0x40000001).ebx == DOORBELL
