"""Interrupt controllers, timers and HLT with irqchip="user": real guests on every engine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from expected_outputs import EXPECTED, INPUT

from kvmpy.errors import UsageError
from kvmpy.machine.machine import Machine
from kvmpy.machine.pc import Pc

LONG_ENOUGH = 60.0  # seconds; only a guest that hangs takes that long
SEABIOS = "/usr/share/seabios/bios.bin"
Machines = Callable[..., Machine]
Guest = Any

pytestmark = pytest.mark.kvmpy(irqchip="user", devices="pc", timeout=3 * LONG_ENOUGH)

# Vectors 0x20-0x2f for the PICs' lines 0-15, all masked; 0x40 and up for APICs. Handlers count in memory.
SETUP = """
        .intel_syntax noprefix
        .macro  now_                    # a place where every engine looks for interrupts
        jmp     9f
9:
        .endm
        .macro  outb_ port, value
        mov     al, \\value
        mov     dx, \\port
        out     dx, al
        .endm
        .macro  pics mask1=0xff, mask2=0xff
        outb_   0x20, 0x11
        outb_   0xa0, 0x11
        outb_   0x21, 0x20
        outb_   0xa1, 0x28
        outb_   0x21, 4
        outb_   0xa1, 2
        outb_   0x21, 1
        outb_   0xa1, 1
        outb_   0x21, \\mask1
        outb_   0xa1, \\mask2
        .endm
        .macro  pit mode, count
        outb_   0x43, 0x30 | \\mode << 1
        outb_   0x40, \\count & 0xff
        outb_   0x40, \\count >> 8
        .endm
        .macro  apic register, value
        mov     r8d, 0xfee00000
        mov     dword ptr [r8 + \\register], \\value
        now_
        .endm
        .macro  ioapic register, value
        mov     r8d, 0xfec00000
        mov     dword ptr [r8], \\register
        mov     dword ptr [r8 + 0x10], \\value
        .endm
        .macro  leave_ status
        outb_   0xf4, \\status
        .endm
"""
HANDLERS = """
pic_tick:
        push    rax
        inc     dword ptr ticks
        mov     al, 0x20
        out     0x20, al
        pop     rax
        iretq
pic2_tick:
        push    rax
        inc     dword ptr ticks
        mov     al, 0x0c
        out     0x70, al
        in      al, 0x71
        mov     al, 0x20
        out     0xa0, al
        out     0x20, al
        pop     rax
        iretq
apic_tick:
        push    rax
        inc     dword ptr ticks
        mov     eax, 0xfee00000
        mov     dword ptr [rax + 0xb0], 0
        pop     rax
        iretq
quiet:                                          # a level triggered line: the port makes it fall
        push    rax
        inc     dword ptr ticks
        out     0x99, al
        mov     eax, 0xfee00000
        mov     dword ptr [rax + 0xb0], 0
        pop     rax
        iretq
nmi:    inc     dword ptr nmis
        iretq
        .balign 4
