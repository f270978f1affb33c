"""Instructions that KVM can't emulate, carried out by the translate engine: with the results of that engine alone.

Where the host's KVM has no need of it (hardware virtualization runs ring 0 by itself) the guests run all the same, and
what was rescued isn't looked at.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rescue_programs import assemble_text, compare

import kvmpy
from kvmpy._native import ffi
from kvmpy.errors import EngineError, UsageError
from kvmpy.lab.rescue import NotNeeded
from kvmpy.lab.rescue import run as measure
from kvmpy.lab.twins import Guest
from kvmpy.lab.twins import compare as compare_engines
from kvmpy.machine.kernel_places import Eventfd
from kvmpy.machine.machine import Machine
from kvmpy.machine.result import Result
from kvmpy.testing import ANY, Hlt, MmioRead, MmioWrite, new_guest
from kvmpy.translate import library

pytestmark = pytest.mark.kvmpy(engine="kvm", rescue=True, memory="4M")

DATA = 0x200000
STACK = 0x3F0000
PATIENCE = 20.0
POPCNT = b"\xf3\x48\x0f\xb8\xc3"  # popcnt rax, rbx
HLT = b"\xf4"

FPU = """
        fninit
        mov $0x200, %ecx
        mov %cr4, %rax; or %rcx, %rax; mov %rax, %cr4   # CR4.OSFXSR
        movups ones, %xmm1
        movups twos, %xmm2
"""
NUMBERS = """
        .balign 16
ones:   .float 1.0, -2.5, 3e10, 0.125
twos:   .float 2.0, 4.0, -0.5, 1e-3
pi:     .double 3.14159
"""

PROGRAMS = {
    "fld1": FPU + "fld1; fldpi; fmulp; fstpl 0x200000; fnstsw %ax; mov %rax, 0x200008",
    "fsqrt": FPU + "fldl pi; fsqrt; fstpt 0x200000; fnclex; fwait",
    "mulps": FPU + "mulps %xmm2, %xmm1; movups %xmm1, 0x200000",
    "paddd": FPU + "paddd twos, %xmm1; movups %xmm1, 0x200000",
    "cvtsi2sd": FPU + "mov $-7, %rbx; cvtsi2sd %rbx, %xmm3; movups %xmm3, 0x200000",
    "ldmxcsr": FPU + "movl $0x7f80, 0x200000; ldmxcsr 0x200000; cvtps2dq %xmm2, %xmm4; movups %xmm4, 0x200010",
    "popcnt": "movabs $0xff00ff00ff00ff01, %rbx; popcnt %rbx, %rax; pushf; pop %rcx; mov %rax, 0x200000",
    "crc32": "mov $1, %eax; mov $0x1234, %rbx; crc32 %rbx, %rax; mov %rax, 0x200000",
    "pdep": "mov $0xf0f0, %ebx; mov $0x5a, %ecx; pdep %rbx, %rcx, %rax; mov %rax, 0x200000",
    "cmpxchg16b": """
        movl $5, 0x200000; movl $6, 0x200008; mov $5, %eax; mov $6, %edx; mov $7, %ebx; mov $8, %ecx
        lock cmpxchg16b 0x200000; setz %r8b
        lock cmpxchg16b 0x200000; setz %r9b""",
    "int": "mov $0x11, %eax; int $0x80; mov %rax, 0x200000",
    "int3": "mov $0x22, %eax; int3; mov %rax, 0x200000",
    "fxsave": FPU + "fld1; addps %xmm1, %xmm2; fnsave 0x200100; frstor 0x200100; fstps 0x200000",
    "xsave": FPU + "mov %cr4, %rax; bts $18, %rax; mov %rax, %cr4; fld1; mulps %xmm1, %xmm2; mov $3, %eax;"
    "xor %edx, %edx; xsave 0x200200; xorps %xmm2, %xmm2; fninit; xrstor 0x200200; movups %xmm2, 0x200000;"
    "fstps 0x200010",
}  # fmt: skip
IDT: dict[int, str | int] = {0x80: "trap", 3: "trap"}
TRAP = """
        hlt
trap:   mov (%rsp), %rdi
        mov 16(%rsp), %rsi
        add $0x1000, %rax
        iretq
