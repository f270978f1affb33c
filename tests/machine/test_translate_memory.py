"""Memory on the translate engine: slots, code that changes, page tables. No machine around it."""

from __future__ import annotations

import pytest
from translate_rig import HLT, IO, MMIO, ORIGIN, SIZE, Guest, assemble

from kvmpy.errors import EngineError, KvmError
from kvmpy.x86 import entry, paging

LOOP = "l: call f\n out 0x10, al\n jmp l\n .org 0x100\n f: mov al, 1\n ret"
CODE = ORIGIN + 0x101  # the immediate of MOV
DATA = 0x9000
READONLY = 2  # KVM_MEM_READONLY


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_code_that_modifies_itself(bits: int) -> None:
    pointer = {16: "si", 32: "esi", 64: "rsi"}[bits]
    code = f"mov {pointer}, {CODE}\n l: call f\n mov dl, al\n inc byte ptr [{pointer}]\n call f\n hlt"
    with Guest(f"{code}\n .org 0x100\n f: mov al, 1\n ret", bits) as guest:
        assert guest.to_halt() == []
        assert (guest.rax & 0xFF, guest.rdx & 0xFF) == (2, 1)


def test_code_that_modifies_the_instruction_behind_it() -> None:
    with Guest(f"mov byte ptr [{ORIGIN + 9}], 7\n mov al, 1\n hlt") as guest:
        guest.to_halt()
        assert guest.rax & 0xFF == 7


def test_pages_become_code_and_data_by_turns() -> None:
    """A page is stored to, then run, then stored to again, 600 times; what runs is always what was stored last."""
    code = f"""
        mov rdi, {DATA}
        mov ebx, 600
    again:
        mov ecx, 300
    fill:
        mov dword ptr [rdi + rcx * 8], 0x90909090
        dec ecx
        jnz fill
        mov dword ptr [rdi], 0xc300b0      # mov al, 0; ret
        mov [rdi + 1], bl
        call rdi
        cmp al, bl
        jne wrong
        inc byte ptr [rdi + 1]
        call rdi
        dec al
        cmp al, bl
        jne wrong
        test ebx, 3
        jnz stays
        mov byte ptr [rdi], 0xc3            # what comes next isn't code until the next turn
    stays:
        dec ebx
        jnz again
    wrong:
        hlt"""
    with Guest(code) as guest:
        assert guest.to_halt() == []
        assert guest.rbx == 0


def test_a_page_is_code_at_one_address_and_data_at_another() -> None:
    """Stores through an alias of the same page reach the code."""
    code = f"""
        mov rax, cr3
        mov rax, [rax]
        and rax, -4096
        mov rax, [rax]
        and rax, -4096                      # the table of 2 MiB pages: the second becomes what the first is
        mov rcx, [rax]
        mov [rax + 8], rcx
        mov rcx, cr3
        mov cr3, rcx
        mov rdi, {DATA}
        mov rsi, {DATA} + 0x200000
        mov dword ptr [rsi], 0x900001b0
        mov dword ptr [rdi], 0xc301b0
        call rdi
        mov dl, al
        mov byte ptr [rsi + 1], 2
        call rdi
        hlt"""
    with Guest(code) as guest:
        assert guest.to_halt() == []
        assert (guest.rdx & 0xFF, guest.rax & 0xFF) == (1, 2)


def test_what_the_host_writes_is_what_runs() -> None:
    with Guest(LOOP) as guest:
        for value in range(1, 20):
            assert guest.enter().data == bytes([value])
            guest.write(CODE, bytes([value + 1]))
            guest.vm.wrote(CODE, 1)


def test_more_writes_than_are_kept_one_by_one_are_all_heeded() -> None:
    with Guest(LOOP) as guest:
        guest.enter()
        guest.write(CODE, b"\x09")
        guest.vm.wrote(CODE, 1)
        for gpa in range(0x10000, 0x11000):
            guest.vm.wrote(gpa, 1)
        assert guest.enter().data == b"\x09"


def test_slots_come_and_go_while_an_access_waits() -> None:
    with Guest(f"l: mov al, [{SIZE}]\n jmp l") as guest:
        seen = guest.enter()
        assert (seen.reason, seen.address) == (MMIO, SIZE)
        guest.answer(b"\x01")
        guest.write(0x7000, b"\x55")
        guest.vm.set_user_memory_region(1, SIZE, 0x1000, guest.address + 0x7000)
        guest.run.immediate_exit = 1
        guest.vcpu.enter()
        guest.run.immediate_exit = 0
        guest.vm.set_user_memory_region(1, SIZE, 0, 0)
        assert guest.enter().address == SIZE


def test_a_slot_takes_the_place_of_a_hole_and_gives_it_back() -> None:
    with Guest(f"mov ebx, {SIZE}\n l: mov eax, [rbx]\n out 0x10, al\n jmp l") as guest:
        guest.write(0x7000, b"\x55")
        assert guest.enter().reason == MMIO
        guest.answer(b"\x01\0\0\0")
        assert guest.enter().data == b"\x01"
        guest.vm.set_user_memory_region(1, SIZE, 0x1000, guest.address + 0x7000)
        assert guest.enter().data == b"\x55"
        guest.vm.set_user_memory_region(1, SIZE, 0, 0)
        assert guest.enter().reason == MMIO


def test_slots_change_while_the_page_tables_are_gone() -> None:
    """The library looks into them, and has the fault it finds be the guest's."""
    with Guest("out 0x10, al\n nop\n hlt") as guest:
        assert guest.enter().reason == IO
        guest.set_sregs(cr2=0x1234)
        tables = guest.read(0x10000, SIZE - 0x10000)
        guest.write(0x10000, bytes(len(tables)))
        for _ in range(3):
            guest.vm.set_user_memory_region(1, SIZE, 0, 0)
            guest.vm.set_user_memory_region(1, SIZE, 0x1000, guest.address + 0x7000)
            guest.vm.set_user_memory_region(1, SIZE, 0x1000, guest.address + 0x7000, READONLY)
        guest.write(0x10000, tables)
        assert guest.enter().reason == HLT
        assert guest.vcpu.get_sregs().cr2 == 0x1234


