"""The translate engine's exits: what they say, where rip stands, and how they are completed. No machine around it."""

from __future__ import annotations

import struct

import pytest
from translate_rig import (
    HLT,
    HYPERCALL,
    INTERNAL_ERROR,
    IO,
    MMIO,
    ORIGIN,
    RDMSR,
    SHUTDOWN,
    SIZE,
    WRMSR,
    Guest,
    Seen,
    assemble,
    system,
)

from kvmpy.x86 import entry

EINTR = 4
HOLE = 0xFE0000  # in the page tables of the long-mode guest, but no memory
MODES = [16, 32, 64]


@pytest.mark.parametrize("bits", MODES)
def test_in_and_out_stand_on_the_instruction(bits: int) -> None:
    with Guest("mov al, 0x41\n out 0xe9, al\n in al, 0x60\n mov bl, al\n hlt", bits) as guest:
        assert guest.enter() == Seen(IO, ORIGIN + 2, True, 0xE9, 1, 1, b"A")
        assert guest.enter() == Seen(IO, ORIGIN + 4, False, 0x60, 1)
        guest.answer(b"\x5a")
        assert guest.enter() == Seen(HLT, ORIGIN + 9)
        assert guest.rbx & 0xFF == 0x5A


@pytest.mark.parametrize(("register", "size"), [("al", 1), ("ax", 2), ("eax", 4)])
def test_in_changes_as_much_of_rax_as_it_reads(register: str, size: int) -> None:
    with Guest(f"mov rax, -1\n mov dx, 0x1234\n in {register}, dx\n hlt") as guest:
        assert guest.enter()[2:5] == (False, 0x1234, size)
        guest.answer(bytes(size))
        guest.enter()
        expected = {1: 0xFFFFFFFFFFFFFF00, 2: 0xFFFFFFFFFFFF0000, 4: 0}
        assert guest.rax == expected[size]


def test_string_output_is_one_exit() -> None:
    with Guest(
        'cld\n mov dx, 0x3f8\n lea rsi, [rip+m]\n mov ecx, 5\n rep outsb\n hlt\n m: .ascii "hello"'
    ) as guest:
        start = guest.enter()
        assert start[2:] == (True, 0x3F8, 1, 5, b"hello")
        before = guest.rsi
        assert guest.enter().reason == HLT
        assert guest.rsi == before + 5
        assert guest.rcx == 0


def test_string_input_is_written_to_memory_and_split_at_pages() -> None:
    with Guest("cld\n mov dx, 0x60\n mov edi, 0x5ffc\n mov ecx, 6\n rep insw\n hlt") as guest:
        assert guest.enter()[2:6] == (False, 0x60, 2, 2)
        guest.answer(b"abcd")
        assert guest.enter()[2:6] == (False, 0x60, 2, 4)
        guest.answer(b"efghijkl")
        assert guest.enter().reason == HLT
        assert guest.read(0x5FFC, 12) == b"abcdefghijkl"
        assert guest.rdi == 0x6008


def test_string_io_backwards_and_across_pages_comes_in_single_elements() -> None:
    with Guest("std\n mov dx, 9\n mov esi, 0x5ffe\n mov ecx, 2\n rep outsd\n hlt") as guest:
        guest.write(0x5FFA, b"0123456789")
        assert [e.data for e in guest.to_halt()] == [b"4567", b"0123"]
        assert guest.rsi == 0x5FF6


@pytest.mark.parametrize("bits", MODES)
def test_string_io_uses_the_segment_of_its_prefix(bits: int) -> None:
    with Guest(
        "cld\n mov dx, 9\n mov cx, 3\n mov si, 0x10\n rep outs dx, byte ptr fs:[si]\n hlt".replace(
            "[si]", "[esi]" if bits != 16 else "[si]"
        )
        .replace("mov cx", "mov ecx" if bits != 16 else "mov cx")
        .replace("mov si", "mov esi" if bits != 16 else "mov si"),
        bits,
    ) as guest:
        guest.set_sregs(fs__base=0x3000)
        guest.write(0x3010, b"xyz")
        assert guest.enter().data == b"xyz"