ticks:  .long   0
nmis:   .long   0
"""
IDT = {0x20: "pic_tick", 0x24: "pic_tick", 0x28: "pic2_tick", 0x40: "apic_tick", 0x41: "quiet", 2: "nmi"}


def start(guest: Guest, code: str, **state: Any) -> None:
    guest.asm(SETUP + code + HANDLERS, "long", idt=IDT, **state)


def word(guest: Guest, name: str) -> int:
    return int.from_bytes(guest.memory.read(guest.symbols[name], 4), "little")


def halted(machine: Machine) -> None:
    """Waits until the vCPU sleeps in HLT."""
    deadline = time.monotonic() + LONG_ENOUGH
    while not machine.cpus[0].halted:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# The bundled guests and firmware


@pytest.mark.parametrize("name", ["real-irq", "real-echo"])
def test_bundled_guests(name: str, machines: Machines) -> None:
    output = bytearray()
    machine = machines(irqchip="user")
    pc = Pc(machine, output.extend)
    machine.load(name)
    pc.serial.receive(INPUT.get(name, b""))
    result = machine.run(timeout=LONG_ENOUGH)
    assert bytes(output) == EXPECTED[name][0]
    assert (result.reason, result.status) == ("exit", 0)


def test_input_that_comes_while_the_guest_sleeps(machines: Machines) -> None:
    output = bytearray()
    machine = machines(irqchip="user")
    pc = Pc(machine, output.extend)
    machine.load("real-echo")

    def type_slowly() -> None:
        for key in b"abc\r":
            halted(machine)
            pc.serial.receive(bytes([key]))

    thread = threading.Thread(target=type_slowly)
    thread.start()
    result = machine.run(timeout=LONG_ENOUGH)
    thread.join()
    assert output == b"Type a line: abc\n3 bytes came by interrupt\n"
    assert result.reason == "exit"


@pytest.mark.skipif(not os.path.exists(SEABIOS), reason=f"{SEABIOS} isn't there: package seabios")
def test_seabios_comes_to_its_banner_and_waits(machines: Machines) -> None:
    output = bytearray()

    def serial(data: bytes) -> None:
        output.extend(data)
        if b"No bootable device" in output:
            machine.stop()

    machine = machines(irqchip="user", memory="64M")
    Pc(machine, serial, lambda data: None)
    machine.load(SEABIOS)
    result = machine.run(timeout=LONG_ENOUGH)
    assert result.reason == "stopped"
    assert b"SeaBIOS (version" in output


# HLT


def test_hlt_with_interrupts_off_ends(guest: Guest) -> None:
    start(guest, "cli; hlt; leave_ 3")
    assert guest.run(timeout=LONG_ENOUGH).reason == "halt"
    run = guest.run(timeout=LONG_ENOUGH)  # and goes on behind it
    assert (run.reason, run.status) == ("exit", 3)


def test_hlt_that_nothing_wakes_ends_at_the_timeout(guest: Guest) -> None:
    start(guest, "pics; sti; hlt; leave_ 1")
    for _ in range(2):
        began = time.monotonic()
        assert guest.run(timeout=0.05).reason == "timeout"
        assert time.monotonic() - began >= 0.05
        assert guest.cpus[0].halted
    guest.machine.set_irq(4, True)  # masked
    assert guest.run(timeout=0.02).reason == "timeout"
    guest.ports[0x21].owner.write(1, 0xEF, 1)
    run = guest.run(timeout=LONG_ENOUGH)
    assert (run.reason, run.status, word(guest, "ticks")) == ("exit", 1, 1)


def test_stop_wakes_a_sleeping_vcpu(guest: Guest) -> None:
    start(guest, "pics; sti; hlt; leave_ 1")
    thread = threading.Thread(target=lambda: (halted(guest.machine), guest.machine.stop()))
    thread.start()
    assert guest.run(timeout=LONG_ENOUGH).reason == "stopped"
    thread.join()


def test_ctrl_c_wakes_a_sleeping_vcpu(guest: Guest) -> None:
    start(guest, "pics; sti; hlt; leave_ 1")

    def interrupt() -> None:
        halted(guest.machine)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        guest.run(timeout=LONG_ENOUGH)
    thread.join()
    guest.machine.set_irq(4, True)
    guest.ports[0x21].owner.write(1, 0xEF, 1)
    assert guest.run(timeout=LONG_ENOUGH).status == 1


def test_limits_at_hlt(guest: Guest) -> None:
    start(guest, "sti; hlt; leave_ 1")
    assert guest.run(timeout=LONG_ENOUGH, until=["HLT"]).reason == "until"
    assert guest.run(timeout=0.01).reason == "timeout"


def test_the_exit_budget_at_hlt(guest: Guest) -> None:
    start(guest, "sti; hlt; leave_ 1")
    assert guest.run(timeout=LONG_ENOUGH, max_exits=1).reason == "max-exits"


def test_sti_hlt_cli_takes_the_interrupt_at_the_hlt(guest: Guest) -> None:
    start(
        guest,
        """
        pics    0xfe
        mov     edi, 50
        pit     0, 1000
