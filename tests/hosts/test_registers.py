"""What the host sets in a vCPU the guest finds there, and the other way round."""

from __future__ import annotations

from typing import Any

from guests import listen, make, not_on_pvm, put, start, to_exit, to_halt
from listing import ORIGIN, code
from offers import require
from suite import Host, cases, raises

from kvmpy._native import ffi
from kvmpy.errors import KvmError
from kvmpy.x86 import entry
from kvmpy.x86 import registers as bits
from kvmpy.x86.paging import GIB1, KIB4, MIB2, MIB4

MASK = (1 << 64) - 1
VALID = 0x000FFFFFFFFFF001
"""Of a PAE pointer: address and presence. TCG sets an accessed bit, which such an entry doesn't have."""
STATUS = 0xCD5
"""CF, PF, AF, ZF, SF, DF and OF."""
GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)

INVERT_ALL = code(
    64,
    """
    48 f7 d0   not rax
    48 f7 d3   not rbx
    48 f7 d1   not rcx
    48 f7 d2   not rdx
    48 f7 d6   not rsi
    48 f7 d7   not rdi
    48 f7 d4   not rsp
    48 f7 d5   not rbp
    49 f7 d0   not r8
    49 f7 d1   not r9
    49 f7 d2   not r10
    49 f7 d3   not r11
    49 f7 d4   not r12
    49 f7 d5   not r13
    49 f7 d6   not r14
    49 f7 d7   not r15
    f4         hlt
    """,
)
EXCHANGE_FLAGS = code(
    64,
    """
    9c   pushfq
    5b   pop rbx
    50   push rax
    9d   popfq
    f4   hlt
    """,
)
READ_CONTROL = code(
    64,
    """
    41 0f 20 c0               mov r8, cr0
    41 0f 20 da               mov r10, cr3
    41 0f 20 e3               mov r11, cr4
    45 0f 20 c4               mov r12, cr8
    b9 80 00 00 c0            mov ecx, 0xc0000080
    0f 32                     rdmsr
    0f 01 04 25 00 30 00 00   sgdt [0x3000]
    0f 01 0c 25 10 30 00 00   sidt [0x3010]
    f4                        hlt
    """,
)
WRITE_CONTROL = code(
    64,
    """
    0f 20 c0                        mov rax, cr0
    83 c8 08                        or eax, 8
    0f 22 c0                        mov cr0, rax
    48 b8 bc 9a 78 56 34 12 00 00   mov rax, 0x123456789abc
    0f 22 d0                        mov cr2, rax
    b8 05 00 00 00                  mov eax, 5
    44 0f 22 c0                     mov cr8, rax
    0f 20 e0                        mov rax, cr4
    35 80 02 00 00                  xor eax, 0x280
    0f 22 e0                        mov cr4, rax
    0f 01 14 25 00 30 00 00         lgdt [0x3000]
    0f 01 1c 25 10 30 00 00         lidt [0x3010]
    e6 80                           out 0x80, al
    0f 06                           clts
    f4                              hlt
    """,
)
BASES = code(
    64,
    """
    64 48 8b 04 25 10 00 00 00   mov rax, fs:[0x10]
    65 48 8b 1c 25 10 00 00 00   mov rbx, gs:[0x10]
    0f 01 f8                     swapgs
    65 48 8b 0c 25 10 00 00 00   mov rcx, gs:[0x10]
    f4                           hlt
    """,
)
OUT_THEN_HALT = {
    16: code(
        16,
        """
        e6 e9   out 0xe9, al
        40      inc ax
        e6 e9   out 0xe9, al
        f4      hlt
        """,
    ),
    32: code(
        32,
        """
        e6 e9   out 0xe9, al
        40      inc eax
        e6 e9   out 0xe9, al
        f4      hlt
        """,
    ),
    64: code(
        64,
        """
        e6 e9   out 0xe9, al
        ff c0   inc eax
        e6 e9   out 0xe9, al
        f4      hlt
        """,
    ),
}
COPY = code(
    32,
    """
    a1 00 50 00 00   mov eax, [0x5000]
    a3 04 50 00 00   mov [0x5004], eax
    f4               hlt
    """,
)