def test_an_answer_to_a_parked_string_input_reaches_memory() -> None:
    with Guest("cld\n mov dx, 9\n mov edi, 0x5000\n mov ecx, 3\n rep insb\n hlt") as guest:
        guest.enter()
        guest.answer(b"abc")
        guest.set(rbx=7)
        assert guest.enter().reason == HLT
        assert guest.read(0x5000, 3) == b"abc"
        assert (guest.rbx, guest.rcx, guest.rdi) == (7, 0, 0x5003)


MMIO_CASES = [
    ("mov eax, [rbx]", [(False, 0, 4)]),
    ("mov rax, [rbx]", [(False, 0, 8)]),
    ("mov ax, [rbx+0x21]", [(False, 0x21, 2)]),
    ("mov rax, [rbx+0x23]", [(False, 0x23, 8)]),
    ("mov [rbx+0x35], eax", [(True, 0x35, 4)]),
    ("mov [rbx+0x31], rax", [(True, 0x31, 8)]),
    ("add dword ptr [rbx+4], 7", [(False, 4, 4), (True, 4, 4)]),
    ("lock xadd [rbx], eax", [(False, 0, 4), (True, 0, 4)]),
    ("xchg [rbx+8], rax", [(False, 8, 8), (True, 8, 8)]),
    ("movdqu xmm0, [rbx]", [(False, 0, 8), (False, 8, 8)]),
    ("movdqu [rbx], xmm0", [(True, 0, 8), (True, 8, 8)]),
    ("push qword ptr [rbx]", [(False, 0, 8)]),
    ("mov rax, [rbx+0xffd]", [(False, 0xFFD, 3), (False, 0x1000, 5)]),
    ("mov [rbx+0xffe], eax", [(True, 0xFFE, 2), (True, 0x1000, 2)]),
]


@pytest.mark.parametrize(("instruction", "accesses"), MMIO_CASES)
def test_mmio_accesses_have_their_width(instruction: str, accesses: list[tuple[bool, int, int]]) -> None:
    with Guest(f"mov ebx, {HOLE}\n {instruction}\n hlt") as guest:
        seen = guest.to_halt()
    assert all(e.reason == MMIO and e.rip == ORIGIN + 5 for e in seen)
    assert [(e.is_write, e.address - HOLE, e.size) for e in seen] == accesses


def test_mmio_values_reach_the_guest_and_come_from_it() -> None:
    code = f"mov ebx, {HOLE}\n mov rcx, [rbx+3]\n lea rdx, [rcx+1]\n mov [rbx+9], rdx"
    code += "\n mov eax, [rbx]\n mov [rbx+8], ax\n hlt"
    with Guest(code) as guest:
        guest.enter()
        guest.answer(bytes(range(0x11, 0x99, 0x11)))
        assert guest.enter().data == bytes.fromhex("1222334455667788")
        guest.enter()
        guest.answer(b"\xde\xad\xbe\xef")
        assert guest.enter().data == b"\xde\xad"
        guest.enter()
        assert guest.rcx == 0x8877665544332211
        assert guest.rax == 0xEFBEADDE


def test_mmio_goes_on_after_a_read_that_faulted_at_its_second_page() -> None:
    """Unicorn forgets that it isn't inside a read any more."""
    state = entry.long_mode(ORIGIN, memory_size=SIZE, stack=0x8000, idt={14: 0x5000})
    with Guest("mov rax, [rbx]", state=state) as guest:
        guest.write(0x5000, assemble(f"mov eax, [{HOLE}]\n hlt", 64, 0x5000))
        guest.vm.set_user_memory_region(1, (4 << 30) - 0x1000, 0x1000, guest.address + 0x7000)
        guest.set(rbx=(4 << 30) - 3)
        assert guest.enter()[:4] == (MMIO, 0x5000, False, HOLE)
        guest.answer(b"\x11\x22\x33\x44")
        assert guest.enter().reason == HLT
        assert guest.rax == 0x44332211


