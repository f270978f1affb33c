"""Real mode as the processor has it, whether the hardware runs it, a virtual-8086 task, or KVM's emulator."""

from __future__ import annotations

from typing import Any

from guests import put, start, to_halt
from listing import ORIGIN, Code, code
from suite import Host

from kvmpy.machine.machine import Machine
from kvmpy.x86 import entry

INTERRUPT_FLAG = 1 << 9
CF = 1
STACK = 0x8000
HANDLER = 0x2000

SEGMENTS = code(
    16,
    """
    a0 10 00         mov al, ds:[0x10]
    26 a2 11 00      mov es:[0x11], al
    50               push ax
    8c cb            mov bx, cs
    64 8a 0e 12 00   mov cl, fs:[0x12]
    65 8a 2e 13 00   mov ch, gs:[0x13]
    f4               hlt
    """,
)
LOADS = code(
    16,
    """
    b8 34 12         mov ax, 0x1234
    8e d8            mov ds, ax
    8e e0            mov fs, ax
    9a 10 00 10 01   lcall 0x110, 0x10
    """,
)
AFTER_RESET = code(
    16,
    """
    8c cb            mov bx, cs
    2e 8a 0e f0 ff   mov cl, cs:[0xfff0]
    ea 00 10 00 00   ljmp 0, 0x1000
    """,
)
HALT = code(16, "f4   hlt")
INTERRUPTED = code(
    16,
    """
    ff 36 00 00   push ds:[0]
    58            pop ax
    fb            sti
    f9            stc
    cd 21         int 0x21
    9c            pushf
    5a            pop dx
    f4            hlt
    """,
)
"""It uses stack and vector table first: on AMD-V Bochs pushes twice if it finds their pages missing halfway."""
TELLS_FLAGS = code(
    16,
    """
    9c         pushf
    5b         pop bx
    89 e5      mov bp, sp
    8b 4e 04   mov cx, [bp + 4]
    cf         iret
    """,
)
DIVIDES_BY_ZERO = code(
    16,
    """
    31 c9   xor cx, cx
    90      nop
    f7 f1   div cx
    f4      hlt
    """,
)
SKIPS_TWO_BYTES = code(
    16,
    """
    5b         pop bx
    83 c3 02   add bx, 2
    53         push bx
    b0 d1      mov al, 0xd1
    cf         iret
    """,
)
MOVES_A_STRING = code(
    16,
    """
    f3 a4   rep movsb
    f4      hlt
    """,
)
BEYOND_THE_LIMIT = code(
    16,
    """
    66 bb 00 00 01 00   mov ebx, 0x10000
    67 8a 03            mov al, [ebx]
    f4                  hlt
    """,
)
SAYS_13 = code(
    16,
    """
    b4 0d   mov ah, 13
    f4      hlt
    """,
)
REACHES_FAR = code(
    16,
    """
    66 bb 00 00 18 00   mov ebx, 0x180000
    67 66 8b 03         mov eax, [ebx]
    67 66 89 43 04      mov [ebx + 4], eax
    f4                  hlt
    """,
)
TO_PROTECTED = code(
    16,
    """
    66 0f 01 16 00 40   lgdtd ds:[0x4000]
    0f 20 c0            mov eax, cr0
    0c 01               or al, 1
    0f 22 c0            mov cr0, eax
    ea 00 21 08 00      ljmp 8, 0x2100
    """,
)
IN_PROTECTED = code(
    32,
    """
    ba 10 00 00 00                  mov edx, 16
    8e da                           mov ds, edx
    c7 05 00 00 18 00 32 32 32 32   mov dword ptr ds:[0x180000], 0x32323232
    ea 00 22 00 00 18 00            ljmp 24, 0x2200
    """,
)
TO_REAL = code(
    16,
    """
    ba 20 00         mov dx, 32
    8e da            mov ds, dx
    24 fe            and al, 0xfe
    0f 22 c0         mov cr0, eax
    ea 00 23 00 00   ljmp 0, 0x2300
    """,
)
BACK_IN_REAL = code(
    16,
    """
    31 d2   xor dx, dx
    8e da   mov ds, dx
    cd 21   int 0x21
    f4      hlt
    """,
)
SAYS_99 = code(
    16,
    """
    bb 99 00   mov bx, 0x99
    cf         iret
    """,
)
GDT = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00009B000000FFFF, 0x000093000000FFFF)
"""null; flat 32-bit code and data; 16-bit code and data of 64 KiB from 0."""


def real(host: Host, what: Code, *, handlers: dict[int, Code] | None = None, **state: Any) -> Machine:
    """A machine of 1 MiB and 4 KiB above it at 1.5 MiB, in real mode; ``handlers`` by vector."""
    machine = host.machine(memory="1M", trace=False)
    machine.memory.add(0x180000, 0x1000)
    put(machine, what)
    for vector, handler in (handlers or {}).items():
        machine.memory.write(HANDLER, handler.data)
        machine.memory.write(4 * vector, HANDLER.to_bytes(4, "little"))
    start(machine, entry.real_mode(0, ORIGIN, sp=state.pop("sp", STACK), **state))
    return machine


def test_real_mode_segments_begin_at_sixteen_times_their_selector(host: Host) -> None:
    machine = real(host, SEGMENTS, ds=0x2000, es=0x3000, ss=0x4000, sp=0x100)
    sregs = machine.cpus[0].sregs
    for name, selector in (("fs", 0x5000), ("gs", 0x6000)):
        segment = getattr(sregs, name)
        segment.selector, segment.base = selector, selector << 4
    machine.memory.write(0x20010, b"\x5a")
    machine.memory.write(0x50012, b"\x71")
    machine.memory.write(0x60013, b"\x72")
    to_halt(machine)
    assert machine.memory.read(0x30011, 1) == b"\x5a"
    assert machine.memory.read(0x400FE, 2) == b"\x5a\x00"
    regs = machine.cpus[0].regs
    assert (regs.rsp, regs.rbx, regs.rcx) == (0xFE, 0, 0x7271)