"""


def seen(guest: Any) -> dict[str, Any]:
    """The state to be compared."""
    cpu = guest.machine.cpus[0]
    found = dict(cpu.regs.items())
    found["rflags"] &= ~(1 << 16 | 1 << 4)  # RF is gone behind the next instruction; AF often undefined
    for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
        found[name] = getattr(cpu.sregs, name)
    for name in ("cs", "ss"):
        segment = getattr(cpu.sregs, name)
        found[name] = (segment.selector, segment.base, segment.limit, segment.type, segment.dpl)
    found["data"] = guest.machine.memory.read(DATA, 0x100)
    return found


def both(guest: Any, source: str, **options: Any) -> Any:
    """Runs it on kvm with rescue and on translate: the same exits, the same state. Gives the former's run."""
    guest.asm(source, mode="long", **options)
    run = guest.run()
    with new_guest(engine="translate", rescue=False) as other:
        other.asm(source, mode="long", **options)
        alone = other.run()
        assert run.reason == alone.reason, run.crash and run.crash.remark
        assert run.exits == list(alone.exits)
        assert seen(guest) == seen(other)
    return run


def gives_up(source: str, **options: Any) -> Result | None:
    """How the guest ends without rescue, if that is by KVM giving up."""
    with new_guest(rescue=False) as plain:
        plain.asm(source, mode="long", **options)
        result: Result = plain.run().result
    return result if "emulation failure" in result.detail else None


@pytest.fixture(scope="module")
def needed() -> bool:
    """Whether this host's KVM gives up on POPCNT in ring 0."""
    with Machine("2M", engine="kvm", rescue=False) as machine:
        machine.load(POPCNT + HLT, mode="long", format="flat", load_address=0x1000)
        return machine.run(timeout=PATIENCE).reason == "crash"


# What is rescued


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_ends_as_on_the_translate_engine(guest: Any, name: str) -> None:
    source = PROGRAMS[name] + TRAP + NUMBERS
    run = both(guest, source, idt=IDT)
    assert run.reason == "halt"
    failed = gives_up(source, idt=IDT)
    if failed is None:
        return
    # Without rescue it ends there, and the report says at which instruction and why.
    assert failed.crash is not None
    first = failed.crash.what.rpartition(": ")[2]
    assert first in run.result.rescued and failed.crash.remark == "rescue is switched off"
    assert name in run.result.rescued or name == "fxsave"


def test_every_one_is_counted_and_none_is_an_exit(guest: Any, needed: bool) -> None:
    guest.asm("mov $10, %ecx; 1: popcnt %rcx, %rax; crc32 %rax, %rbx; crc32 %rcx, %rbx; loop 1b; hlt")
    run = guest.run()
    assert run.exits == [Hlt()] and run.counts == {"HLT": 1}
    assert run.result.rescued == ({"popcnt": 10, "crc32": 20} if needed else {})


def test_a_second_run_counts_its_own(guest: Any, needed: bool) -> None:
    guest.asm("1: popcnt %rcx, %rax; hlt; jmp 1b")
    expected = {"popcnt": 1} if needed else {}
    assert guest.run().result.rescued == expected
    assert guest.run().result.rescued == expected


@pytest.mark.parametrize("mode", ["real", "protected"])
def test_in_other_modes(machines: Any, mode: str, needed: bool) -> None:
    """FLD1, FLDPI, FADDP, FISTP word ptr [rbx]."""
    machine = machines(bytes.fromhex("d9e8 d9eb dec1 df1f") + HLT, mode, memory="2M", trace=False)
    machine.cpus[0].regs.rdi = machine.cpus[0].regs.rbx = 0x3000
    result = machine.run(timeout=PATIENCE)
    assert result.reason == "halt", result.crash and result.crash.remark
    assert machine.memory.read_u16(0x3000) == 4
    assert result.rescued == ({"fld1": 1, "fldpi": 1, "faddp": 1, "fistp": 1} if needed else {})


def test_what_the_translator_does_wrong_is_left_alone(machines: Any, needed: bool) -> None:
    """POPCNT in 16-bit code."""
    machine = machines(bytes.fromhex("f30fb8c3") + HLT, "real", memory="2M", trace=False)
    result = machine.run(timeout=PATIENCE)
    if needed:
        assert result.crash is not None and result.crash.what.endswith(": popcnt")
        assert result.crash.remark == "rescue failed: the translate engine can't do this instruction either"


def test_random_programs(needed: bool) -> None:
    wrong, rescued = compare(1000, 60)
    assert not wrong, "\n".join(wrong)
    assert not needed or len(rescued) > 50


