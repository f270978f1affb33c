"""Accesses to addresses without memory: every width, alignment and instruction that KVM takes apart for us."""

from __future__ import annotations

from typing import Any

from devices import Recorder, bytes_at
from guests import PATIENCE, make, put, start, to_halt
from listing import ORIGIN, Code, code
from suite import Host, cases

from kvmpy.machine.machine import Machine
from kvmpy.x86 import entry

DEVICE = 0xFE000000
SIZE = 0x2000
RAX = 0x1122334455667788
MASK = (1 << 64) - 1
CF, ZF = 1 << 0, 1 << 6


def one(hexadecimal: str, instruction: str, bits: int = 64) -> Code:
    """A guest of one instruction, and HLT."""
    return code(bits, f"{hexadecimal}   {instruction}\nf4   hlt")


WRITES = {
    "8": (one("88 03", "mov [rbx], al"), 1),
    "16": (one("66 89 03", "mov [rbx], ax"), 2),
    "32": (one("89 03", "mov [rbx], eax"), 4),
    "64": (one("48 89 03", "mov [rbx], rax"), 8),
}
READS = {
    "8": (one("8a 03", "mov al, [rbx]"), 1),
    "16": (one("66 8b 03", "mov ax, [rbx]"), 2),
    "32": (one("8b 03", "mov eax, [rbx]"), 4),
    "64": (one("48 8b 03", "mov rax, [rbx]"), 8),
}


def facing(host: Host, what: Code, offset: int = 0, **registers: int) -> tuple[Machine, Recorder]:
    """A guest with RBX at ``offset`` into a device."""
    values = {"rax": RAX, "rbx": DEVICE + offset, **registers}
    machine = make(host, what, memory="2M", registers=values)
    device = Recorder()
    machine.mmio.attach(DEVICE, SIZE, device)
    return machine, device


def low(value: int, size: int) -> int:
    return value & (1 << 8 * size) - 1


def answer(offset: int, size: int) -> int:
    return int.from_bytes(bytes_at(offset, size), "little")