@pytest.mark.parametrize("at", [(1 << 30) - 3, (2 << 30) - 1])
def test_mmio_across_the_ends_of_pages_anywhere(at: int) -> None:
    with Guest("mov rcx, [rbx]\n hlt") as guest:
        guest.set(rbx=at)
        here = (1 << 30) * 2 - at if at > 1 << 30 else (1 << 30) - at
        for address, size in ((at, here), (at + here, 8 - here)):
            seen = guest.enter()
            assert (seen.address, seen.size) == (address, size)
            guest.answer(bytes([size]) * size)
        assert guest.enter().reason == HLT
        assert guest.rcx.to_bytes(8, "little") == bytes([here]) * here + bytes([8 - here]) * (8 - here)


def test_rep_movs_from_mmio_is_an_exit_for_each_element() -> None:
    with Guest(f"cld\n mov esi, {HOLE}\n mov edi, 0x5000\n mov ecx, 3\n rep movsw\n hlt") as guest:
        for at in range(3):
            assert guest.enter().address == HOLE + 2 * at
            guest.answer(bytes([at, 0x80 + at]))
        assert guest.enter().reason == HLT
        assert guest.read(0x5000, 6) == bytes.fromhex("008001810282")


def test_a_write_to_read_only_memory_is_mmio_and_changes_nothing() -> None:
    with Guest(f"mov ebx, {SIZE}\n mov dword ptr [rbx], 7\n mov eax, [rbx]\n hlt") as guest:
        guest.write(0x7000, b"ROM!")
        guest.vm.set_user_memory_region(1, SIZE, 0x1000, guest.address + 0x7000, flags=2)
        seen = guest.enter()
        assert seen[2:] == (True, SIZE, 4, 1, b"\x07\0\0\0")
        assert guest.enter().reason == HLT
        assert guest.rax == int.from_bytes(b"ROM!", "little")


def test_registers_set_at_an_exit_are_the_guests() -> None:
    with Guest("out 0x80, al\n add rax, rbx\n hlt") as guest:
        guest.enter()
        guest.set(rax=5, rbx=6)
        guest.enter()
        assert guest.rax == 11


@pytest.mark.parametrize(
    "exit_at", ["out 0x80, al", "in al, 0x80", f"mov eax, [{HOLE}]", f"mov [{HOLE}], al"]
)
def test_rip_set_at_an_exit_is_where_the_guest_goes_on(exit_at: str) -> None:
    with Guest(f"{exit_at}\n inc rbx\n hlt\n .org 0x40\n mov r15d, 0x77\n hlt") as guest:
        guest.enter()
        guest.set(rip=ORIGIN + 0x40)
        assert guest.enter() == Seen(HLT, ORIGIN + 0x47)
        assert (guest.rbx, guest.r15) == (0, 0x77)


def test_a_read_answered_before_registers_are_set_still_comes() -> None:
    with Guest("in al, 0x80\n hlt") as guest:
        guest.enter()
        guest.answer(b"\x12")
        guest.set(rcx=1)
        guest.enter()
        assert (guest.rax, guest.rcx) == (0x12, 1)


def test_accesses_done_before_registers_are_set_are_not_done_again() -> None:
    with Guest(f"mov ebx, {HOLE}\n add [rbx], eax\n mov ecx, [rbx+8]\n hlt") as guest:
        guest.set(rax=2)
        assert not guest.enter().is_write
        guest.answer(b"\x05\0\0\0")
        guest.set(rdx=1)
        assert guest.enter().data == b"\x07\0\0\0"
        guest.set(rdx=2)
        seen = guest.enter()
        assert (seen.is_write, seen.address) == (False, HOLE + 8)
        guest.answer(b"\x09\0\0\0")
        assert guest.enter().reason == HLT
        assert (guest.rcx, guest.rdx) == (9, 2)


def test_system_registers_set_at_an_exit_count() -> None:
    with Guest("out 0x80, al\n mov al, fs:[0]\n hlt") as guest:
        guest.enter()
        guest.write(0x6000, b"\x33")
        guest.set_sregs(fs__base=0x6000)
        guest.enter()
        assert guest.rax & 0xFF == 0x33