def test_what_isnt_touched_stays(machines: Any, needed: bool) -> None:
    """Hidden parts of segments, MSRs, debug registers, and the upper halves of vector registers."""
    code = HLT + POPCNT + b"\x0f\x58\xc1" + HLT  # addps xmm0, xmm1
    machine = machines(code, "long", memory="2M", trace=False)
    cpu = machine.cpus[0]
    begin, sregs = cpu.regs.rip, cpu.sregs
    sregs.fs.base, sregs.gs.base, sregs.fs.selector = 0x123456789000, 0xFFFF800000001000, 0
    sregs.ds.unusable, sregs.cr4 = 1, sregs.cr4 | 0x200
    cpu.msrs["KERNEL_GS_BASE"] = 0x1234_5000
    machine.run(timeout=PATIENCE)
    before = bytes(ffi.buffer(cpu.vcpu.get_sregs()))
    upper = _give_upper_halves(cpu)
    assert machine.run(timeout=PATIENCE).reason == "halt"
    assert cpu.regs.rip == begin + len(code)
    assert bytes(ffi.buffer(cpu.vcpu.get_sregs())) == before
    assert cpu.msrs["KERNEL_GS_BASE"] == 0x1234_5000
    if upper:
        assert bytes(ffi.buffer(cpu.vcpu.get_xsave()))[576 : 576 + 256] == upper


def _give_upper_halves(cpu: Any) -> bytes:
    """Puts something into the upper halves of YMM registers, where the processor has them."""
    xcrs = cpu.vcpu.get_xcrs()
    xcrs.xcrs[0].value = 7
    try:
        cpu.vcpu.set_xcrs(xcrs)
    except kvmpy.KvmpyError:
        return b""
    xsave = cpu.vcpu.get_xsave()
    area = ffi.buffer(xsave)
    area[512] = bytes([7])
    area[576 : 576 + 256] = upper = bytes(range(256))
    cpu.vcpu.set_xsave(xsave)
    return upper


def test_time_doesnt_go_back(guest: Any) -> None:
    """RDTSCP between two RDTSC."""
    guest.asm("""
        mov $100, %r8d
1:      rdtsc; shl $32, %rdx; or %rax, %rdx; mov %rdx, %rsi
        rdtscp; shl $32, %rdx; or %rax, %rdx; mov %rdx, %rdi
        rdtsc; shl $32, %rdx; or %rax, %rdx
        cmp %rsi, %rdi; jb 2f
        cmp %rdi, %rdx; jb 2f
        dec %r8d; jnz 1b
2:      hlt
    """)
    assert guest.run().reason == "halt"
    assert guest.regs.r8 == 0


# Faults

CATCH = """
        hlt
fault:  pop %r8                         # error code
        mov (%rsp), %r9                 # RIP
        mov %cr2, %r10
        hlt
bare:   mov (%rsp), %r9
        mov 16(%rsp), %r11
        hlt
"""
READ_ONLY = """
        mov %cr3, %rax; mov (%rax), %rbx; and $~0xfff, %rbx; mov (%rbx), %rbx; and $~0xfff, %rbx
        btrq $1, 8(%rbx); invlpg 0x200000   # the page table entry of 2 MiB
        mov %cr0, %rax; bts $16, %rax; mov %rax, %cr0
"""
FAULTS = {
    "a read from nowhere": ("movabs $0x7f0000001238, %rdi; paddd (%rdi), %xmm1", 14),
    "a write to nowhere": ("movabs $0x7f0000001238, %rdi; fstpl (%rdi)", 14),
    "not canonical": ("mov $1, %edi; shl $63, %rdi; cvtss2sd (%rdi), %xmm1", 13),
    "no gate": ("int $0x90", 13),
    "a gate that isn't there": ("int $0x20", 13),
    "an exchange that isn't aligned": ("cmpxchg16b 0x200008", 13),
    "a write to a read-only page": (READ_ONLY + "fstps 0x210000", 14),
    "task switched": ("mov %cr0, %rax; or $8, %rax; mov %rax, %cr0; mulps %xmm1, %xmm2", 7),
    "no OSFXSR": ("mov %cr4, %rax; and $~0x200, %rax; mov %rax, %cr4; mulps %xmm1, %xmm2", 6),
    "undefined": ("ud2", 6),
    "a lock where none may be": (".byte 0xf0, 0xf3, 0x0f, 0xb8, 0xc3", 6),
    "x87": ("mov %cr0, %rax; or $0x20, %rax; mov %rax, %cr0; movw $0x37b, 0x200000; fldcw 0x200000; fld1; fldz; fdivrp;"
            "fwait", 16),
}  # fmt: skip
WITH_CODE = (8, 10, 11, 12, 13, 14, 17)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_reaches_the_guests_handler(guest: Any, name: str) -> None:
    source, vector = FAULTS[name]
    handler = "fault" if vector in WITH_CODE else "bare"
    run = both(guest, FPU + source + CATCH + NUMBERS, idt={vector: handler})
    assert run.exits == [Hlt()]
    assert guest.regs.r9 > 0  # the handler had it


