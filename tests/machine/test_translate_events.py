"""Exceptions, interrupts and system calls on the translate engine: what the manuals say. No machine around it."""

from __future__ import annotations

import struct

import pytest
from translate_rig import (
    DEBUG,
    HLT,
    IO,
    IRQ_WINDOW,
    MMIO,
    ORIGIN,
    SHUTDOWN,
    SIZE,
    STACK,
    Guest,
    assemble,
    entry_state,
)

from kvmpy.errors import KvmError
from kvmpy.x86 import entry, layout
from kvmpy.x86.entry import EntryState

HANDLERS = 0x30000
PORT = 0x100
ADDRESS = 0x000F_FFFF_FFFF_F000  # in an entry of a page table
OSFXSR = 1 << 9  # without it, the library refuses SHLX
READONLY = 2  # KVM_MEM_READONLY
WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17)
VECTORS = [*range(20), 0x20, 0x21, 0x80]
USER_STACK = 0x9000
EINTR = 4
IF, TF, NT, RF = 1 << 9, 1 << 8, 1 << 14, 1 << 16
KERNEL_SS = layout.DATA


def handlers(bits: int) -> bytes:
    """One each 32 bytes: tells its vector by an OUT, then returns, past an error code."""
    pointer, size, back = {16: ("sp", 2, "iret"), 32: ("esp", 4, "iretd"), 64: ("rsp", 8, "iretq")}[bits]
    lines = []
    for vector in VECTORS:
        skip = f"add {pointer}, {size}" if vector in WITH_ERROR_CODE and bits != 16 else ""
        lines.append(f".org {vector * 32}\n mov dx, {PORT + vector}\n out dx, al\n {skip}\n {back}")
    return assemble("\n".join(lines), bits, HANDLERS if bits != 16 else 0)


def state(bits: int, ring: int = 0, *, interrupts: bool = False, ports: bool = False) -> EntryState:
    """A guest with a handler for each of VECTORS."""
    idt = {vector: HANDLERS + vector * 32 for vector in VECTORS}
    stack = USER_STACK if ring else STACK
    common = {
        "idt": idt,
        "ring": ring,
        "stack": stack,
        "interrupts": interrupts,
        "ports": ports,
        "tables_at": 0x40000,
    }
    if bits == 64:
        return entry.long_mode(ORIGIN, memory_size=SIZE, **common)  # type: ignore[arg-type]
    return entry.protected_mode(ORIGIN, memory_size=SIZE, **common)  # type: ignore[arg-type]


def guest_with_handlers(
    code: str, bits: int, ring: int = 0, *, interrupts: bool = False, ports: bool = True
) -> Guest:
    if bits == 16:
        guest = Guest(code, 16)
        for vector in VECTORS:
            guest.write(vector * 4, struct.pack("<HH", vector * 32, HANDLERS >> 4))
        guest.set(rflags=2 | (IF if interrupts else 0))
    else:
        guest = Guest(code, bits, state=state(bits, ring, interrupts=interrupts, ports=ports))
    guest.write(HANDLERS, handlers(bits))
    return guest


def frame(guest: Guest) -> list[int]:
    """What the CPU pushed, as the handler's OUT finds it: from the top of the stack."""
    size = {16: 2, 32: 4, 64: 8}[guest.bits]
    data = guest.read(guest.rsp, 8 * size)
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


def bytes_of(code: str) -> str:
    return ".byte " + ", ".join(f"0x{code[at : at + 2]}" for at in range(0, len(code), 2))


def vector_of(guest: Guest) -> int:
    seen = guest.enter()
    assert seen.reason == IO, seen
    return seen.address - PORT


# vector, code, what is added to ORIGIN in the frame's rip, error code
FAULTS = [
    (0, "xor ecx, ecx\n div ecx", 2, None),
    (6, "ud2", 0, None),
    (3, "int3", 1, None),
    (0x80, "int 0x80", 2, None),
    (0x21, "nop\n int 0x21", 3, None),
    (13, "mov eax, 0x78\n mov fs, ax", 5, 0x78),
    (13, "mov eax, 0x79\n ltr ax", 5, 0x78),
    (14, "mov eax, [0x7f000000]", 0, 0),
    (14, "mov [0x7f000000], eax", 0, 2),
    (1, "pushfd\n or dword ptr [esp], 0x100\n popfd\n nop", 10, None),
]


