"""Interrupts and NMIs given by the host: when the guest takes them, and when it is asked to wait."""

from __future__ import annotations

from guests import MESSAGES, asleep, listen, make, msi, to_exit, to_halt
from listing import code
from sleeper import LEVEL, OTHER, VECTOR, WOKEN, Sleeper
from suite import Host, cases

from kvmpy.abi import constants as c
from kvmpy.kvm import routing
from kvmpy.machine import exits
from kvmpy.machine.machine import Machine

NMI = 2


def next_word(machine: Machine, said: list[int]) -> None:
    """Runs the guest until it has said one thing more."""
    before = len(said)
    while len(said) == before:
        to_exit(machine, "IO")


CLOSED = code(
    64,
    """
      b0 01            mov al, 1
      e6 e9            out 0xe9, al
      fb               sti
      90               nop
    opened:
      b9 30 75 00 00   mov ecx, 30000
    again:
      ff c9            dec ecx
      75 fc            jnz again
      b0 02            mov al, 2
      e6 e9            out 0xe9, al
      fa               cli
      f4               hlt
    handler:
      b0 40            mov al, 0x40
      e6 e9            out 0xe9, al
      48 cf            iretq
    nmi:
      b0 20            mov al, 0x20
      e6 e9            out 0xe9, al
      48 cf            iretq
    """,
)


def test_an_injected_interrupt_is_taken_at_once_when_the_window_is_open(host: Host) -> None:
    machine = make(host, CLOSED, handlers={VECTOR: "handler"}, interrupts=True)
    said = listen(machine)
    machine.cpus[0].vcpu.interrupt(VECTOR)
    to_halt(machine)
    assert said == [0x40, 1, 2]


def test_the_interrupt_window_opens_behind_sti_and_one_more_instruction(host: Host) -> None:
    machine = make(host, CLOSED, handlers={VECTOR: "handler"})
    said = listen(machine)
    cpu = machine.cpus[0]
    next_word(machine, said)
    assert not cpu.native.run.ready_for_interrupt_injection
    assert not cpu.native.run.if_flag
    cpu.native.run.request_interrupt_window = 1
    to_exit(machine, "IRQ_WINDOW_OPEN")
    assert cpu.native.run.ready_for_interrupt_injection
    assert cpu.native.run.if_flag
    if host.module != "kvm_pvm":  # it looks only now and then
        assert cpu.regs.rip == CLOSED.at["opened"]
    cpu.vcpu.interrupt(VECTOR)
    to_halt(machine)
    assert said == [1, 0x40, 2]


def test_an_nmi_does_not_wait_for_the_window(host: Host) -> None:
    machine = make(host, CLOSED, handlers={VECTOR: "handler", NMI: "nmi"})
    said = listen(machine)
    machine.cpus[0].vcpu.nmi()
    to_halt(machine)
    assert said == [0x20, 1, 2]


NESTED = code(
    64,
    """
      e6 80   out 0x80, al
      b0 01   mov al, 1
      e6 e9   out 0xe9, al
      f4      hlt
    nmi:
      b0 20   mov al, 0x20
      e6 e9   out 0xe9, al
      b0 21   mov al, 0x21
      e6 e9   out 0xe9, al
      48 cf   iretq
    """,
)


def test_a_second_nmi_waits_for_the_end_of_the_first(host: Host) -> None:
    machine = make(host, NESTED, handlers={NMI: "nmi"})
    said = listen(machine)
    vcpu = machine.cpus[0].vcpu
    vcpu.nmi()
    next_word(machine, said)
    assert said == [0x20]
    assert vcpu.get_vcpu_events().nmi.masked
    vcpu.nmi()
    next_word(machine, said)
    assert said == [0x20, 0x21]
    to_halt(machine)
    assert said == [0x20, 0x21, 0x20, 0x21, 1]
    assert not vcpu.get_vcpu_events().nmi.masked


@cases("kernel", "split")
def test_a_message_wakes_a_halted_vcpu(host: Host, case: str) -> None:
    sleeper = Sleeper(host, case)
    assert msi(sleeper.machine, VECTOR) == 1
    sleeper.says(VECTOR, WOKEN)


def test_the_higher_of_two_messages_comes_first(host: Host) -> None:
    sleeper = Sleeper(host, "split")
    msi(sleeper.machine, VECTOR)
    msi(sleeper.machine, OTHER)
    sleeper.says(OTHER, VECTOR, WOKEN)


def test_a_message_to_a_switched_off_lapic_goes_nowhere(host: Host) -> None:
    machine = make(host, CLOSED, handlers={VECTOR: "handler"}, interrupts=True, irqchip="split")
    said = listen(machine)
    assert msi(machine, VECTOR) == 0
    to_halt(machine)
    assert said == [1, 2]


PIC = code(
    64,
    """
      b0 11   mov al, 0x11
      e6 20   out 0x20, al
      b0 40   mov al, 0x40
      e6 21   out 0x21, al
      b0 04   mov al, 4
      e6 21   out 0x21, al
      b0 01   mov al, 1
      e6 21   out 0x21, al
      b0 df   mov al, 0xdf
      e6 21   out 0x21, al
      b0 01   mov al, 1
      e6 e9   out 0xe9, al
      fb      sti
      f4      hlt
      fa      cli
      b0 03   mov al, 3
      e6 e9   out 0xe9, al
      f4      hlt
    handler:
      b0 45   mov al, 0x45
      e6 e9   out 0xe9, al
      b0 20   mov al, 0x20
      e6 20   out 0x20, al
      48 cf   iretq
    """,
)


def test_a_line_of_the_pics_in_the_kernel(host: Host) -> None:
    machine = make(host, PIC, handlers={0x45: "handler"}, irqchip="kernel")
    said = listen(machine)
    next_word(machine, said)
    assert said == [1]
    asleep(machine)
    machine.set_irq(5, True)
    machine.set_irq(5, False)
    to_halt(machine)
    assert said == [1, 0x45, 3]
    pic = machine.vm.get_irqchip(c.KVM_IRQCHIP_PIC_MASTER).chip.pic
    assert (pic.irq_base, pic.imr, pic.isr) == (0x40, 0xDF, 0)


def test_a_line_of_the_ioapic_in_the_kernel(host: Host) -> None:
    sleeper = Sleeper(host, "kernel")
    sleeper.lead(20)
    sleeper.machine.set_irq(20, True)
    sleeper.says(VECTOR)
    sleeper.machine.set_irq(20, False)
    sleeper.says(VECTOR, WOKEN)


def test_a_level_triggered_line_comes_again_until_it_is_low(host: Host) -> None:
    sleeper = Sleeper(host, "kernel")
    sleeper.lead(20)
    sleeper.machine.set_irq(20, True)
    sleeper.says(VECTOR, VECTOR)
    sleeper.machine.set_irq(20, False)
    sleeper.says(VECTOR, VECTOR, WOKEN)


def test_the_split_irqchip_tells_the_end_of_a_level_triggered_interrupt(host: Host) -> None:
    sleeper = Sleeper(host, "split")
    ended: list[int] = []

    @sleeper.machine.on_exit("IOAPIC_EOI")
    def _(exit_: exits.Exit) -> None:
        ended.append(exit_.vector)

    sleeper.machine.vm.set_gsi_routing([routing.msi(4, MESSAGES, VECTOR | LEVEL)])
    assert sleeper.machine.vm.signal_msi(MESSAGES, VECTOR | LEVEL) == 1
    sleeper.says(VECTOR, WOKEN)
    assert ended == [VECTOR]