def test_immediate_exit_completes_the_access_and_enters_no_further() -> None:
    with Guest("in al, 0x80\n inc rbx\n hlt") as guest:
        guest.enter()
        guest.answer(b"\x12")
        guest.run.immediate_exit = 1
        assert guest.vcpu.enter() == EINTR
        assert guest.vcpu.enter() == EINTR
        assert (guest.rip, guest.rax & 0xFF, guest.rbx) == (ORIGIN + 2, 0x12, 0)
        guest.run.immediate_exit = 0
        assert guest.enter().reason == HLT
        assert guest.rbx == 1


def test_immediate_exit_finishes_an_mmio_instruction() -> None:
    with Guest(f"mov ebx, {HOLE}\n add dword ptr [rbx], 1\n mov ecx, [rbx]\n hlt") as guest:
        guest.enter()
        guest.answer(b"\x05\0\0\0")
        guest.run.immediate_exit = 1
        assert guest.enter().data == b"\x06\0\0\0"
        assert guest.vcpu.enter() == EINTR
        guest.run.immediate_exit = 0
        assert not guest.enter().is_write
        guest.answer(bytes(4))
        assert guest.enter().reason == HLT


@pytest.mark.parametrize("bits", MODES)
def test_a_kick_stops_a_guest_that_spins(bits: int) -> None:
    with Guest("l: inc eax\n jmp l", bits) as guest:
        timer = guest.kick_after(0.05)
        assert guest.vcpu.enter() == EINTR
        timer.join()
        assert guest.rax > 1000
        before = guest.rax
        guest.take_kick()
        timer = guest.kick_after(0.05)
        assert guest.vcpu.enter() == EINTR
        timer.join()
        assert guest.rax != before


def test_a_kick_never_tears_an_instruction() -> None:
    """A guest that counts twice, in memory and in a register, is stopped a thousand times."""
    with Guest("l: inc qword ptr [0x6000]\n inc rax\n jmp l") as guest:
        for _ in range(1000):
            guest.take_kick()
            timer = guest.kick_after(0.0001)
            assert guest.vcpu.enter() == EINTR
            timer.join()
            count = int.from_bytes(guest.read(0x6000, 8), "little")
            assert guest.rax == count


def test_registers_travel_in_the_shared_page() -> None:
    with Guest("mov eax, 7\n out 0x80, al\n add eax, ebx\n out 0x80, al\n hlt") as guest:
        guest.run.kvm_valid_regs = 3
        guest.enter()
        shared = guest.run.s.regs
        assert shared.regs.rax == 7
        assert shared.regs.rip == ORIGIN + 5
        assert shared.sregs.cr0 == guest.vcpu.get_sregs().cr0
        shared.regs.rbx = 0x20
        guest.run.kvm_dirty_regs = 1
        assert guest.enter().data == b"\x27"
        assert guest.run.kvm_dirty_regs == 0


@pytest.mark.parametrize("instruction", ["vmcall", "vmmcall"])
def test_hypercalls_give_their_arguments_and_take_an_answer(instruction: str) -> None:
    with Guest(
        f"mov eax, 99\n mov ebx, 1\n mov ecx, 2\n mov edx, 3\n mov esi, 4\n {instruction}\n hlt"
    ) as guest:
        assert guest.enter().reason == HYPERCALL
        call = guest.run.hypercall
        assert (call.nr, list(call.args)[:4], call.longmode) == (99, [1, 2, 3, 4], 1)
        call.ret = (1 << 64) - 1000
        assert guest.enter().reason == HLT
        assert guest.rax == (1 << 64) - 1000


def test_unknown_msrs_exit_where_somebody_asks_for_it() -> None:
    with Guest("mov ecx, 0x12345\n rdmsr\n mov rbx, rax\n mov eax, 5\n mov edx, 6\n wrmsr\n hlt") as guest:
        guest.vm.enable_user_space_msrs()
        assert guest.enter() == Seen(RDMSR, ORIGIN + 5)
        assert (guest.run.msr.index, guest.run.msr.reason) == (0x12345, 2)
        guest.run.msr.data = 0x1_0000_0077
        assert guest.enter().reason == WRMSR
        assert guest.run.msr.data == 6 << 32 | 5
        assert guest.enter().reason == HLT
        assert guest.rbx == 0x77