@pytest.mark.parametrize(
    ("bits", "vector", "code", "offset", "error"),
    [(bits, *fault) for bits in (32, 64) for fault in FAULTS if fault[0] != 14 or bits == 64],
)
def test_exceptions_push_what_the_manual_says(
    bits: int, vector: int, code: str, offset: int, error: int | None
) -> None:
    if bits == 64:
        code = code.replace("pushfd", "pushfq").replace("[esp]", "[rsp]").replace("popfd", "popfq")
    if vector == 14:
        code = code.replace("[0x7f000000]", "[rbx]")
    with guest_with_handlers(code, bits) as guest:
        guest.set(rbx=0x1_7F00_0000)  # beyond what the page tables map
        assert vector_of(guest) == vector
        pushed = frame(guest)
        if error is not None:
            assert pushed.pop(0) == error
        rip, cs, flags = pushed[:3]
        assert (rip, cs) == (ORIGIN + offset, layout.CODE)
        assert flags & 2
        if bits == 64:
            assert guest.rsp == STACK - 40 - (8 if error is not None else 0)
            assert pushed[3] == STACK
            assert pushed[4] == KERNEL_SS
        assert not guest.rflags & (IF | TF | NT)
        if vector == 14:
            assert guest.vcpu.get_sregs().cr2 == 0x1_7F00_0000


def test_long_mode_aligns_the_stack() -> None:
    with guest_with_handlers("sub rsp, 3\n ud2", 64) as guest:
        assert vector_of(guest) == 6
        assert guest.rsp == ((STACK - 3) & ~15) - 40
        assert frame(guest)[3] == STACK - 3


REAL_FAULTS = [
    (0, "xor cx, cx\n div cx", 2),
    (3, "int3", 1),
    (0x21, "int 0x21", 2),
    (6, "ud2", 0),
    (4, "mov al, 127\n inc al\n into", 5),
]


@pytest.mark.parametrize(("vector", "code", "offset"), REAL_FAULTS)
def test_real_mode_goes_through_the_ivt(vector: int, code: str, offset: int) -> None:
    vectors = VECTORS if vector in VECTORS else [*VECTORS, vector]
    assert vector in vectors
    with guest_with_handlers(code + "\n nop", 16, interrupts=True) as guest:
        assert vector_of(guest) == vector
        ip, cs, flags = frame(guest)[:3]
        assert (ip, cs) == (ORIGIN + offset, 0)
        assert flags & IF
        assert guest.rsp == STACK - 6
        assert not guest.rflags & IF


def test_bound_and_into_in_protected_mode() -> None:
    with guest_with_handlers("mov eax, 5\n bound eax, [0x6000]", 32) as guest:
        guest.write(0x6000, struct.pack("<ii", 0, 4))
        assert vector_of(guest) == 5
        assert frame(guest)[0] == ORIGIN + 5
    with guest_with_handlers("mov al, 127\n inc al\n into\n hlt", 32) as guest:
        assert vector_of(guest) == 4
        assert frame(guest)[0] == ORIGIN + 5
        assert guest.enter().reason == HLT


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_handlers_return(bits: int) -> None:
    with guest_with_handlers("mov bl, 1\n int 0x21\n mov bl, 2\n int3\n mov bl, 3\n hlt", bits) as guest:
        assert vector_of(guest) == 0x21
        assert vector_of(guest) == 3
        assert guest.rbx & 0xFF == 2
        assert guest.enter().reason == HLT
        assert (guest.rbx & 0xFF, guest.rsp) == (3, STACK)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("vector", "code", "offset", "error"),
    [(6, "ud2", 0, None), (13, "cli", 0, 0), (13, "hlt", 0, 0), (13, "int 0x80", 0, 0x402)],
)
def test_ring_3_enters_the_kernel_on_its_stack(
    bits: int, vector: int, code: str, offset: int, error: int | None
) -> None:
    with guest_with_handlers(code, bits, 3) as guest:
        assert vector_of(guest) == vector
        pushed = frame(guest)
        if error is not None:
            assert pushed.pop(0) == error
        assert pushed[0] == ORIGIN + offset
        assert pushed[1] & 3 == 3
        assert pushed[3:5] == [USER_STACK, layout.USER_DATA | 3]
        sregs = guest.vcpu.get_sregs()
        assert (sregs.cs.dpl, sregs.ss.dpl, sregs.cs.selector) == (0, 0, layout.CODE)
        assert sregs.ss.selector == (0 if bits == 64 else layout.DATA)