1:      sti
        hlt
        cli
        pit     0, 1000
        dec     edi
        jnz     1b
        leave_  0
        """,
    )
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert word(guest, "ticks") == 50


def test_loading_another_guest_ends_the_sleep(machines: Machines) -> None:
    machine = machines(irqchip="user")
    machine.load(b"\xfb\xf4", mode="real", format="flat", load_address=0x1000)
    assert machine.run(timeout=0.01).reason == "timeout"
    machine.load(b"\xfa\xf4", mode="real", format="flat", load_address=0x1000)
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"


# Interrupts while the guest runs


def test_an_interrupt_waits_for_the_window(guest: Guest) -> None:
    start(
        guest,
        """
        pics    0xef
        cli
        out     0x98, al                # line 4 rises
        mov     ecx, 100
1:      loop    1b
        mov     ebx, ticks
        sti
        mov     ecx, 1000000
1:      cmp     dword ptr ticks, 0
        loope   1b
        mov     esi, ticks
        leave_  0
        """,
    )
    guest.ports.on_write(0x98)(lambda offset, value, size: guest.machine.set_irq(4, True))
    run = guest.run(timeout=LONG_ENOUGH)
    assert run.reason == "exit"
    assert (guest.regs.rbx, guest.regs.rsi) == (0, 1)
    assert run.counts["IRQ_WINDOW_OPEN"] == 1


def test_a_line_that_falls_in_time_is_no_interrupt(guest: Guest) -> None:
    start(
        guest,
        """
        pics    0xef
        outb_   0x4d0, 0x10             # line 4 level triggered
        cli
        out     0x98, al
        out     0x99, al
        sti
        now_
        now_
        leave_  0
        """,
    )
    guest.ports.on_write(0x98)(lambda offset, value, size: guest.machine.set_irq(4, True))
    guest.ports.on_write(0x99)(lambda offset, value, size: guest.machine.set_irq(4, False))
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert word(guest, "ticks") == 0


def test_a_busy_guest_is_interrupted_by_the_pit(guest: Guest) -> None:
    """In a loop without any exit, and the ticks can't come faster than the PIT gives them."""
    start(
        guest,
        """
        pics    0xfe
        pit     2, 2386                 # 500 Hz
        sti
1:      cmp     dword ptr ticks, 10
        jb      1b
        leave_  0
        """,
    )
    began = time.monotonic()
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert time.monotonic() - began >= 9 * 2386 / 1193182


def test_a_loop_of_exits_that_c_handles_is_interrupted(guest: Guest) -> None:
    start(
        guest,
        """
        pics    0xfe
        pit     2, 2386
        sti
1:      out     0x98, al
        cmp     dword ptr ticks, 3
        jb      1b
        leave_  0
        """,
    )
    guest.ports.drop(0x98)
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"


def test_the_fastest_timer_leaves_time_for_the_guest(guest: Guest) -> None:
    start(
        guest,
        """
        pics    0xfe
        pit     2, 2                    # 600 kHz
        sti
        mov     ecx, 20000
1:      loop    1b
        leave_  0
        """,
    )
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert word(guest, "ticks") > 0


def test_the_pit_shows_through_port_61(guest: Guest) -> None:
    """As firmware calibrates: gate on, channel 2 in mode 0, wait for bit 5."""
    start(
        guest,
        """
        outb_   0x61, 0
        outb_   0x43, 0xb0
        outb_   0x42, 0xff
        outb_   0x42, 0x10
        in      al, 0x61
        mov     bl, al
        outb_   0x61, 1
1:      in      al, 0x61
        test    al, 0x20
        jz      1b
        leave_  0
        """,
    )
    began = time.monotonic()
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert time.monotonic() - began >= 0x10FF / 1193182
    assert guest.regs.rbx & 0x2F == 0


def test_the_rtc_ticks_through_the_slave(guest: Guest) -> None:
    start(
        guest,
        """
        pics    0xfb, 0xfe
        outb_   0x70, 0x0a
        outb_   0x71, 0x29              # 128 Hz
        outb_   0x70, 0x0b
        outb_   0x71, 0x42
        sti
1:      hlt
        cmp     dword ptr ticks, 3
        jb      1b
        leave_  0
        """,
    )
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert word(guest, "ticks") == 3


