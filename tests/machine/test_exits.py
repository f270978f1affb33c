"""Exits as a guest makes them, their typed views, and registers at them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from kvmpy.machine import exits
from kvmpy.machine.machine import Machine

Machines = Callable[..., Machine]

pytestmark = pytest.mark.kvmpy(memory="1M", mode="real", trace=False, timeout=math.inf)
LONG_ENOUGH = 60.0
HLT = b"\xf4"

# Long mode: movabs $0xfe000000, %rbx first
MMIO = {
    "8 write": (b"\x88\x03", True, 1),  # mov %al, (%rbx)
    "16 write": (b"\x66\x89\x03", True, 2),
    "32 write": (b"\x89\x03", True, 4),
    "64 write": (b"\x48\x89\x03", True, 8),
    "8 read": (b"\x8a\x03", False, 1),
    "16 read": (b"\x66\x8b\x03", False, 2),
    "32 read": (b"\x8b\x03", False, 4),
    "64 read": (b"\x48\x8b\x03", False, 8),
}
ADDRESS = 0xFE000000
VALUE = 0x1122334455667788


def in_long_mode(machines: Machines, code: bytes, **settings: Any) -> Machine:
    machine = machines(
        b"\x48\xbb" + ADDRESS.to_bytes(8, "little") + code + b"\xf4", "long", memory="2M", **settings
    )
    machine.cpus[0].regs.rax = VALUE
    return machine


@pytest.mark.parametrize("kind", MMIO)
def test_memory_accesses_of_every_width(machines: Machines, kind: str) -> None:
    code, is_write, size = MMIO[kind]
    machine = in_long_mode(machines, code)
    calls: list[tuple[Any, ...]] = []
    answer = 0xFFEEDDCCBBAA9988 & ((1 << 8 * size) - 1)

    @machine.mmio.on_read(ADDRESS - 4, 16)
    def read(offset: int, size: int) -> int:
        calls.append(("read", offset, size))
        return answer

    machine.mmio.on_write(ADDRESS - 4, 16)(lambda *what: calls.append(("write", *what)))
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    rax = machine.cpus[0].regs.rax
    if is_write:
        assert calls == [("write", 4, VALUE & ((1 << 8 * size) - 1), size)]
        assert rax == VALUE
    else:
        kept = VALUE & ~((1 << 8 * size) - 1) if size < 4 else 0
        assert calls == [("read", 4, size)]
        assert rax == kept | answer


def test_an_access_across_the_end_of_a_range_comes_in_bytes(machines: Machines) -> None:
    machine = in_long_mode(machines, b"\x89\x03")
    calls: list[tuple[int, int, int]] = []
    machine.mmio.on_write(ADDRESS - 2, 4)(lambda *what: calls.append(what))
    result = machine.run(timeout=LONG_ENOUGH)
    assert calls == [(2, 0x88, 1), (3, 0x77, 1)]
    assert result.unowned == 2


class Port:
    """Takes strings whole."""

    def __init__(self, write: bool = False) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.single = write

    def read(self, offset: int, size: int) -> int:
        raise AssertionError("a string came in pieces")

    def write(self, offset: int, value: int, size: int) -> None:
        assert self.single, "a string came in pieces"
        self.seen.append((offset, value.to_bytes(size, "little"), size))

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        self.seen.append((offset, size, count))
        return bytes(range(1, size * count + 1))

    def write_string(self, offset: int, data: bytes, size: int) -> None:
        self.seen.append((offset, data, size))


@pytest.mark.parametrize(("prefix", "size"), [(b"\x6e", 1), (b"\x6f", 2), (b"\x66\x6f", 4)])
def test_rep_outs_arrives_in_order(machines: Machines, prefix: bytes, size: int) -> None:
    """In as many pieces as the engine makes of it: KVM's emulator does one element after the other."""
    machine = machines(b"\xf3" + prefix + b"\xf4")  # rep outs; hlt
    machine.memory.write(0x3000, b"sixteen bytes it")
    machine.cpus[0].regs.update({"rdx": 0x80, "rsi": 0x3000, "rcx": 16 // size})
    port = Port(write=True)
    range_ = machine.ports.attach(0x80, 4, port)
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert b"".join(data for _, data, _ in port.seen) == b"sixteen bytes it"
    assert {(offset, width) for offset, _, width in port.seen} == {(0, size)}
    assert range_.count == 16 // size
    assert (machine.cpus[0].regs.rsi, machine.cpus[0].regs.rcx) == (0x3010, 0)


@pytest.mark.parametrize(("prefix", "size"), [(b"\x6c", 1), (b"\x6d", 2), (b"\x66\x6d", 4)])
def test_rep_ins_is_answered_whole(machines: Machines, prefix: bytes, size: int) -> None:
    machine = machines(b"\xf3" + prefix + b"\xf4")  # rep ins; hlt
    machine.cpus[0].regs.update({"rdx": 0x80, "rdi": 0x3000, "rcx": 16 // size})
    port = Port()
    machine.ports.attach(0x80, 4, port)
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert port.seen == [(0, size, 16 // size)]
    assert machine.memory.read(0x3000, 16) == bytes(range(1, 17))


def test_a_halt(machines: Machines) -> None:
    machine = machines(b"\xf4\xf4")
    seen: list[Any] = []

    @machine.on_exit("HLT")
    def halt(exit_: Any) -> None:
        seen.append((type(exit_), exit_.reason, exit_.cpu.index, repr(exit_)))
        if len(seen) == 2:
            machine.stop()

    assert machine.run(timeout=LONG_ENOUGH).exits == {"HLT": 2}
    assert seen == [(exits.Hlt, 5, 0, "<HLT on vCPU 0>")] * 2


def test_a_triple_fault(machines: Machines) -> None:
    # lidt of an empty table, then ud2
    machine = machines(b"\x0f\x01\x1c\x25\x00\x30\x00\x00\x0f\x0b", "long", memory="2M")
    result = machine.run(timeout=LONG_ENOUGH)
    assert (result.reason, result.status, result.exits) == ("crash", None, {"SHUTDOWN": 1})
    assert result.detail == "SHUTDOWN: triple fault"
    crash: Any = result.crash
    assert crash.vcpu == 0 and crash.mode == 64


def test_an_instruction_that_cant_be_emulated(machines: Machines, kvmpy_engine: str) -> None:
    """Of KVM's emulator, where it runs ring 0; elsewhere the guest just goes on."""
    machine = machines(b"\xd9\xe8\xf4", "long", memory="2M")  # fld1; hlt
    result = machine.run(timeout=LONG_ENOUGH)
    if result.reason == "halt":
        pytest.skip(f"{kvmpy_engine} on this host has an x87 in ring 0")
    assert result.exits == {"INTERNAL_ERROR": 1}
    assert result.detail.startswith("INTERNAL_ERROR 1 (emulation failure), instruction d9 e8 f4")
    # It is done for the guest, which then goes on.
    machine.cpus[0].regs.rip += 2
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"


def test_code_where_nothing_is(machines: Machines) -> None:
    machine = machines(b"\xea\x00\x00\x00\xf0", memory="64K")
    result = machine.run(timeout=LONG_ENOUGH)
    assert result.reason == "crash"
    assert list(result.exits) == ["INTERNAL_ERROR"]
    assert result.crash is not None and result.crash.code_at == 0xF0000 and result.crash.code == b""


# MSRs

RDMSR, WRMSR = b"\x0f\x32", b"\x0f\x30"
INDEX = 0x4B564D7F  # of nobody


def test_msrs_have_owners_like_ports(machines: Machines) -> None:
    machine = machines(RDMSR + WRMSR + b"\xf4")
    machine.cpus[0].regs.rcx = INDEX
    calls: list[tuple[Any, ...]] = []

    @machine.msrs.on_read(INDEX)
    def read(offset: int, size: int) -> int:
        calls.append(("read", offset, size))
        return VALUE

    machine.msrs.on_write(INDEX)(lambda *what: calls.append(("write", *what)))
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert calls == [("read", 0, 8), ("write", 0, VALUE, 8)]
    assert machine.msrs[INDEX].count == 2


def test_msrs_in_c(machines: Machines) -> None:
    machine = machines(WRMSR + b"\x66\x31\xc0" + RDMSR + b"\xf4")  # wrmsr; xor %eax, %eax; rdmsr; hlt
    machine.cpus[0].regs.update({"rcx": INDEX, "rax": 0x55, "rdx": 0x66})
    machine.msrs.attach(INDEX, 1, _latch())
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert (machine.cpus[0].regs.rax, machine.cpus[0].regs.rdx) == (0x55, 0x66)


def _latch() -> Any:
    from kvmpy.machine.rules import Drop

    return Drop(0x66_0000_0055)


def test_an_msr_range_comes_and_goes_while_the_guest_runs(machines: Machines) -> None:
    """An MSR that KVM has itself: asked of Python only as long as somebody owns it."""
    # rdmsr; out %al, $0x80; rdmsr; hlt
    machine = machines(RDMSR + b"\xe6\x80" + RDMSR + b"\xf4")
    pat = 0x277
    machine.cpus[0].regs.rcx = pat
    range_ = machine.msrs.attach(pat, 1, type("Pat", (), {"read": staticmethod(lambda offset, size: 0x42)})())
    seen: list[int] = []

    @machine.ports.on_write(0x80)
    def write(offset: int, value: int, size: int) -> None:
        seen.append(value)
        machine.msrs.detach(range_)

    own = machine.cpus[0].msrs["PAT"]
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert seen == [0x42]
    assert machine.cpus[0].regs.rax == own & 0xFFFFFFFF


def test_an_msr_nobody_has_is_a_general_protection(machines: Machines) -> None:
    machine = machines(RDMSR + b"\xf4", "long", memory="2M")
    machine.cpus[0].regs.rcx = INDEX
    assert machine.run(timeout=LONG_ENOUGH).exits.get("SHUTDOWN") == 1


# Registers


def test_registers_at_every_exit(machines: Machines) -> None:
    machine = machines(
        b"\x41\xe6\x80\x81\xf9\x0a\x00\x75\xf7\xf4"
    )  # 1: inc %cx; out; cmp $10, %cx; jne 1b; hlt
    machine.cpus[0].regs.rcx = 0
    regs, seen = machine.cpus[0].regs, []
    machine.ports.on_write(0x80)(lambda offset, value, size: seen.append(regs.rcx))
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert seen == list(range(1, 11))


def test_a_register_set_at_an_exit_is_the_guests(machines: Machines) -> None:
    machine = machines(b"\xe6\x80\xe6\x81\xf4")  # out %al, $0x80; out %al, $0x81; hlt
    machine.ports.on_write(0x80)(lambda offset, value, size: setattr(machine.cpus[0].regs, "rax", 0x77))
    seen: list[int] = []
    machine.ports.on_write(0x81)(lambda offset, value, size: seen.append(value))
    machine.run(timeout=LONG_ENOUGH)
    assert seen == [0x77]


def test_rip_set_after_a_halt(machines: Machines) -> None:
    machine = machines(b"\xf4\xeb\xfe\xb0\x05\xf4")  # hlt; jmp .; mov $5, %al; hlt
    machine.run(timeout=LONG_ENOUGH)
    machine.cpus[0].regs.rip += 2
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    assert machine.cpus[0].regs.rax & 0xFF == 5


def test_system_registers(machines: Machines) -> None:
    machine = machines(b"\xa0\x00\x00\xf4\xa0\x00\x00\xf4")  # mov 0, %al; hlt, twice
    machine.memory.write(0x5000, b"\x11")
    machine.memory.write(0x6000, b"\x22")
    cpu = machine.cpus[0]
    for base, value in ((0x5000, 0x11), (0x6000, 0x22)):
        cpu.sregs.ds.base = base
        machine.run(timeout=LONG_ENOUGH)
        assert cpu.regs.rax & 0xFF == value
        assert cpu.sregs.ds.base == base


def test_what_a_register_cant_hold(machines: Machines) -> None:
    cpu = machines(HLT).cpus[0]
    before = cpu.regs.rax
    for wrong in (1 << 64, -1):
        with pytest.raises(OverflowError):
            cpu.regs.rax = wrong
    with pytest.raises(TypeError, match="rax is a register: it holds an integer, not str"):
        cpu.regs.rax = "5"
    with pytest.raises(AttributeError):
        cpu.regs.eax = 5
    assert cpu.regs.rax == before


def test_cpuid_is_what_the_table_says(machines: Machines) -> None:
    machine = machines(b"\x0f\xa2\xf4")  # cpuid; hlt
    machine.cpus[0].regs.rax = 0x4000_0123
    machine.cpus[0].cpuid.set(0x4000_0123, eax=1, ebx=2, ecx=3, edx=4)
    machine.cpus[0].cpuid.hypervisor = "TestTestTest"
    machine.run(timeout=LONG_ENOUGH)
    regs = machine.cpus[0].regs
    assert [regs.rax, regs.rbx, regs.rcx, regs.rdx] == [1, 2, 3, 4]


# A step at a time


@pytest.mark.kvmpy(engine="kvm")
def test_single_steps(machines: Machines) -> None:
    machine = machines(b"\x90\x90\x90\xf4", "long", memory="2M")  # nop; nop; nop; hlt
    machine.cpus[0].vcpu.set_guest_debug(3)  # KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
    start, steps = machine.cpus[0].regs.rip, []
    for _ in range(3):
        result = machine.run(timeout=LONG_ENOUGH)
        assert (result.reason, result.exits) == ("debug", {"DEBUG": 1})
        assert result.detail.startswith("DEBUG at 0x")
        steps.append(machine.cpus[0].regs.rip)
    assert steps == [start + 1, start + 2, start + 3]