@pytest.mark.parametrize("bits", [32, 64])
def test_ports_of_ring_3_go_by_the_bitmap(bits: int) -> None:
    with guest_with_handlers("out 0x44, al\n hlt", bits, 3, ports=True) as guest:
        assert guest.enter()[:4] == (IO, ORIGIN, True, 0x44)
        assert vector_of(guest) == 13
    with guest_with_handlers("out 0x44, al\n hlt", bits, 3, ports=False) as guest:
        assert vector_of(guest) == 13
        assert frame(guest)[:2] == [0, ORIGIN]
    with guest_with_handlers("in eax, dx\n hlt", bits, 3, ports=False) as guest:
        guest.set(rflags=2 | 3 << 12)  # IOPL
        assert guest.enter()[:3] == (IO, ORIGIN, False)


def test_ist_stacks() -> None:
    with guest_with_handlers("ud2", 64) as guest:
        sregs = guest.vcpu.get_sregs()
        guest.write(sregs.tr.base + 0x24 + 8 * 2, struct.pack("<Q", 0x7770))  # IST3
        gate = sregs.idt.base + 6 * 16
        guest.write(gate + 4, b"\x03")
        assert vector_of(guest) == 6
        assert guest.rsp == 0x7770 - 40
        assert frame(guest)[3] == STACK


def test_a_gate_that_is_not_present_is_11_and_one_beyond_the_table_13() -> None:
    """Error codes of the IDT, with EXT where it isn't an INT instruction that wants it."""
    for limit, present, vector, error in (
        (0xFFF, False, 11, 6 * 8 + 3),
        (14 * 16 + 15, True, 13, 0x80 * 8 + 2),
    ):
        with guest_with_handlers("ud2" if not present else "int 0x80", 64) as guest:
            sregs = guest.vcpu.get_sregs()
            if not present:
                guest.write(sregs.idt.base + 6 * 16 + 5, b"\x0e")
            guest.set_sregs(idt__limit=limit)
            assert vector_of(guest) == vector
            assert frame(guest)[:2] == [error, ORIGIN]


@pytest.mark.parametrize("bits", [32, 64])
def test_contributory_faults_make_a_double_fault(bits: int) -> None:
    size = bits // 4
    with guest_with_handlers("mov eax, 0x78\n mov fs, ax", bits) as guest:
        idt = guest.vcpu.get_sregs().idt.base
        for vector in (11, 13):
            guest.write(idt + vector * size + 5, b"\x0e")  # not present
        assert vector_of(guest) == 8
        assert frame(guest)[:2] == [0, ORIGIN + 5]


@pytest.mark.parametrize("bits", [32, 64])
def test_a_fault_in_the_double_fault_is_a_shutdown(bits: int) -> None:
    size = bits // 4
    with guest_with_handlers("mov eax, 0x78\n mov fs, ax", bits) as guest:
        idt = guest.vcpu.get_sregs().idt.base
        for vector in (8, 11, 13):
            guest.write(idt + vector * size + 5, b"\x0e")
        assert guest.enter().reason == SHUTDOWN


def test_faults_one_after_the_other_are_no_double_fault() -> None:
    with guest_with_handlers("mov eax, 0x78\n again: mov fs, ax\n hlt", 64) as guest:
        for _ in range(3):
            assert vector_of(guest) == 13  # returns to the instruction, which faults again


def test_a_kernel_stack_that_is_not_mapped_is_a_double_fault_on_another() -> None:
    with guest_with_handlers("mov rsp, rbx\n push rax", 64) as guest:
        guest.set(rbx=0x1_7F00_0000)
        sregs = guest.vcpu.get_sregs()
        guest.write(sregs.tr.base + 0x24, struct.pack("<Q", 0x7770))
        guest.write(sregs.idt.base + 8 * 16 + 4, b"\x01")
        assert vector_of(guest) == 8
        assert frame(guest)[0] == 0
        assert guest.rsp == 0x7770 - 48