def test_code_runs_from_wherever_its_slot_is_moved_to() -> None:
    with Guest("hlt") as guest:
        guest.write(0x7000, assemble("mov al, 5\n out 0x10, al\n hlt", 64, 0x7000))
        guest.vm.set_user_memory_region(1, SIZE, 0x1000, guest.address + 0x7000)
        guest.set(rip=SIZE)
        assert guest.enter().data == b"\x05"
        guest.vm.set_user_memory_region(1, SIZE + 0x2000, 0x1000, guest.address + 0x7000)
        guest.set(rip=SIZE + 0x2000)
        assert guest.enter().data == b"\x05"


def test_slots_that_can_not_be() -> None:
    with Guest("hlt") as guest:
        for gpa, size, error in (
            (0x1000, 0x1000, "EEXIST"),
            (SIZE, 0x800, "EINVAL"),
            (1 << 40, 0x1000, "EINVAL"),
        ):
            with pytest.raises(KvmError, match=error):
                guest.vm.set_user_memory_region(5, gpa, size, guest.address)
        with pytest.raises(EngineError, match="vCPU 1"):
            guest.vm.create_vcpu(1)


def test_memory_high_up() -> None:
    high = 5 << 30
    state = entry.long_mode(
        ORIGIN,
        memory_size=SIZE,
        map=[paging.Mapping(0, 0, SIZE), paging.Mapping(0xFFFF800000000000, high, 0x200000)],
        stack=0x8000,
    )
    with Guest("mov rbx, 0xffff800000000000\n mov qword ptr [rbx], 7\n hlt", state=state) as guest:
        guest.vm.set_user_memory_region(1, high, 0x200000, guest.address + 0x200000)
        assert guest.vcpu.translate(0xFFFF800000000123) == high + 0x123
        assert guest.vcpu.translate(0xFFFF900000000000) is None
        assert guest.to_halt() == []
        assert guest.read(0x200000, 1) == b"\x07"


@pytest.mark.parametrize(("pae", "size"), [(False, 4096), (False, 4 << 20), (True, 4096), (True, 2 << 20)])
def test_paging_of_32_bit_guests(pae: bool, size: int) -> None:
    maps = [paging.Mapping(0, 0, SIZE), paging.Mapping(0xC0000000, 0, SIZE)]
    state = entry.protected_mode(
        ORIGIN, paging=True, pae=pae, page_size=size, map=maps, memory_size=SIZE, stack=0x8000
    )
    with Guest("mov eax, [0xc0006000]\n mov dword ptr [0xc0006004], 9\n hlt", 32, state=state) as guest:
        guest.write(0x6000, b"\x11\x22\x33\x44")
        assert guest.vcpu.translate(0xC0006004) == 0x6004
        assert guest.to_halt() == []
        assert guest.rax == 0x44332211
        assert guest.read(0x6004, 1) == b"\x09"


def test_page_tables_changed_by_the_guest_count_after_invlpg() -> None:
    maps = [paging.Mapping(0, 0, SIZE)]
    state = entry.long_mode(
        ORIGIN, memory_size=SIZE, page_size=4096, map=maps, stack=0x8000, tables_at=0x100000
    )
    code = (
        "mov al, [0x300000]\n mov rdx, [rbx]\n mov [rcx], rdx\n invlpg [0x300000]\n mov ah, [0x300000]\n hlt"
    )
    with Guest(code, state=state) as guest:
        guest.write(0x300000, b"a")
        guest.write(0x301000, b"b")
        table = next(
            at
            for at in range(0x100000, 0x200000, 8)
            if int.from_bytes(guest.read(at, 8), "little") & ~0xFFF == 0x300000
        )
        guest.set(rbx=table + 8, rcx=table)
        assert guest.to_halt() == []
        assert guest.rax & 0xFFFF == int.from_bytes(b"ab", "little")


def test_page_tables_where_nothing_is_end_in_a_shutdown() -> None:
    with Guest("mov rax, 0xf00000\n mov cr3, rax\n nop\n hlt") as guest:
        assert guest.enter().reason == 8


def test_instructions_across_pages() -> None:
    with Guest("jmp l\n .org 0xffd\n l: mov eax, 0x12345678\n out 0x10, al\n hlt") as guest:
        assert guest.enter()[:4] == (IO, ORIGIN + 0x1002, True, 0x10)
        assert guest.enter().reason == HLT
        assert guest.rax == 0x12345678


def test_the_fpu_is_the_guests() -> None:
    with Guest("fld1\n fldpi\n movups xmm3, [0x6000]\n hlt") as guest:
        guest.write(0x6000, bytes(range(16)))
        guest.to_halt()
        fpu = guest.vcpu.get_fpu()
        assert bytes(fpu.fpr[1])[:10] == bytes.fromhex("0000000000000080ff3f")
        assert fpu.fsw >> 11 & 7 == 6
        assert fpu.ftwx == 0xC0
        assert bytes(fpu.xmm[3]) == bytes(range(16))
        fpu.xmm[3][0] = 0x77
        fpu.mxcsr = 0x1FA0
        guest.vcpu.set_fpu(fpu)
        again = guest.vcpu.get_fpu()
        assert (again.xmm[3][0], again.mxcsr, again.fsw, again.fcw) == (0x77, 0x1FA0, fpu.fsw, 0x37F)