COPY_IN_LONG_MODE = code(
    64,
    """
    8b 04 25 00 50 00 00   mov eax, [0x5000]
    89 04 25 04 50 00 00   mov [0x5004], eax
    f4                     hlt
    """,
)


def test_general_registers_reach_the_guest_and_come_back(host: Host) -> None:
    values = {name: 0x0101010101010101 * (number + 1) for number, name in enumerate(GENERAL)}
    machine = make(host, INVERT_ALL, registers=values)
    to_halt(machine)
    regs = machine.cpus[0].regs
    assert {name: getattr(regs, name) for name in GENERAL} == {
        name: value ^ MASK for name, value in values.items()
    }
    assert regs.rip == ORIGIN + len(INVERT_ALL.data), "behind the HLT"


def test_flags_reach_the_guest_and_come_back(host: Host) -> None:
    machine = make(host, EXCHANGE_FLAGS, registers={"rflags": STATUS | 2})
    to_halt(machine)
    regs = machine.cpus[0].regs
    assert regs.rbx == STATUS | 2
    assert regs.rflags & STATUS == 0
    machine = make(host, EXCHANGE_FLAGS, registers={"rax": STATUS | 2})
    to_halt(machine)
    assert machine.cpus[0].regs.rflags == STATUS | 2


def test_the_guest_reads_the_control_registers_that_were_set(host: Host) -> None:
    machine = make(host, READ_CONTROL, handlers=None)
    sregs = machine.cpus[0].sregs
    sregs.cr8 = 9
    sregs.idt.base, sregs.idt.limit = 0x123456, 0x3FF
    expected = {name: getattr(sregs, name) for name in ("cr0", "cr3", "cr4", "cr8", "efer")}
    gdt = (sregs.gdt.limit, sregs.gdt.base)
    to_halt(machine)
    regs = machine.cpus[0].regs
    efer = regs.rdx << 32 | regs.rax
    found = (regs.r8, regs.r10, regs.r11, regs.r12, efer)
    assert dict(zip(expected, found, strict=True)) == expected
    for at, (limit, base) in ((0x3000, gdt), (0x3010, (0x3FF, 0x123456))):
        assert machine.memory.read(at, 10) == limit.to_bytes(2, "little") + base.to_bytes(8, "little")


READ_CR2 = code(64, "0f 20 d0   mov rax, cr2\nf4   hlt")


def test_the_guest_reads_the_cr2_that_was_set(host: Host) -> None:
    host.avoid("amd-bochs", because="Bochs doesn't load CR2 from the VMCB")
    machine = make(host, READ_CR2)
    machine.cpus[0].sregs.cr2 = 0x7FFF12345678
    to_halt(machine)
    assert machine.cpus[0].regs.rax == 0x7FFF12345678


def test_control_registers_that_the_guest_sets_are_seen_by_the_host(host: Host) -> None:
    machine = make(host, WRITE_CONTROL)
    sregs = machine.cpus[0].sregs
    cr4 = sregs.cr4
    table = (sregs.gdt.limit.to_bytes(2, "little"), sregs.gdt.base.to_bytes(8, "little"))
    machine.memory.write(0x3000, b"".join(table))
    machine.memory.write(0x3010, bytes.fromhex("ff01 0060000000000000"))
    machine.ports.drop(0x80)
    to_exit(machine, "IO")
    assert (sregs.cr0 & bits.CR0_TS, sregs.cr2, sregs.cr8) == (bits.CR0_TS, 0x123456789ABC, 5)
    assert sregs.cr4 == cr4 ^ (bits.CR4_PGE | bits.CR4_OSFXSR)
    assert (sregs.idt.base, sregs.idt.limit) == (0x6000, 0x1FF)
    to_halt(machine)
    assert not sregs.cr0 & bits.CR0_TS