@pytest.mark.kvmpy(irqchip="kernel")
def test_the_rtc_ticks_through_the_kernels_controllers(guest: Guest) -> None:
    test_the_rtc_ticks_through_the_slave(guest)


# APICs

APICS = """
        pics
        apic    0xf0, 0x1ff
"""


def test_the_apic_timer_once(guest: Guest) -> None:
    start(
        guest,
        APICS
        + """
        apic    0x3e0, 0xb
        apic    0x320, 0x40
        apic    0x380, 2000000
        sti
        hlt
        mov     ebx, ticks
        mov     ecx, [r8 + 0x390]
        leave_  0
        """,
    )
    began = time.monotonic()
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert time.monotonic() - began >= 0.002
    assert (guest.regs.rbx, guest.regs.rcx) == (1, 0)


def test_the_apic_timer_again_and_again(guest: Guest) -> None:
    start(
        guest,
        APICS
        + """
        apic    0x3e0, 0xb
        apic    0x320, 0x20040
        apic    0x380, 1000000
        sti
1:      cmp     dword ptr ticks, 5
        jb      1b
        leave_  0
        """,
    )
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"


def test_the_tsc_deadline(guest: Guest) -> None:
    if not guest.machine.interrupts.tsc_khz:
        pytest.skip("this engine doesn't know the TSC's frequency")
    assert guest.cpus[0].cpuid.has("tsc_deadline_timer")
    start(
        guest,
        APICS
        + """
        apic    0x320, 0x40040
        rdtsc
        add     eax, 3000000
        adc     edx, 0
        mov     ebx, eax
        mov     edi, edx
        mov     ecx, 0x6e0
        wrmsr
        rdmsr
        mov     ebp, eax
        sti
        hlt
        rdtsc
        sub     eax, ebx
        sbb     edx, edi                # not negative: the time had come
        mov     esi, edx
        rdmsr
        leave_  0
        """,
    )
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert guest.regs.rbp == guest.regs.rbx
    assert word(guest, "ticks") == 1
    assert guest.regs.rsi == 0


def test_a_level_through_the_ioapic(guest: Guest) -> None:
    """It comes until the device is quiet, once."""
    start(
        guest,
        APICS
        + """
        ioapic  (0x10+2*20+1), 0
        ioapic  (0x10+2*20), 0x8041
        sti
        out     0x98, al
        now_
        out     0x98, al
        now_
        leave_  0
        """,
    )
    guest.ports.on_write(0x98)(lambda offset, value, size: guest.machine.set_irq(20, True))
    guest.ports.on_write(0x99)(lambda offset, value, size: guest.machine.set_irq(20, False))
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert word(guest, "ticks") == 2


def test_an_interrupt_to_oneself_and_the_task_priority(guest: Guest) -> None:
    start(
        guest,
        APICS
        + """
        sti
        apic    0x80, 0x40
        apic    0x300, 0x44040          # vector 0x40 to itself
        now_
        mov     ebx, ticks
        apic    0x80, 0
        now_
        mov     esi, ticks
        leave_  0
        """,
    )
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert (guest.regs.rbx, guest.regs.rsi) == (0, 1)


def test_cr8_is_the_task_priority(guest: Guest) -> None:
    guest.asm(
        SETUP
        + """
        mov     rdi, 0xfee00000
        mov     dword ptr [rdi + 0xf0], 0x1ff
        mov     rax, 5
        mov     cr8, rax
        mov     ebp, [rdi + 0x80]
        sti
        mov     dword ptr [rdi + 0x300], 0x44040
        now_
        mov     rbx, ticks
        xor     eax, eax
        mov     cr8, rax
        mov     ecx, 2000000            # where CR8 leaves no exit it takes a little
1:      cmp     qword ptr ticks, 0
        loope   1b
        mov     rsi, ticks
        mov     dword ptr [rdi + 0x80], 0x70
        mov     rcx, cr8
        out     0xf4, al
tick:   inc     qword ptr ticks
        mov     dword ptr [rdi + 0xb0], 0
        iretq
        .balign 8
ticks:  .quad   0
        """,
        "long",
        idt={0x40: "tick"},
    )
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    regs = guest.regs
    assert (regs.rbp, regs.rbx, regs.rsi, regs.rcx) == (0x50, 0, 1, 7)