def test_no_handler_is_a_triple_fault(guest: Any) -> None:
    guest.asm("int3")
    assert guest.run().exits[-1].name == "SHUTDOWN"


def test_the_guests_own_single_steps(guest: Any) -> None:
    """RFLAGS.TF: a trap behind each instruction, rescued or not."""
    both(
        guest,
        """
        pushf; orl $0x100, (%rsp); popf
        nop; popcnt %rbx, %rax; nop
        pushf; andl $~0x100, (%rsp); popf
        hlt
step:   inc %rdi
        add (%rsp), %rsi
        mov %dr6, %rdx
        iretq
        """,
        idt={1: "step"},
    )
    assert guest.regs.rdi > 4 and guest.regs.rdx & 1 << 14


# Interrupts

APIC = """
        mov $0xfee00000, %r15d
        movl $0x1ff, 0xf0(%r15)         # software enable
        movl $0x44030, 0x300(%r15)      # an interrupt to itself, vector 0x30
"""
APIC_END = """
irq:    mov (%rsp), %rdi
        movl $0, 0xb0(%r15)
        iretq
"""


@pytest.mark.kvmpy(engine="kvm", rescue=True, memory="4M", irqchip="kernel")
@pytest.mark.parametrize("shadow", ["sti", "mov %ax, %ss; sti"])
def test_an_interrupt_waits_for_the_instruction_behind_sti(guest: Any, shadow: str) -> None:
    guest.asm(
        f"mov %ss, %eax; {APIC} {shadow}; popcnt %rcx, %rbx; after: nop; cli; 1: hlt; jmp 1b; {APIC_END}",
        idt={0x30: "irq"},
    )
    result = guest.run(timeout=PATIENCE)
    assert result.reason == "halt"
    assert guest.regs.rdi == guest.symbols["after"]


@pytest.mark.parametrize("irqchip", ["kernel", "user"])
def test_an_interrupt_isnt_lost_or_doubled(irqchip: str) -> None:
    """A self-interrupt is sent in front of each of many rescued instructions."""
    guest = new_guest(irqchip=irqchip)
    guest.asm(
        f"""
        {APIC.replace("movl $0x44030, 0x300(%r15)", "")}
        sti
        mov $200, %ecx
1:      movl $0x44030, 0x300(%r15)
        popcnt %rcx, %rbx; cvtsi2sd %rbx, %xmm0
        dec %ecx; jnz 1b
        cli; 2: hlt; jmp 2b
irq:    inc %rsi
        movl $0, 0xb0(%r15)
        iretq
        """,
        idt={0x30: "irq"},
    )
    assert guest.run(timeout=PATIENCE).reason == "halt"
    assert guest.regs.rsi == 200


@pytest.mark.kvmpy(engine="kvm", rescue=True, memory="4M", irqchip="kernel")
def test_the_interrupt_controllers_in_the_kernel_arent_for_the_helper(guest: Any, needed: bool) -> None:
    guest.asm(FPU + "mov $0xfee00000, %edi; movss %xmm1, 0xf0(%rdi); hlt" + NUMBERS)
    result = guest.run(timeout=PATIENCE).result
    if needed:
        assert result.crash is not None
        assert result.crash.remark == (
            "rescue failed: the instruction accesses an interrupt controller in the kernel, which only KVM's can"
        )


# Devices

REGISTERS = 0xD0000000


class Registers:
    """Reads give the offset, writes are kept."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []
        self.fail = 0
        self.rips: list[int] = []
        self.cpu: Any = None

    def read(self, offset: int, size: int) -> int:
        self._look()
        return int.from_bytes(bytes(range(offset, offset + size)), "little")

    def write(self, offset: int, value: int, size: int) -> None:
        self._look()
        self.written.append((offset, value, size))

    def _look(self) -> None:
        if self.cpu is not None:
            self.rips.append(int(self.cpu.regs.rip))
        if self.fail:
            self.fail -= 1
            raise ValueError("not now")


MMIO = FPU + """
        mov $0xd0000000, %edi
        movups ones, %xmm0
at:     paddd 0x10(%rdi), %xmm0
store:  movss %xmm0, 0x40(%rdi)
        fildl 0x20(%rdi)
        fistpll 0x48(%rdi)
        popcnt 8(%rdi), %rbx
        movups %xmm0, 0x200000
        hlt