def test_known_msrs_are_the_vcpus() -> None:
    code = "mov ecx, 0xc0000102\n mov eax, 0x89abcdef\n mov edx, 0xffff8000\n wrmsr\n mov ecx, 0xc0000080\n rdmsr\n hlt"
    with Guest(code) as guest:
        assert guest.to_halt() == []
        assert guest.rax == 0xD01 or guest.rax == 0x501
        assert guest.vcpu.get_msrs([0xC0000102, 0x12345]) == {0xC0000102: 0xFFFF800089ABCDEF}
        assert guest.vcpu.set_msrs({0xC0000081: 5, 0x12345: 1, 0xC0000082: 1 << 63}) == [0x12345, 0xC0000082]


def test_cpuid_comes_from_the_table() -> None:
    with Guest("mov eax, 0x10\n mov ecx, 1\n cpuid\n mov esi, eax\n mov eax, 1\n cpuid\n hlt") as guest:
        guest.vcpu.set_cpuid2(
            [(0x10, 0, 1, 1, 2, 3, 4), (0x10, 1, 1, 5, 6, 7, 8), (1, 0, 0, 9, 10, 1 << 27, 12)]
        )
        guest.to_halt()
        assert (guest.rsi, guest.rbx, guest.rdx) == (5, 10, 12)
        assert guest.rcx == 0  # OSXSAVE follows CR4


@pytest.mark.parametrize(
    ("vendor", "function", "answer"),
    [
        (b"GenuineIntel", 0x5, 0),  # in its range, but not there
        (b"GenuineIntel", 0xE, 0x1234),  # beyond the last basic leaf
        (b"GenuineIntel", 0x40000001, 0x77),  # there
        (b"GenuineIntel", 0x40000002, 0x1234),  # beyond the last of the hypervisor's
        (b"GenuineIntel", 0x40000100, 0x1234),  # a block that isn't there
        (b"GenuineIntel", 0x80000001, 0x1234),  # no extended leaves at all
        (b"AuthenticAMD", 0xE, 0),
        (b"AuthenticAMD", 0x40000100, 0),
    ],
)
def test_cpuid_beyond_the_last_leaf(vendor: bytes, function: int, answer: int) -> None:
    """SDM vol. 2, CPUID: the highest basic leaf's data on Intel's processors; nothing on AMD's."""
    ebx, edx, ecx = struct.unpack("<III", vendor)
    with Guest(f"mov eax, {function:#x}\n xor ecx, ecx\n cpuid\n hlt") as guest:
        guest.vcpu.set_cpuid2(
            [
                (0, 0, 0, 0xD, ebx, ecx, edx),
                (0xD, 0, 1, 0x1234, 0, 0, 0),
                (0x40000000, 0, 0, 0x40000001, 0, 0, 0),
                (0x40000001, 0, 0, 0x77, 0, 0, 0),
            ]
        )
        guest.to_halt()
        assert guest.rax == answer


def test_cpuid_hides_what_the_translator_lacks() -> None:
    table = {entry[:2]: entry[3:] for entry in system().get_supported_cpuid()}
    ecx = table[1, 0][2]
    assert not ecx & (1 << 28 | 1 << 12 | 1 << 29)  # AVX, FMA, F16C
    assert ecx >> 31  # a hypervisor
    assert not table[7, 0][1] & 1 << 5  # AVX2
    assert table[0xD, 0][0] == 3


def test_a_triple_fault_is_a_shutdown() -> None:
    with Guest("ud2") as guest:
        guest.set_sregs(idt__limit=0)
        assert guest.enter().reason == SHUTDOWN


def test_code_where_nothing_is_gives_an_internal_error() -> None:
    with Guest(f"mov eax, {HOLE}\n jmp rax") as guest:
        assert guest.enter() == Seen(INTERNAL_ERROR, HOLE)
        assert guest.run.internal.suberror == 1
        guest.set(rip=ORIGIN)
        assert guest.enter().reason == INTERNAL_ERROR