def test_segment_bases_set_by_the_host_are_what_the_guest_uses(host: Host) -> None:
    machine = make(host, BASES)
    sregs = machine.cpus[0].sregs
    sregs.fs.base, sregs.gs.base = 0x30000, 0x31000
    machine.cpus[0].msrs["KERNEL_GS_BASE"] = 0x32000
    for base, value in ((0x30000, 1), (0x31000, 2), (0x32000, 3)):
        machine.memory.write(base + 0x10, value.to_bytes(8, "little"))
    to_halt(machine)
    regs = machine.cpus[0].regs
    assert (regs.rax, regs.rbx, regs.rcx) == (1, 2, 3)
    assert sregs.gs.base == 0x32000
    assert machine.cpus[0].msrs["KERNEL_GS_BASE"] == 0x31000


@cases(real=16, protected=32, long=64)
def test_special_registers_that_were_got_can_be_set(host: Host, case: int) -> None:
    """In the middle of a run, by both interfaces; the guest doesn't notice."""
    machine = make(host, OUT_THEN_HALT[case], registers={"rax": 0x41})
    heard = listen(machine)
    to_exit(machine, "IO")
    vcpu = machine.cpus[0].vcpu
    for get, set_ in ((vcpu.get_sregs, vcpu.set_sregs), (vcpu.get_sregs2, vcpu.set_sregs2)):
        before = get()
        set_(before)
        assert bytes(ffi.buffer(get())) == bytes(ffi.buffer(before))
    to_halt(machine)
    assert heard == [0x41, 0x42]


FORBIDDEN = {
    "paging-without-protection": ({"cr0": bits.CR0_PG}, "CR0.PG"),
    "long-mode-without-pae": ({"cr4": 0}, "CR4.PAE"),
    "high-half-of-cr0": ({"cr0": 1 << 32 | 0x80010033}, "CR0"),
}


@cases(**FORBIDDEN)
def test_special_registers_that_cannot_be_are_refused_and_explained(
    host: Host, case: tuple[dict[str, int], str]
) -> None:
    machine = make(host, OUT_THEN_HALT[64])
    vcpu = machine.cpus[0].vcpu
    listen(machine)
    to_exit(machine, "IO")
    before = vcpu.get_sregs()
    values, words = case
    wrong = vcpu.get_sregs()
    for name, value in values.items():
        setattr(wrong, name, value)
    with raises(KvmError, words):
        vcpu.set_sregs(wrong)
    assert bytes(ffi.buffer(vcpu.get_sregs())) == bytes(ffi.buffer(before)), "nothing has changed"
    to_halt(machine)


SCHEMES: dict[str, dict[str, Any]] = {
    "32-bit-4K": {"page_size": KIB4},
    "32-bit-4M": {"page_size": MIB4},
    "PAE-4K": {"pae": True, "page_size": KIB4},
    "PAE-2M": {"pae": True, "page_size": MIB2},
}


@cases(**SCHEMES)
def test_paging_in_protected_mode(host: Host, case: dict[str, Any]) -> None:
    not_on_pvm(host, "it has no paging outside of long mode")
    machine = host.machine(memory="4M", trace=False)
    put(machine, COPY)
    state = entry.protected_mode(ORIGIN, paging=True, memory_size=machine.memory.size, **case)
    start(machine, state)
    machine.memory.write(0x5000, b"copy")
    to_halt(machine)
    assert machine.memory.read(0x5004, 4) == b"copy"
    sregs = machine.cpus[0].vcpu.get_sregs2()
    assert sregs.cr3 == state.cr3
    if case.get("pae"):
        table = machine.memory.read(state.cr3, 32)
        pointers = [int.from_bytes(table[at : at + 8], "little") for at in range(0, 32, 8)]
        assert [pointer & VALID for pointer in sregs.pdptrs] == [pointer & VALID for pointer in pointers]


@cases(**{"4K": KIB4, "2M": MIB2, "1G": GIB1})
def test_paging_in_long_mode(host: Host, case: int) -> None:
    if case == GIB1:
        require("pages_1g")
    machine = host.machine(memory="4M", trace=False)
    put(machine, COPY_IN_LONG_MODE)
    start(machine, entry.long_mode(ORIGIN, memory_size=machine.memory.size, page_size=case))
    machine.memory.write(0x5000, b"copy")
    to_halt(machine)
    assert machine.memory.read(0x5004, 4) == b"copy"