def test_nmi_comes_with_interrupts_off_and_wakes(guest: Guest) -> None:
    start(
        guest,
        """
        cli
        out     0x98, al
        now_
        mov     ebx, nmis
        leave_  0
        """,
    )
    guest.ports.on_write(0x98)(lambda offset, value, size: guest.machine.interrupts.nmi())
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert guest.regs.rbx == 1


def test_an_apic_that_is_off_lets_the_pic_through(guest: Guest) -> None:
    """And one that masks LINT0 doesn't."""
    start(
        guest,
        """
        pics    0xef
        apic    0xf0, 0x1ff
        apic    0x350, 0x10700
        sti
        out     0x98, al
        now_
        mov     ebx, ticks
        apic    0x350, 0x700
        now_
        mov     esi, ticks
        leave_  0
        """,
    )
    guest.ports.on_write(0x98)(lambda offset, value, size: guest.machine.set_irq(4, True))
    assert guest.run(timeout=LONG_ENOUGH).reason == "exit"
    assert (guest.regs.rbx, guest.regs.rsi) == (0, 1)


def test_what_cpuid_says(guest: Guest) -> None:
    start(
        guest, "mov eax, 1; cpuid; mov esi, ecx; mov edi, edx; mov ecx, 0x1b; rdmsr; mov ebx, eax; leave_ 0"
    )
    guest.run(timeout=LONG_ENOUGH)
    assert guest.regs.rdi & 1 << 9
    assert guest.regs.rbx & ~0x3FF == 0xFEE00800
    assert not guest.machine.default_cpuid(0).has("x2apic")


@pytest.mark.parametrize("irqchip", ["none", "user"])
def test_cr8_can_be_set_from_outside(irqchip: str, machines: Machines) -> None:
    machine = machines(irqchip=irqchip)
    code = bytes.fromhex("440f20c0 f4 440f20c0 f4")  # mov %cr8, %rax; hlt
    machine.load(code, mode="long", format="flat", load_address=0x100000)
    cpu = machine.cpus[0]
    for value in (5, 0):
        cpu.sregs.cr8 = value
        assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
        assert (cpu.regs.rax, cpu.sregs.cr8) == (value, value)


# The machine around it


def test_one_vcpu_only(machines: Machines) -> None:
    with pytest.raises(UsageError, match=r"irqchip 'user' with 2 vCPUs.*irqchip='kernel'"):
        Machine("2M", 2, "kvm", irqchip="user")


def test_an_exception_in_a_timer_comes_out_and_the_run_goes_on(guest: Guest) -> None:
    start(guest, "pics; sti; hlt; leave_ 1")
    timers = guest.machine.timers
    calls = []

    def due() -> int:
        calls.append(timers.now())
        if len(calls) == 1:
            raise LookupError("at the first time")
        guest.machine.stop()
        return timers.now() + 1

    timer = timers.add(due)
    timers.arm(timer, timers.now())
    with pytest.raises(LookupError, match="first time"):
        guest.run(timeout=LONG_ENOUGH)
    timers.arm(timer, timers.now() + 1_000_000)
    assert guest.run(timeout=LONG_ENOUGH).reason == "stopped"
    assert len(calls) == 2


def test_a_character_timeout_takes_its_time(machines: Machines) -> None:
    machine = machines(irqchip="user")
    pc = Pc(machine, lambda data: None, serial_timing=True)
    seen = []
    machine.set_irq = lambda line, level: seen.append((line, level, time.monotonic()))  # type: ignore[method-assign]
    pc.serial.write(2, 0xC1, 1)  # FIFO on, interrupt at 14 bytes
    pc.serial.write(1, 0x01, 1)
    machine.load(b"\xfb\xf4", mode="real", format="flat", load_address=0x1000)
    sent = time.monotonic()
    pc.serial.receive(b"x")
    assert machine.run(timeout=0.2).reason == "timeout"
    ((line, level, when),) = seen
    assert (line, level) == (4, True)
    assert when - sent >= 4 * pc.serial.character_time / 1e9