def test_real_mode_segment_loads_are_seen_by_the_host(host: Host) -> None:
    machine = real(host, LOADS)
    machine.memory.write(0x1110, HALT.data)
    to_halt(machine)
    sregs, regs = machine.cpus[0].sregs, machine.cpus[0].regs
    for name in ("ds", "fs"):
        segment = getattr(sregs, name)
        assert (segment.selector, segment.base, segment.limit) == (0x1234, 0x12340, 0xFFFF)
    assert (sregs.cs.selector, sregs.cs.base, regs.rip) == (0x110, 0x1100, 0x11)
    back = (ORIGIN + len(LOADS.data)).to_bytes(2, "little") + bytes(2)
    assert machine.memory.read(sregs.ss.base + regs.rsp, 4) == back, "IP and CS to return to"


def test_reset_starts_sixteen_bytes_below_four_gibibytes(host: Host) -> None:
    machine = host.machine(memory="1M", trace=False)
    machine.memory.add(0xFFFFF000, 0x1000, readonly=True, name="rom")
    machine.memory.write(0xFFFFFFF0, AFTER_RESET.data, force=True)
    put(machine, HALT)
    start(machine, entry.reset_vector(signature=0x306D4))
    to_halt(machine)
    regs, sregs = machine.cpus[0].regs, machine.cpus[0].sregs
    assert (regs.rbx, regs.rdx) == (0xF000, 0x306D4)
    assert regs.rcx == AFTER_RESET.data[0], "read through CS, whose base isn't its selector's"
    assert (sregs.cs.selector, sregs.cs.base, regs.rip) == (0, 0, ORIGIN + 1)


def test_real_mode_interrupts_go_through_the_table_at_zero(host: Host) -> None:
    machine = real(host, INTERRUPTED, handlers={0x21: TELLS_FLAGS})
    to_halt(machine)
    regs = machine.cpus[0].regs
    both, stack = INTERRUPT_FLAG | CF, regs.rsp
    assert not regs.rbx & INTERRUPT_FLAG, "off in the handler"
    assert (regs.rcx & both, regs.rdx & both) == (both, both), "saved, and back again"
    assert stack == STACK


def test_real_mode_faults_name_the_instruction_that_failed(host: Host) -> None:
    machine = real(host, DIVIDES_BY_ZERO, handlers={0: SKIPS_TWO_BYTES})
    to_halt(machine)
    regs = machine.cpus[0].regs
    assert (regs.rbx, regs.rax & 0xFF, regs.rip) == (ORIGIN + 5, 0xD1, ORIGIN + 6)


def test_real_mode_string_moves_cross_segments(host: Host) -> None:
    registers = {"rsi": 0x123, "rdi": 0xFFF0, "rcx": 16}
    machine = real(host, MOVES_A_STRING, ds=0x2000, es=0x3800, regs=registers)
    text = b"sixteen bytes it"
    machine.memory.write(0x20123, text)
    to_halt(machine)
    assert machine.memory.read(0x47FF0, 16) == text
    regs = machine.cpus[0].regs
    assert (regs.rsi, regs.rdi, regs.rcx) == (0x133, 0, 0), "DI wraps at 64 KiB"


def test_real_mode_beyond_the_limit_is_a_general_protection_fault(host: Host) -> None:
    host.avoid("amd", because="QEMU's TCG doesn't check the limits of segments")
    machine = real(host, BEYOND_THE_LIMIT, handlers={13: SAYS_13})
    to_halt(machine)
    assert machine.cpus[0].regs.rax == 13 << 8


def test_real_mode_reaches_all_memory_with_a_limit_of_four_gibibytes(host: Host) -> None:
    """ "Unreal" mode, in which BIOSes copy to high memory: a virtual-8086 task can't have such a segment."""
    machine = real(host, REACHES_FAR)
    segment = machine.cpus[0].sregs.ds
    segment.limit, segment.g = 0xFFFFFFFF, 1
    machine.memory.write(0x180000, b"high")
    to_halt(machine)
    assert machine.memory.read(0x180004, 4) == b"high"
    assert machine.cpus[0].sregs.ds.limit == 0xFFFFFFFF


def test_real_mode_to_protected_mode_and_back(host: Host) -> None:
    machine = real(host, TO_PROTECTED, handlers={0x21: SAYS_99})
    machine.memory.write(0x4000, (8 * len(GDT) - 1).to_bytes(2, "little") + (0x4010).to_bytes(4, "little"))
    for number, descriptor in enumerate(GDT):
        machine.memory.write(0x4010 + 8 * number, descriptor.to_bytes(8, "little"))
    for at, part in ((0x2100, IN_PROTECTED), (0x2200, TO_REAL), (0x2300, BACK_IN_REAL)):
        machine.memory.write(at, part.data)
    to_halt(machine)
    assert machine.memory.read(0x180000, 4) == b"2222"
    regs, sregs = machine.cpus[0].regs, machine.cpus[0].sregs
    assert regs.rbx == 0x99
    assert (sregs.cr0 & 1, sregs.cs.base, sregs.ds.base, sregs.ds.limit) == (0, 0, 0, 0xFFFF)