"""  # fmt: skip


def mmio_guest(guest: Any, source: str = MMIO) -> Registers:
    registers = Registers()
    guest.mmio[REGISTERS : REGISTERS + 0x1000] = registers
    guest.asm(source + NUMBERS)
    return registers


def test_an_operand_in_a_device(guest: Any, needed: bool) -> None:
    registers = mmio_guest(guest)
    run = guest.run()
    with new_guest(engine="translate", rescue=False) as other:
        alone = mmio_guest(other)
        assert run.exits == list(other.run().exits)
        assert seen(guest) == seen(other)
        assert registers.written == alone.written
    assert run.exits.of(MmioRead) == [
        MmioRead(REGISTERS + 0x10, ANY, 8),
        MmioRead(REGISTERS + 0x18),
        ...,
        ANY,
    ]
    assert run.exits.of(MmioWrite)[0] == MmioWrite(REGISTERS + 0x40, ANY, 4)


def test_a_handler_sees_the_registers_of_the_instruction(guest: Any) -> None:
    registers = mmio_guest(guest)
    registers.cpu = guest.cpus[0]
    guest.run()
    assert registers.rips[:3] == [guest.symbols["at"], guest.symbols["at"], guest.symbols["store"]]


def test_a_handler_that_raises_is_asked_again(guest: Any) -> None:
    registers = mmio_guest(guest)
    registers.fail = 1
    with pytest.raises(ValueError, match="not now") as caught:
        guest.run()
    assert "8 byte read, MMIO address 0xd0000010 on vCPU 0" in caught.value.__notes__[0]
    assert guest.run().reason == "halt"
    with new_guest(engine="translate", rescue=False) as other:
        mmio_guest(other)
        other.run()
        assert seen(guest) == seen(other)


def test_a_failed_access_can_be_skipped(guest: Any) -> None:
    registers = mmio_guest(guest)
    registers.fail = 1
    with pytest.raises(ValueError, match="not now"):
        guest.run()
    guest.machine.skip()
    assert guest.run().reason == "halt"
    assert guest.memory.read_u32(DATA) == 0x3F800000 - 1  # all ones were read


def test_registers_set_at_an_access_are_the_instructions(guest: Any) -> None:
    registers = mmio_guest(guest)
    registers.fail = 1
    with pytest.raises(ValueError, match="not now"):
        guest.run()
    guest.regs.r12 = 77
    assert guest.run().reason == "halt"
    assert guest.regs.r12 == 77 and guest.memory.read(DATA, 16) != bytes(16)


def test_moving_rip_at_an_access_is_the_end_of_the_instruction(guest: Any) -> None:
    registers = mmio_guest(guest)
    registers.fail = 1
    with pytest.raises(ValueError, match="not now"):
        guest.run()
    guest.regs.rip = guest.symbols["store"]
    assert guest.run().reason == "halt"
    assert guest.memory.read_u32(DATA) == 0x3F800000  # as it was: nothing was added


def test_a_run_ends_between_two_accesses(guest: Any) -> None:
    mmio_guest(guest)
    while guest.run(max_exits=1).reason == "max-exits":
        pass
    with new_guest(engine="translate", rescue=False) as other:
        mmio_guest(other)
        other.run()
        assert seen(guest) == seen(other)
        assert list(guest.trace) == list(other.trace)


def test_a_device_that_the_kernel_serves(guest: Any) -> None:
    """A write that KVM would have turned into an event without an exit."""
    event = Eventfd(length=4)
    range_ = guest.machine.mmio.attach(REGISTERS, 4, event, name="bell")
    range_.place = "kernel"
    guest.asm(FPU + "mov $0xd0000000, %edi; movss %xmm1, (%rdi); hlt" + NUMBERS)
    assert guest.run().reason == "halt"
    assert event.take() == 1


# Memory and code


def test_code_that_changes(guest: Any) -> None:
    """By the guest in KVM, where the translator doesn't see it: POPCNT rbx, rax becomes POPCNT rcx, rax."""
    both(
        guest,
        """
        mov $7, %ebx; mov $1, %ecx; xor %edx, %edx; mov $2, %r8d
1:      popcnt %rbx, %rax
        add %rax, %rdx
        movb $0xc1, 1b + 4
        dec %r8d; jnz 1b
        hlt
        """,
    )
    assert guest.regs.rdx == 3 + 1


def test_code_that_the_host_changes(guest: Any) -> None:
    guest.asm("mov $7, %ebx; mov $1, %ecx; again: popcnt %rbx, %rax; hlt; jmp again")
    guest.run()
    assert guest.regs.rax == 3
    guest.memory[guest.symbols["again"] + 4] = 0xC1
    guest.run()
    assert guest.regs.rax == 1