def test_a_handler_that_is_not_mapped_faults_for_ever_and_can_be_stopped() -> None:
    with guest_with_handlers("mov eax, [rbx]", 64) as guest:
        guest.set(rbx=0x1_7F00_0000)
        sregs = guest.vcpu.get_sregs()
        guest.write(sregs.tr.base + 0x24, struct.pack("<Q", 0x7770))
        gate = sregs.idt.base + 14 * 16
        guest.write(gate + 4, b"\x01")
        guest.write(gate + 8, b"\x01")  # the handler is above 4 GiB
        timer = guest.kick_after(0.05)
        assert guest.vcpu.enter() == EINTR
        timer.join()
        assert guest.rip == HANDLERS + 14 * 32 + (1 << 32)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("code", ["f00fabd8", "f0660fb3ec", "66f00fbae801", "f00fa3c1", "f00fbbc0"])
def test_locked_bit_instructions_of_registers_are_undefined(bits: int, code: str) -> None:
    """The library would abort the process."""
    with guest_with_handlers(f"inc ebx\n inc ebx\n mov cl, 1\n l: {bytes_of(code)}\n hlt", bits) as guest:
        assert vector_of(guest) == 6
        rip = frame(guest)[0]
        assert guest.read(rip, len(code) // 2).hex() == code
        assert guest.rbx == 2


def test_a_locked_bit_instruction_in_read_only_memory() -> None:
    with guest_with_handlers("mov ebx, 0x100000\n inc ecx\n jmp rbx", 64) as guest:
        guest.write(0x100000, bytes.fromhex("ffc1f00fabd8f4"))  # inc ecx; lock bts eax, ebx
        guest.vm.set_user_memory_region(0, 0, 0x100000, guest.address)
        guest.vm.set_user_memory_region(1, 0x100000, 0x1000, guest.address + 0x100000, READONLY)
        guest.vm.set_user_memory_region(2, 0x101000, SIZE - 0x101000, guest.address + 0x101000)
        assert vector_of(guest) == 6
        assert frame(guest)[0] == 0x100002
        assert guest.read(0x100002, 4) == bytes.fromhex("f00fabd8")


# AVX, AVX2, AVX-512, FMA and masks: what CPUID doesn't have. Then BMI that isn't one: VEX.L, a prefix in front, no such
# group, no such opcode extension.
VECTOR_CODE = [
    "c5f877", "c5f058c2", "c5f96fc1", "c5fc58c1", "c4e27113c0", "c4e27198c2", "c4e37118c201", "c4e1f058c2", "c5f892c0",
    "62f17c4858c1", "62f1fd486fc1", "c4e264f2c1", "c4e260f3c1", "c4e261f5c1", "c4e262f6c1", "66c4e260f2c1",
    "f3c4e260f2c1", "f2c4e260f2c1", "f0c4e260f2c1", "c4e360f0c101", "c4e460f2c1", "c4e260f1c1",
    "8fe97812c0", "8fc8",
]  # fmt: skip
BMI_CODE = {
    "c4e260f2c1": "andn eax, ebx, ecx", "c4e260f3c9": "blsr ebx, ecx", "c4e260f5c1": "bzhi eax, ecx, ebx",
    "c4e262f5c1": "pext eax, ebx, ecx", "c4e263f5c1": "pdep eax, ebx, ecx", "c4e263f6c1": "mulx eax, ebx, ecx",
    "c4e260f7c1": "bextr eax, ecx, ebx", "c4e261f7c1": "shlx eax, ecx, ebx", "c4e37bf0c103": "rorx eax, ecx, 3",
}  # fmt: skip


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("code", VECTOR_CODE)
def test_vector_extensions_are_undefined(bits: int, code: str) -> None:
    """CPUID hides them, and the library would run some of them as SSE. SDM vol. 2, 2.3.5 and table 2-17."""
    with guest_with_handlers("inc ebx\n nop\n" + bytes_of(code) + "\n hlt", bits) as guest:
        assert vector_of(guest) == 6
        assert guest.read(frame(guest)[0], len(code) // 2).hex() == code
        assert guest.rbx == 1


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("code", ["c7f800000000", "c6f800", "66c7c80001", "c6cb03", "c74d0001020304"])
def test_moves_of_an_immediate_are_slash_0(bits: int, code: str) -> None:
    """XBEGIN and XABORT, which CPUID doesn't have, and what no processor has: the library takes most for MOV."""
    with guest_with_handlers("inc ebx\n nop\n" + bytes_of(code) + "\n hlt", bits) as guest:
        assert vector_of(guest) == 6
        assert guest.read(frame(guest)[0], len(code) // 2).hex() == code
        assert guest.rbx == 1


@pytest.mark.parametrize(
    "code", ["lock cmpxchg8b [0x6000]", "cmpxchg8b [0x6000]", "lock cmpxchg16b [0x6000]"]
)
def test_an_exchange_of_two_registers_changes_zf_alone(code: str) -> None:
    """Behind an instruction of the same block that sets the flags: the library has them nowhere then."""
    with Guest(f"mov al, 0x7f\n lock xadd [0x6010], al\n {code}\n pushf\n pop rsi\n hlt") as guest:
        guest.write(0x6010, b"\x01")
        guest.set(rsp=0x5000)
        assert guest.to_halt() == []
        assert guest.rsi & ~0x40 == 0x892  # OF, SF, AF; neither CF nor PF
        assert guest.rsi & 0x40 == 0


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("code", BMI_CODE)
def test_bmi_is_there_as_cpuid_says(bits: int, code: str) -> None:
    with guest_with_handlers("nop\n" + bytes_of(code) + "\n hlt", bits) as guest:
        guest.set_sregs(cr4=guest.vcpu.get_sregs().cr4 | OSFXSR)
        guest.set(rax=0, rbx=0x0F0F, rcx=0x1234FF, rdx=0x7)
        assert guest.enter().reason == HLT
        expected = {
            "andn": 0x1234FF & ~0x0F0F, "bzhi": 0x1234FF & 0x7FFF, "pext": 0x10F, "pdep": 0x2340F,
            "bextr": 0x1234FF >> 15 & 0x7FFF, "shlx": 0x1234FF << 15 & 0xFFFFFFFF,
            "rorx": (0x1234FF >> 3 | 0x1234FF << 29) & 0xFFFFFFFF,
        }  # fmt: skip
        name = BMI_CODE[code].split()[0]
        if name == "blsr":
            assert guest.rbx == 0x1234FE
        elif name == "mulx":
            assert (guest.rax, guest.rbx) == (0, 0x7 * 0x1234FF)
        else:
            assert hex(guest.rax) == hex(expected[name])


def test_bmi_is_undefined_in_real_mode() -> None:
    with guest_with_handlers(bytes_of("c4e260f2c1") + "\n hlt", 16) as guest:
        assert vector_of(guest) == 6


@pytest.mark.parametrize("bits", [16, 32])
def test_les_lds_and_bound_are_no_vector_extensions(bits: int) -> None:
    with guest_with_handlers(
        "les edi, [0x6000]\n lds esi, [0x6000]\n bound eax, [0x6010]\n hlt", bits
    ) as guest:
        guest.set(rax=5)
        selector = guest.vcpu.get_sregs().ds.selector
        guest.write(0x6000, struct.pack("<IH10xII", 4, selector, 4, 6))
        assert guest.enter().reason == HLT
        assert (guest.rdi, guest.rsi) == (4, 4)


@pytest.mark.parametrize(
    "instruction", ["aam 7", "aad 7", "bound eax, [0x6000]", "lsl eax, ebx", "enter 0, 31", "str ax"]
)
def test_long_blocks_of_instructions_that_waste_the_translators_temporaries(instruction: str) -> None:
    with guest_with_handlers("\n".join([instruction] * 600) + "\n inc ebx\n hlt", 32) as guest:
        guest.write(0x6000, struct.pack("<iI", -(1 << 31), (1 << 31) - 1))
        guest.set(rsp=0x3FF000, rbp=0x3FE000)
        assert guest.enter().reason == HLT
        assert guest.rbx == 1


def test_bytes_that_only_look_like_a_locked_bit_instruction() -> None:
    with Guest(
        "mov rax, 0xc0b30ff0c0b30ff0\n mov ebx, 0xc0b30ff0\n lock btr dword ptr [0x6000], 1\n hlt"
    ) as guest:
        guest.write(0x6000, b"\xff")
        assert guest.to_halt() == []
        assert (guest.rax, guest.rbx) == (0xC0B30FF0C0B30FF0, 0xC0B30FF0)
        assert guest.read(0x6000, 1) == b"\xfd"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("inc dword ptr [rbx]", 2),
        ("cmp [rbx], eax", 0),
        ("xchg [rbx], al", 2),
        ("lock xadd [rbx], eax", 2),
        ("not word ptr [rbx]", 2),
    ],
)
def test_instructions_that_modify_memory_fault_as_writes(code: str, error: int) -> None:
    with guest_with_handlers(code, 64) as guest:
        guest.set(rbx=0x1_7F00_0000)
        assert vector_of(guest) == 14
        assert frame(guest)[0] == error


@pytest.mark.parametrize(
    "instruction", ["rcr qword ptr [rbx], 1", "rcl byte ptr [rbx], cl", "rcr word ptr [rbx], 3"]
)
@pytest.mark.parametrize("address", [0x1_7F00_0000, 1 << 63])
def test_rotates_that_fault_leave_the_flags(instruction: str, address: int) -> None:
    """The fault comes after the library has worked out the flags. Page fault, general protection."""
    with guest_with_handlers(f"mov al, 0x7f\n add al, 1\n {instruction}", 64) as guest:
        guest.set(rbx=address, rcx=1)
        assert vector_of(guest) == (13 if address >> 63 else 14)
        rflags = frame(guest)[3]  # behind the error code
        assert rflags & 0x8D5 == 0x890  # OF, SF, AF; neither CF nor ZF nor PF


@pytest.mark.parametrize("bit", [13, 45, 51])
def test_a_reserved_bit_is_in_the_error_code(bit: int) -> None:
    """In the entry of a page of 2 MiB: P and RSVD. SDM vol. 3, 4.7."""
    with guest_with_handlers(f"mov al, [{2 << 20}]\n hlt", 64) as guest:
        table = guest.vcpu.get_sregs().cr3
        for _ in range(2):
            table = int.from_bytes(guest.read(table, 8), "little") & ADDRESS
        large = int.from_bytes(guest.read(table + 8, 8), "little") | 1 << bit
        guest.write(table + 8, struct.pack("<Q", large))
        assert vector_of(guest) == 14
        assert frame(guest)[0] == 0b1001


def test_faults_push_rf() -> None:
    for code, pushed in (("ud2", RF), ("int3", 0), ("int 0x80", 0)):
        with guest_with_handlers(code, 64) as guest:
            vector_of(guest)
            assert frame(guest)[2] & RF == pushed
            assert not guest.rflags & RF


# Interrupts


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_an_interrupt_waits_for_the_guest_to_allow_it(bits: int) -> None:
    with guest_with_handlers("nop\n cli\n out 0x10, al\n sti\n nop\n inc ebx\n hlt", bits) as guest:
        assert guest.enter().address == 0x10
        assert guest.run.if_flag == 0
        assert guest.run.ready_for_interrupt_injection == 0
        guest.vcpu.interrupt(0x20)
        with pytest.raises(KvmError, match="EEXIST"):
            guest.vcpu.interrupt(0x21)
        assert vector_of(guest) == 0x20
        assert guest.rbx == 0
        assert not guest.rflags & IF
        assert guest.enter().reason == HLT
        assert guest.rbx == 1


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_sti_holds_interrupts_off_for_one_instruction(bits: int) -> None:
    with guest_with_handlers("sti\n inc ebx\n inc ebx\n hlt", bits) as guest:
        guest.vcpu.interrupt(0x20)
        assert vector_of(guest) == 0x20
        assert guest.rbx == 1


def test_mov_ss_holds_interrupts_off_for_one_instruction() -> None:
    """One that comes in the middle of the move, which reads the selector from MMIO."""
    with guest_with_handlers(
        "mov ss, word ptr [ebx]\n inc ecx\n inc ecx\n hlt", 32, interrupts=True
    ) as guest:
        guest.set(rbx=0xFE0000)
        assert guest.enter().reason == MMIO
        guest.answer(layout.DATA.to_bytes(2, "little"))
        guest.vcpu.interrupt(0x20)
        assert vector_of(guest) == 0x20
        assert guest.rcx == 1


def test_an_interrupt_set_at_an_exit_comes_before_the_next_instruction() -> None:
    with guest_with_handlers("out 0x10, al\n inc ebx\n hlt", 64, interrupts=True) as guest:
        guest.enter()
        guest.vcpu.interrupt(0x20)
        assert vector_of(guest) == 0x20
        assert (guest.rbx, frame(guest)[0]) == (0, ORIGIN + 2)


def test_a_halt_ends_with_an_interrupt() -> None:
    with guest_with_handlers("sti\n hlt\n inc ebx\n cli\n hlt", 64) as guest:
        assert guest.enter().reason == HLT
        assert (guest.run.if_flag, guest.run.ready_for_interrupt_injection) == (1, 1)
        guest.vcpu.interrupt(0x21)
        assert vector_of(guest) == 0x21
        assert frame(guest)[0] == ORIGIN + 2
        assert guest.enter().reason == HLT
        assert guest.rbx == 1


def test_the_interrupt_window_is_an_exit() -> None:
    with guest_with_handlers("cli\n nop\n inc eax\n sti\n inc ebx\n inc ecx\n hlt", 64) as guest:
        guest.run.request_interrupt_window = 1
        assert guest.enter().reason == IRQ_WINDOW
        assert guest.run.ready_for_interrupt_injection == 1
        assert (guest.rax, guest.rbx, guest.rcx) == (1, 1, 0)
        guest.run.request_interrupt_window = 0
        assert guest.enter().reason == HLT


def test_the_window_opens_with_iret_and_popf() -> None:
    code = "push 0x202\n popfq\n inc ebx\n hlt"
    with guest_with_handlers(code, 64) as guest:
        guest.vcpu.interrupt(0x20)
        assert vector_of(guest) == 0x20
        assert guest.rbx == 0
    with guest_with_handlers("int 0x80\n inc ebx\n hlt", 64, interrupts=True) as guest:
        assert vector_of(guest) == 0x80
        guest.vcpu.interrupt(0x20)
        assert vector_of(guest) == 0x20
        assert frame(guest)[0] == ORIGIN + 2


def test_an_nmi_comes_with_interrupts_off_and_not_within_another() -> None:
    with guest_with_handlers("cli\n nop\n out 0x10, al\n jmp l\n l: inc ebx\n hlt", 64) as guest:
        guest.enter()
        guest.vcpu.nmi()
        assert vector_of(guest) == 2
        assert guest.vcpu.get_vcpu_events().nmi.masked == 1
        guest.vcpu.nmi()
        assert guest.rbx == 0
        assert vector_of(guest) == 2  # the second, once the first has returned
        assert guest.enter().reason == HLT
        assert guest.rbx == 1


def test_a_thousand_interrupts_into_a_loop_lose_nothing() -> None:
    with guest_with_handlers("l: cli\n inc eax\n inc ebx\n sti\n nop\n jmp l", 64) as guest:
        for _ in range(1000):
            guest.vcpu.interrupt(0x20)
            assert vector_of(guest) == 0x20
            assert guest.rax == guest.rbx
            assert guest.rsp == STACK - 40


def test_events_travel_as_structures() -> None:
    with guest_with_handlers("nop\n hlt", 64, interrupts=True) as guest:
        guest.vcpu.interrupt(0x21)
        events = guest.vcpu.get_vcpu_events()
        assert (events.interrupt.injected, events.interrupt.nr) == (1, 0x21)
        events.interrupt.injected = 0
        events.exception.injected, events.exception.nr = 1, 13
        events.exception.has_error_code, events.exception.error_code = 1, 0x1234
        guest.vcpu.set_vcpu_events(events)
        assert vector_of(guest) == 13
        assert frame(guest)[:2] == [0x1234, ORIGIN]


# System calls


def test_syscall_and_sysret() -> None:
    with guest_with_handlers("syscall\n inc ebx\n ud2", 64, 3) as guest:
        guest.write(0x5000, assemble("mov r15d, 1\n out 0x10, al\n sysretq", 64, 0x5000))
        star = (layout.USER_CODE_SYSRET - 16 | 3) << 48 | layout.CODE << 32
        guest.vcpu.set_msrs({0xC0000081: star, 0xC0000082: 0x5000, 0xC0000084: IF | 1})
        guest.set(rflags=IF | 2 | 1)
        assert guest.enter().address == 0x10
        sregs = guest.vcpu.get_sregs()
        assert (sregs.cs.selector, sregs.cs.dpl, sregs.cs.l) == (layout.CODE, 0, 1)
        assert (sregs.ss.selector, sregs.ss.dpl) == (layout.CODE + 8, 0)
        assert (guest.rcx, guest.r11, guest.rflags & (IF | 1)) == (ORIGIN + 2, IF | 3, 0)
        assert guest.rsp == USER_STACK
        assert vector_of(guest) == 6
        assert guest.rbx == 1
        assert frame(guest)[1] & 3 == 3
        assert frame(guest)[2] & (IF | 1) == IF | 1


def test_syscall_without_sce_is_undefined() -> None:
    with guest_with_handlers("syscall", 64, 3) as guest:
        guest.set_sregs(efer=0xD00)
        assert vector_of(guest) == 6
        assert frame(guest)[0] == ORIGIN


def test_sysenter() -> None:
    with guest_with_handlers("sysenter", 32, 3) as guest:
        guest.write(0x5000, assemble("out 0x10, al\n hlt", 32, 0x5000))
        assert vector_of(guest) == 13  # nobody has set SYSENTER_CS
    with guest_with_handlers("sysenter", 32, 3) as guest:
        guest.write(0x5000, assemble("out 0x10, al\n hlt", 32, 0x5000))
        guest.vcpu.set_msrs({0x174: layout.CODE, 0x175: 0x7000, 0x176: 0x5000})
        assert guest.enter().address == 0x10
        sregs = guest.vcpu.get_sregs()
        assert (sregs.cs.selector, sregs.ss.selector, sregs.cs.dpl) == (layout.CODE, layout.CODE + 8, 0)
        assert guest.rsp == 0x7000


def test_msrs_nobody_knows_are_general_protection() -> None:
    with guest_with_handlers("mov ecx, 0x12345\n rdmsr", 64) as guest:
        assert vector_of(guest) == 13
        assert frame(guest)[:2] == [0, ORIGIN + 5]
    with guest_with_handlers("mov ecx, 0xc0000080\n mov eax, 0x40000000\n xor edx, edx\n wrmsr", 64) as guest:
        assert vector_of(guest) == 13
    with guest_with_handlers("xor ecx, ecx\n rdmsr", 64, 3) as guest:
        assert vector_of(guest) == 13


# Debugging


def test_single_steps() -> None:
    with Guest("inc rax\n inc rbx\n jmp l\n nop\n l: inc rcx\n hlt") as guest:
        guest.vcpu.set_guest_debug(3)
        rips = []
        for _ in range(4):
            assert guest.enter().reason == DEBUG
            assert guest.run.debug.arch.exception == 1
            rips.append(guest.rip - ORIGIN)
        assert rips == [3, 6, 9, 12]
        guest.vcpu.set_guest_debug(0)
        assert guest.enter().reason == HLT


def test_a_step_over_an_exit_ends_behind_the_instruction() -> None:
    with Guest("in al, 0x10\n inc rbx\n hlt") as guest:
        guest.vcpu.set_guest_debug(3)
        assert guest.enter().reason == IO
        guest.set(rcx=1)
        assert guest.enter().reason == DEBUG
        assert guest.rip == ORIGIN + 2


def test_breakpoint_instructions_and_registers() -> None:
    with guest_with_handlers("inc rax\n int3\n inc rbx\n inc rcx\n hlt", 64) as guest:
        guest.vcpu.set_guest_debug(1 | 0x10000)
        assert guest.enter().reason == DEBUG
        arch = guest.run.debug.arch
        assert (arch.exception, arch.pc, guest.rip) == (3, ORIGIN + 3, ORIGIN + 3)
        guest.vcpu.set_guest_debug(1 | 0x20000, [ORIGIN + 7, 0, 0, 0, 0, 0, 0, 1])
        guest.set(rip=ORIGIN + 4)
        assert guest.enter().reason == DEBUG
        assert (guest.rip, guest.run.debug.arch.dr6 & 0xF, guest.rbx, guest.rcx) == (ORIGIN + 7, 1, 1, 0)
        guest.vcpu.set_guest_debug(0)
        assert guest.enter().reason == HLT
        with pytest.raises(KvmError, match="EINVAL"):
            guest.vcpu.set_guest_debug(1 | 0x20000, [0, 0, 0, 0, 0, 0, 0, 1 | 1 << 16])


def test_the_entry_states_are_what_they_say() -> None:
    for bits in (16, 32, 64):
        with Guest("hlt", bits) as guest:
            assert guest.to_halt() == []
            assert guest.vcpu.get_sregs().cr0 & 1 == (bits != 16)
            assert entry_state(bits).reg("rip") == ORIGIN