@pytest.mark.kvmpy(irqchip="kernel", cpus=2)
def test_the_rtc_ticks_with_two_vcpus(guest: Guest) -> None:
    test_the_rtc_ticks_through_the_slave(guest)


def test_state_goes_to_another_machine(machines: Machines) -> None:
    """A guest asleep, its timer running, an interrupt in service: it wakes up elsewhere."""
    code = bytes.fromhex("fb f4 b0 01 e6 f4")  # sti; hlt; mov $1, %al; out %al, $0xf4
    first, second = machines(irqchip="user"), machines(irqchip="user")
    for machine in (first, second):
        Pc(machine, lambda data: None)
        machine.load(code, mode="real", format="flat", load_address=0x1000)
    first.memory.write(0x20 * 4, (0x1200).to_bytes(4, "little"))
    first.memory.write(0x1200, bytes.fromhex("b0 20 e6 20 cf"))  # EOI, iret
    for port, value in (
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0xA0, 0x11),
        (0xA1, 0x28),
        (0xA1, 2),
    ):
        range_ = first.ports[port]
        range_.owner.write(port - range_.first, value, 1)
    first.ports[0x4D0].owner.write(0, 0x20, 1)
    assert first.run(timeout=LONG_ENOUGH, until=["HLT"]).reason == "until"
    for offset, value in ((3, 0x30), (0, 0xFF), (0, 0xFF)):
        first.ports[0x40].owner.write(offset, value, 1)  # one tick in 55 ms
    state = first.interrupts.state()
    assert state["halted"]
    second.memory.write(0, bytes(first.memory.read(0, 0x2000)))
    for name in ("regs", "sregs"):
        registers = getattr(first.cpus[0], name)
        getattr(second.cpus[0], name).update({key: getattr(registers, key) for key, _ in registers.items()})
    second.cpus[0].sregs.cs.selector = second.cpus[0].sregs.cs.base = first.cpus[0].sregs.cs.base
    second.interrupts.restore(state)
    for name in ("pic-master", "pic-slave", "elcr", "ioapic"):
        assert second.interrupts.state()["devices"][name] == state["devices"][name]
    result = second.run(timeout=LONG_ENOUGH)
    assert (result.reason, result.status) == ("exit", 1)


@pytest.mark.threads
@pytest.mark.parametrize("asleep", [True, False])
def test_no_edge_from_another_thread_is_lost(guest: Guest, asleep: bool) -> None:
    """Each is waited for before the next: one that is lost would be the last."""
    rounds = 300
    ready = threading.Event()
    guest.ports.on_write(0x98)(lambda offset, value, size: ready.set())
    start(
        guest,
        f"""
        pics    0xef
        mov     ebp, {rounds}
        out     0x98, al
1:      cli
        cmp     ticks, ebp
        jae     2f
        sti
        {"hlt" if asleep else "now_"}
        jmp     1b
2:      leave_  0
        """,
    )
    ticks = guest.symbols["ticks"]
    failed = []

    def drive() -> None:
        ready.wait(LONG_ENOUGH)
        for number in range(1, rounds + 1):
            guest.machine.set_irq(4, True)
            guest.machine.set_irq(4, False)
            deadline = time.monotonic() + LONG_ENOUGH / 2
            while int.from_bytes(guest.memory.read(ticks, 4), "little") < number:
                if time.monotonic() > deadline:
                    failed.append(number)
                    guest.machine.stop()
                    return

    thread = threading.Thread(target=drive)
    thread.start()
    run = guest.run(timeout=LONG_ENOUGH)
    thread.join()
    assert failed == []
    assert (run.reason, word(guest, "ticks")) == ("exit", rounds)