def test_page_tables_that_change(guest: Any) -> None:
    """The same linear address, another page."""
    both(
        guest,
        """
        movl $7, 0x200000; movl $1, 0x201000
        mov $0x280000, %edi             # page tables for 0x8000000000: PML4 entry 1
        lea 0x1003(%rdi), %rax; mov %rax, (%rdi)
        lea 0x2003(%rdi), %rax; mov %rax, 0x1000(%rdi)
        movq $0x200003, 0x2000(%rdi)
        mov %cr3, %rax; lea 3(%rdi), %rbx; mov %rbx, 8(%rax); mov %rax, %cr3
        mov $1, %esi; shl $39, %rsi
        popcnt (%rsi), %r8
        movq $0x201003, 0x2000(%rdi); invlpg (%rsi)
        popcnt (%rsi), %r9
        mov 0x2000(%rdi), %r10
        hlt
        """,
    )
    assert (guest.regs.r8, guest.regs.r9) == (3, 1)


def test_memory_that_comes_and_goes(guest: Any, needed: bool) -> None:
    guest.asm("mov $0xd0000000, %edi; 1: popcnt (%rdi), %rax; hlt; jmp 1b")
    guest.run()
    assert guest.regs.rax == 64  # nobody is there: all ones
    slot = guest.memory.add(REGISTERS, 0x1000)
    guest.memory.write_u64(REGISTERS, 0x15)
    run = guest.run()
    assert guest.regs.rax == 3 and run.exits == [Hlt()]
    guest.memory.remove(slot)
    assert guest.run().exits.of(MmioRead) == [MmioRead(REGISTERS, ANY, 8)]
    assert guest.regs.rax == 64


def test_memory_beyond_the_translators(machines: Any, needed: bool) -> None:
    machine = machines(POPCNT + HLT + POPCNT + HLT, "long", memory="2M", trace=False)
    assert machine.run(timeout=PATIENCE).reason == "halt"
    try:
        machine.memory.add(1 << 40, 0x1000)
    except kvmpy.KvmpyError:
        pytest.skip("this host's KVM has no 41 bits of physical addresses")
    result = machine.run(timeout=PATIENCE)
    if needed:
        assert result.crash is not None
        assert (
            "rescue can't be had: the translate engine can't have 0x1000 bytes of memory at"
            in result.crash.remark
        )


@pytest.mark.parametrize("ring", [0, 512])
def test_pages_it_writes_are_dirty(machines: Any, ring: int, needed: bool) -> None:
    code = bytes.fromhex("d9e8 d91c25fe1f0800") + HLT  # fld1; fstp dword ptr [0x81ffe]: over a page's end
    try:
        machine = machines(code, "long", memory="2M", dirty_ring=ring)
    except kvmpy.KvmpyError as error:
        pytest.skip(str(error))
    with machine:
        dirty = machine.track_dirty()
        machine.run(timeout=PATIENCE)
        assert {0x81000, 0x82000} <= set(dirty.take())
        assert not {0x81000, 0x82000} & set(dirty.take())
        dirty.stop()


# Debugging


def test_single_steps_of_the_host(guest: Any) -> None:
    guest.asm("nop; a: popcnt %rbx, %rax; b: addps %xmm0, %xmm1; c: nop; d: hlt")
    guest.cpus[0].vcpu.set_guest_debug(3)  # KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
    at = []
    for _ in range(3):
        assert guest.run().reason == "debug"
        at.append(guest.regs.rip)
    assert at == [guest.symbols[name] for name in "abc"]


def test_single_steps_begin_where_registers_were_put(guest: Any) -> None:
    guest.asm("hlt; nop; a: popcnt %rbx, %rax; b: nop; hlt")
    guest.cpus[0].vcpu.set_guest_debug(3)
    guest.regs.rip = guest.symbols["a"]
    assert guest.run().reason == "debug" and guest.regs.rip == guest.symbols["b"]
    guest.regs.rip = guest.symbols["a"] - 1
    assert guest.run().reason == "debug" and guest.regs.rip == guest.symbols["a"]


def test_breakpoint_instructions_of_the_host(guest: Any) -> None:
    guest.asm("nop; here: int3; hlt")
    guest.cpus[0].vcpu.set_guest_debug(1 | 0x10000)  # KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP
    run = guest.run()
    assert run.reason == "debug" and guest.regs.rip == guest.symbols["here"]


# Ends


def test_a_guest_of_nothing_else_can_be_stopped(guest: Any) -> None:
    guest.asm("1: popcnt %rbx, %rax; jmp 1b")
    assert guest.run(timeout=0.2).reason == "timeout"
    threading.Timer(0.2, guest.machine.stop).start()
    assert guest.run().reason == "stopped"