@cases(**WRITES)
def test_mmio_writes_of_every_width_and_alignment(host: Host, case: tuple[Code, int]) -> None:
    what, size = case
    machine, device = facing(host, what)
    for offset in (0, 1, 2, 3, 4, 5, 6, 7, SIZE // 2):
        device.seen.clear()
        machine.cpus[0].regs.update({"rip": ORIGIN, "rbx": DEVICE + offset})
        to_halt(machine)
        assert device.seen == [("write", offset, low(RAX, size), size)]


@cases(**READS)
def test_mmio_reads_of_every_width_and_alignment(host: Host, case: tuple[Code, int]) -> None:
    what, size = case
    machine, device = facing(host, what)
    for offset in (0, 1, 2, 3, 4, 5, 6, 7, SIZE // 2):
        device.seen.clear()
        machine.cpus[0].regs.update({"rip": ORIGIN, "rax": RAX, "rbx": DEVICE + offset})
        to_halt(machine)
        assert device.seen == [("read", offset, size)]
        kept = RAX & ~low(MASK, size) if size < 4 else 0
        assert machine.cpus[0].regs.rax == kept | answer(offset, size)


@cases(*range(1, 8))
def test_an_mmio_access_that_crosses_a_page(host: Host, case: int) -> None:
    """It comes in two pieces, each of which may be of any length."""
    offset = 0x1000 - case
    machine, device = facing(host, WRITES["64"][0], offset)
    to_halt(machine)
    assert device.bytes_written() == list(enumerate(RAX.to_bytes(8, "little"), offset))
    machine, device = facing(host, READS["64"][0], offset)
    to_halt(machine)
    assert device.bytes_read() == list(range(offset, offset + 8))
    assert machine.cpus[0].regs.rax == answer(offset, 8)


@cases(1, 4, 7)
def test_an_access_half_in_memory_and_half_in_a_device(host: Host, case: int) -> None:
    edge = 0x200000
    for what in (WRITES["64"][0], READS["64"][0]):
        machine = make(host, what, memory="2M", registers={"rax": RAX, "rbx": edge - case})
        device = Recorder()
        machine.mmio.attach(edge, 8, device)
        machine.memory.write(edge - 8, b"memories")
        to_halt(machine)
        written = RAX.to_bytes(8, "little")
        if what is WRITES["64"][0]:
            assert machine.memory.read(edge - case, case) == written[:case]
            assert device.bytes_written() == list(enumerate(written[case:]))
        else:
            expected = b"memories"[8 - case :] + bytes_at(0, 8 - case)
            assert machine.cpus[0].regs.rax.to_bytes(8, "little") == expected


MODIFIES = {
    "add": (one("01 03", "add [rbx], eax"), lambda old, eax: old + eax),
    "or": (one("09 03", "or [rbx], eax"), lambda old, eax: old | eax),
    "xor": (one("31 03", "xor [rbx], eax"), lambda old, eax: old ^ eax),
    "inc": (one("ff 03", "inc dword ptr [rbx]"), lambda old, eax: old + 1),
    "not": (one("f7 13", "not dword ptr [rbx]"), lambda old, eax: ~old),
    "shl": (one("d1 23", "shl dword ptr [rbx], 1"), lambda old, eax: old << 1),
    "lock-add": (one("f0 01 03", "lock add [rbx], eax"), lambda old, eax: old + eax),
    "xchg": (one("87 03", "xchg [rbx], eax"), lambda old, eax: eax),
    "bts": (one("0f ba 2b 03", "bts dword ptr [rbx], 3"), lambda old, eax: old | 8),
}


@cases(**MODIFIES)
def test_an_instruction_that_reads_and_writes_a_device(host: Host, case: tuple[Code, Any]) -> None:
    what, change = case
    machine, device = facing(host, what, 8)
    to_halt(machine)
    expected = low(change(answer(8, 4), low(RAX, 4)), 4)
    assert device.seen == [("read", 8, 4), ("write", 8, expected, 4)]
    if what is MODIFIES["xchg"][0]:
        assert machine.cpus[0].regs.rax == answer(8, 4)


COMPARE = one("3b 03", "cmp eax, [rbx]")


def test_a_comparison_with_a_device_sets_the_flags(host: Host) -> None:
    for value, flag in ((answer(0, 4), ZF), (answer(0, 4) - 1, CF)):
        machine, device = facing(host, COMPARE, rax=value)
        to_halt(machine)
        assert device.seen == [("read", 0, 4)]
        assert machine.cpus[0].regs.rflags & (ZF | CF) == flag


EXTENDS = {
    "movzx-8": (one("0f b6 03", "movzx eax, byte ptr [rbx]"), 1, False, 32),
    "movsx-8": (one("48 0f be 03", "movsx rax, byte ptr [rbx]"), 1, True, 64),
    "movzx-16": (one("0f b7 03", "movzx eax, word ptr [rbx]"), 2, False, 32),
    "movsx-16": (one("48 0f bf 03", "movsx rax, word ptr [rbx]"), 2, True, 64),
    "movsxd": (one("48 63 03", "movsxd rax, dword ptr [rbx]"), 4, True, 64),
}


@cases(**EXTENDS)
def test_a_read_is_extended(host: Host, case: tuple[Code, int, bool, int]) -> None:
    what, size, signed, width = case
    machine, device = facing(host, what)
    to_halt(machine)
    assert device.seen == [("read", 0, size)]
    value = int.from_bytes(bytes_at(0, size), "little", signed=signed)
    assert machine.cpus[0].regs.rax == value & (1 << width) - 1


PUSH = code(
    64,
    """
    50   push rax
    59   pop rcx
    f4   hlt
    """,
)


def test_a_stack_in_a_device(host: Host) -> None:
    machine, device = facing(host, PUSH, rsp=DEVICE + 0x108)
    to_halt(machine)
    assert device.seen == [("write", 0x100, RAX, 8), ("read", 0x100, 8)]
    assert machine.cpus[0].regs.rcx == answer(0x100, 8)


STRINGS = {
    "8": (one("f3 a4", "rep movsb"), 1),
    "16": (one("66 f3 a5", "rep movsw"), 2),
    "32": (one("f3 a5", "rep movsd"), 4),
    "64": (one("f3 48 a5", "rep movsq"), 8),
}


@cases(**STRINGS)
def test_string_moves_to_and_from_a_device(host: Host, case: tuple[Code, int]) -> None:
    what, size = case
    text = bytes(range(0x40, 0x60))
    count = len(text) // size
    machine, device = facing(host, what, rsi=0x5000, rdi=DEVICE + 0x10, rcx=count)
    machine.memory.write(0x5000, text)
    to_halt(machine)
    assert device.bytes_written() == list(enumerate(text, 0x10))
    assert {access[-1] for access in device.seen} == {size}
    machine, device = facing(host, what, rsi=DEVICE + 0x20, rdi=0x5000, rcx=count)
    to_halt(machine)
    assert machine.memory.read(0x5000, len(text)) == bytes_at(0x20, len(text))
    assert {access[-1] for access in device.seen} == {size}
    assert machine.cpus[0].regs.rcx == 0


def test_a_string_move_from_a_device_to_itself(host: Host) -> None:
    machine, device = facing(host, STRINGS["32"][0], rsi=DEVICE, rdi=DEVICE + 0x100, rcx=2)
    to_halt(machine)
    assert device.seen == [
        ("read", 0, 4),
        ("write", 0x100, answer(0, 4), 4),
        ("read", 4, 4),
        ("write", 0x104, answer(4, 4), 4),
    ]


FILL = one("f3 ab", "rep stosd")


def test_a_string_fill_of_a_device(host: Host) -> None:
    machine, device = facing(host, FILL, rdi=DEVICE + 4, rcx=3)
    to_halt(machine)
    assert device.seen == [("write", at, low(RAX, 4), 4) for at in (4, 8, 12)]


SSE = code(
    64,
    """
    f3 0f 6f 06      movdqu xmm0, [rsi]
    f3 0f 7f 03      movdqu [rbx], xmm0
    f3 0f 6f 4b 10   movdqu xmm1, [rbx + 16]
    f3 0f 7f 0f      movdqu [rdi], xmm1
    f4               hlt
    """,
)


def test_sixteen_bytes_at_once(host: Host) -> None:
    """More than a struct kvm_run has room for: two exits for one instruction."""
    machine, device = facing(host, SSE, 0x20, rsi=0x5000, rdi=0x5010)
    text = bytes(range(0x70, 0x80))
    machine.memory.write(0x5000, text)
    to_halt(machine)
    assert device.bytes_written() == list(enumerate(text, 0x20))
    assert device.bytes_read() == list(range(0x30, 0x40))
    assert machine.memory.read(0x5010, 16) == bytes_at(0x30, 16)


REAL = code(
    16,
    """
    a2 10 00         mov [0x10], al
    a1 12 00         mov ax, [0x12]
    66 8b 0e 14 00   mov ecx, [0x14]
    f4               hlt
    """,
)
SCREEN = 0xB8000


def test_mmio_in_real_mode(host: Host) -> None:
    machine = host.machine(memory="512K", trace=False)
    device = Recorder()
    machine.mmio.attach(SCREEN, 0x1000, device)
    put(machine, REAL)
    start(machine, entry.real_mode(0, ORIGIN, ds=SCREEN >> 4, regs={"rax": 0x41}))
    to_halt(machine)
    assert device.seen == [("write", 0x10, 0x41, 1), ("read", 0x12, 2), ("read", 0x14, 4)]
    regs = machine.cpus[0].regs
    assert (regs.rax, regs.rcx) == (answer(0x12, 2), answer(0x14, 4))


PROTECTED = code(
    32,
    """
    89 03         mov [ebx], eax
    66 8b 4b 06   mov cx, [ebx + 6]
    f4            hlt
    """,
)


def test_mmio_in_protected_mode(host: Host) -> None:
    machine, device = facing(host, PROTECTED)
    to_halt(machine)
    assert device.seen == [("write", 0, low(RAX, 4), 4), ("read", 6, 2)]
    assert machine.cpus[0].regs.rcx == answer(6, 2)


USER = code(
    64,
    """
    48 89 03      mov [rbx], rax
    48 8b 4b 08   mov rcx, [rbx + 8]
    48 89 4b 10   mov [rbx + 16], rcx
    """,
)


def test_mmio_from_ring_3(host: Host) -> None:
    machine = make(host, USER, memory="2M", ring=3, registers={"rax": RAX, "rbx": DEVICE})
    device = Recorder()
    machine.mmio.attach(DEVICE, 16, device)
    machine.mmio.on_write(DEVICE + 16, 8)(lambda offset, value, size: machine.stop(value))
    result = machine.run(timeout=PATIENCE)
    assert (result.reason, result.status) == ("stopped", answer(8, 8))
    assert device.seen == [("write", 0, RAX, 8), ("read", 8, 8)]


ABSENT = code(
    64,
    """
    48 89 03   mov [rbx], rax
    48 8b 03   mov rax, [rbx]
    f4         hlt
    """,
)


def test_an_address_that_nobody_owns_reads_all_ones(host: Host) -> None:
    machine = make(host, ABSENT, memory="2M", registers={"rax": RAX, "rbx": DEVICE})
    result = to_halt(machine)
    assert machine.cpus[0].regs.rax == MASK
    assert result.unowned == 2
    assert result.exits["MMIO"] == 2