def test_a_signal_gets_through() -> None:
    """Python's handlers run though the guest never leaves C."""
    script = (
        "import signal, sys, kvmpy\n"
        "with kvmpy.Machine('2M', engine='kvm') as machine:\n"
        "    machine.load(bytes.fromhex('f3480fb8c3ebf9'), mode='long', format='flat')\n"
        "    signal.signal(signal.SIGALRM, lambda *_: machine.stop())\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.3)\n"
        "    print(machine.run(timeout=20).reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "stopped\n", done.stderr


def test_no_progress_is_a_crash(needed: bool) -> None:
    """A breakpoint whose handler is the breakpoint itself, on a stack that begins anew each time."""
    with Machine("4M", engine="kvm") as machine:
        from kvmpy.x86 import entry

        at = 0x100000
        machine.load(b"\xcc" + HLT, mode="long", format="flat", load_address=at)
        state = entry.long_mode(
            at, stack=STACK, idt={3: at}, tables_at=0x10000, memory_size=4 << 20, avoid=[(at, 16)]
        )
        for gpa, table in state.memory:
            machine.memory.write(gpa, table)
        machine.cpus[0].load(state)
        sregs = machine.cpus[0].sregs
        gate = sregs.idt.base + 3 * 16
        machine.memory.write_u8(gate + 4, 1)  # IST 1
        machine.memory.write_u64(sregs.tr.base + 36, STACK)
        result = machine.run(timeout=PATIENCE)
        if needed:
            assert result.reason == "crash" and result.crash is not None
            assert result.crash.what.endswith(": int3")
            assert result.crash.remark.startswith("rescue failed: the instruction makes no progress")


VADDPS = b"\xc5\xf0\x58\xc2"


def test_what_neither_knows_is_a_crash(machines: Any, needed: bool) -> None:
    """AVX, where it is switched on."""
    machine = machines(HLT + VADDPS + HLT, "long", memory="2M", trace=False)
    cpu = machine.cpus[0]
    machine.run(timeout=PATIENCE)
    if not _give_upper_halves(cpu):
        pytest.skip("this host's processor has no AVX")
    cpu.sregs.cr4 = cpu.sregs.cr4 | 1 << 18 | 1 << 9
    result = machine.run(timeout=PATIENCE)
    if needed:
        assert result.crash is not None and result.crash.what.endswith(": vaddps")
        assert result.crash.remark == "rescue failed: the translate engine can't do this instruction either"
        assert machine.cpus[0].regs.rip == result.crash.code_at


def test_what_isnt_switched_on_is_undefined(guest: Any) -> None:
    guest.asm(".byte 0xc5, 0xf0, 0x58, 0xc2; hlt; undefined: mov $6, %edi; hlt", idt={6: "undefined"})
    assert guest.run().reason == "halt"
    assert guest.regs.rdi == 6


def test_without_the_library(machines: Any, monkeypatch: pytest.MonkeyPatch, needed: bool) -> None:
    def none() -> str:
        raise EngineError("the Python package unicorn isn't installed: pip install 'kvmpy[translate]'")

    monkeypatch.setattr(library, "find", none)
    with pytest.raises(EngineError, match="unicorn isn't installed"):
        Machine("2M", engine="kvm", rescue=True)
    machine = machines(POPCNT + HLT, "long", memory="2M", trace=False)
    result = machine.run(timeout=PATIENCE)
    if needed:
        assert result.exits == {"INTERNAL_ERROR": 1} and result.crash is not None
        assert result.crash.remark == (
            "rescue can't be had: the Python package unicorn isn't installed: pip install 'kvmpy[translate]'"
        )


def test_other_engines_leave_nothing_to_rescue() -> None:
    with pytest.raises(UsageError, match="the translate engine leaves no instruction to another one"):
        Machine("2M", engine="translate", rescue=True)


def test_nothing_is_there_before_it_is_needed() -> None:
    script = (
        "import sys, kvmpy\n"
        "with kvmpy.Machine('2M', engine='kvm') as machine:\n"
        "    machine.load('long-hello')\n"
        "    print(machine.run(timeout=20).reason)\n"
        "print([name for name in sys.modules if 'rescue' in name or 'kvmpy.translate' in name])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "halt\n[]\n", done.stderr


# The command line


def test_kvmpy_run(command: Any, tmp_path: Path, needed: bool) -> None:
    image, report = tmp_path / "popcnt.bin", tmp_path / "report.json"
    image.write_bytes(POPCNT + HLT)
    words = ("run", str(image), "--mode", "long", "--engine", "kvm", "--report", str(report))
    done = command(*words, "--stats", "--rescue")
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["rescued"] == ({"popcnt": 1} if needed else {}) and found["exits"] == {"HLT": 1}
    if not needed:
        return
    assert b"popcnt   translate" in done.stderr
    done = command(*words, "--no-rescue")
    assert done.returncode == 120
    first, second = done.stderr.decode().splitlines()[:2]
    assert first.startswith(
        "kvmpy: vCPU 0 can't go on: INTERNAL_ERROR 1 (emulation failure), instruction f3 48"
    )
    assert first.endswith(": popcnt") and second == "kvmpy: rescue is switched off"
    assert json.loads(report.read_text())["crash"]["remark"] == "rescue is switched off"


def test_kvmpy_run_refuses_it_elsewhere(command: Any) -> None:
    done = command("run", "long-hello", "--engine", "translate", "--rescue")
    assert done.returncode == 2
    assert done.stderr == (
        b"kvmpy: rescue: the translate engine leaves no instruction to another one; it is for engine='kvm'\n"
    )


def test_what_it_costs_can_be_measured(needed: bool) -> None:
    """The ratios are for a quiet machine; that many in a row are cheaper holds on any."""
    if not needed:
        with pytest.raises(NotNeeded):
            measure(quick=True)
        return
    cases = {case["instructions"]: case for case in measure(quick=True)["cases"]}
    assert cases["16 addps in a row"]["rescued"] == 16
    assert cases["16 addps in a row"]["ratio"] < cases["addps"]["ratio"] / 2


# Several vCPUs

COUNTER = """
    mov ecx, {count}
    test rdi, rdi
    jnz other
1:  mov rax, [0x180000]
    mov rdx, [0x180008]
2:  mov rbx, rax
    mov rsi, rcx
    mov rcx, rdx
    add rbx, 1
    adc rcx, 0
    lock cmpxchg16b [0x180000]
    mov rcx, rsi
    jnz 2b
    dec ecx
    jnz 1b
    hlt
other:
3:  lock inc qword ptr [0x180000]
    dec ecx
    jnz 3b
    hlt
"""


@pytest.mark.parametrize("mixed", [False, True])
def test_locked_instructions_are_atomic_to_other_vcpus(machines: Any, mixed: bool) -> None:
    """Each of two vCPUs counts up the same memory, rescued or (the second, if mixed) in KVM."""
    count = 2000
    machine = machines(assemble_text(COUNTER.format(count=count)), "long", memory="2M", cpus=2, trace=False)
    machine.cpus[1].regs.rdi = int(mixed)
    result = machine.run(timeout=PATIENCE)
    assert result.reason == "halt"
    assert machine.memory.read_u64(0x180000) == 2 * count


def test_vcpus_that_sleep_or_wait_are_no_hindrance(machines: Any, needed: bool) -> None:
    """One halted in the kernel, one waiting for its start, one in a Python handler while the first is rescued."""
    code = assemble_text("""
        test rdi, rdi
        jnz other
        mov ecx, 200
    1:  popcnt rax, rcx
        dec ecx
        jnz 1b
        mov al, 7
        out 0xf4, al
    other:
        out 0x80, al
        cli
        hlt
    """)
    machine = machines(code, "long", memory="2M", cpus=4, irqchip="kernel", trace=False)
    machine.cpus[3].vcpu.set_mp_state(1)  # KVM_MP_STATE_UNINITIALIZED

    class Slow:
        def write(self, offset: int, value: int, size: int) -> None:
            time.sleep(0.05)

    machine.ports.attach(0x80, 1, Slow())
    machine.ports.on_write(0xF4)(lambda *_: machine.stop(7))
    for cpu in machine.cpus[1:]:
        cpu.regs.rdi = 1
    result = machine.run(timeout=PATIENCE)
    assert (result.reason, result.status) == ("stopped", 7)
    assert result.rescued == ({"popcnt": 200} if needed else {})


# In lock step


def test_compared_exit_by_exit(tmp_path: Path, needed: bool) -> None:
    """Registers and memory after each exit, by ``kvmpy compare``."""
    image = tmp_path / "popcnt.bin"
    image.write_bytes(
        assemble_text("""
        mov ecx, 5
    1:  popcnt rax, rcx
        out 0x80, al
        addps xmm0, xmm0
        cvtsi2sd xmm1, rcx
        movq [0x180000], xmm1
        loop 1b
        hlt
    """)
    )
    found = compare_engines(Guest(str(image), mode="long", format="flat"))
    assert found.difference is None, found.difference.as_dict()
    assert found.events == 6 and found.states == 6
    if needed:
        assert found.engines["kvm"]["rescued"] == {"popcnt": 5, "addps": 5, "cvtsi2sd": 5, "movq": 5}
