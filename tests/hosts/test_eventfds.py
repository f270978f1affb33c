"""Eventfds in place of exits and of KVM_IRQ_LINE: ioeventfd and irqfd."""

from __future__ import annotations

import os

from guests import asleep, enable_lapic, listen, make, to_halt
from ioapic import level_triggered
from later import Later
from listing import code
from suite import Host, cases

from kvmpy.kvm import routing
from kvmpy.machine.machine import Machine

DOORBELL = 0x500
MMIO_DOORBELL = 0xD000_0000
VECTOR, GSI = 0x40, 20
MESSAGES = 0xFEE0_0000

RINGS = code(
    64,
    """
      ba 00 05 00 00      mov edx, 0x500
      b8 07 00 00 00      mov eax, 7
      ef                  out dx, eax
      b8 08 00 00 00      mov eax, 8
      ef                  out dx, eax
      66 ef               out dx, ax
      bb 00 00 00 d0      mov ebx, 0xd0000000
      c7 03 07 00 00 00   mov dword ptr [rbx], 7
      c7 03 08 00 00 00   mov dword ptr [rbx], 8
      c6 03 07            mov byte ptr [rbx], 7
      f4                  hlt
    """,
)


class Doorbell:
    """What comes to user space all the same."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, value: int, size: int) -> None:
        self.writes.append((value, size))


def eventfd(host: Host) -> int:
    """An eventfd that is closed when the test is over."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    host.defer(os.close, fd)
    return fd


def count(fd: int) -> int:
    """How often the eventfd was signalled since the last time."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@cases(port=True, mmio=False)
def test_writes_that_match_signal_and_the_others_exit(host: Host, case: bool) -> None:
    machine = make(host, RINGS)
    doorbell = Doorbell()
    space, address = (machine.ports, DOORBELL) if case else (machine.mmio, MMIO_DOORBELL)
    space.attach(address, 4, doorbell, name="doorbell")
    fd = eventfd(host)
    machine.vm.ioeventfd(fd, address, 4, datamatch=7, pio=case)
    to_halt(machine)
    assert count(fd) == 1
    assert doorbell.writes == [(8, 4), (8, 2) if case else (7, 1)]


@cases(port=True, mmio=False)
def test_writes_of_any_length_signal_until_the_eventfd_is_taken_away(host: Host, case: bool) -> None:
    machine = make(host, RINGS)
    address = DOORBELL if case else MMIO_DOORBELL
    fd = eventfd(host)
    machine.vm.ioeventfd(fd, address, pio=case)
    assert to_halt(machine).exits == {"HLT": 1, "IO" if not case else "MMIO": 3}
    assert count(fd) == 3
    machine.vm.ioeventfd(fd, address, pio=case, deassign=True)
    machine.cpus[0].regs.rip = 0x1000
    assert to_halt(machine).exits == {"HLT": 1, "IO": 3, "MMIO": 3}
    assert count(fd) == 0


WAITING = code(
    64,
    """
    again:
      fb                  sti
      f4                  hlt
      fa                  cli
      b0 03               mov al, 3
      e6 e9               out 0xe9, al
      eb f7               jmp again
    handler:
      b0 40               mov al, 0x40
      e6 e9               out 0xe9, al
      b8 b0 00 e0 fe      mov eax, 0xfee000b0
      c7 00 00 00 00 00   mov dword ptr [rax], 0
      48 cf               iretq
    """,
)


def until(machine: Machine, said: list[int], expected: list[int]) -> None:
    """Runs the guest until it has said as much as is expected."""
    while len(said) < len(expected):
        result = machine.run(timeout=20, until=["IO"])
        assert result.reason == "until", (result, said)
    assert said == expected


def test_an_irqfd_sends_the_message_of_its_route(host: Host) -> None:
    machine = make(host, WAITING, handlers={VECTOR: "handler"}, irqchip="split")
    said = listen(machine)
    enable_lapic(machine.cpus[0])
    machine.vm.set_gsi_routing([routing.msi(GSI, MESSAGES, VECTOR)])
    fd = eventfd(host)
    machine.vm.irqfd(fd, GSI)
    asleep(machine)
    os.eventfd_write(fd, 1)
    until(machine, said, [0x40, 3])
    asleep(machine)
    os.eventfd_write(fd, 1)
    until(machine, said, [0x40, 3, 0x40, 3])
    machine.vm.irqfd(fd, GSI, deassign=True)
    os.eventfd_write(fd, 1)
    assert machine.run(timeout=0.1).reason == "timeout"
    assert said == [0x40, 3, 0x40, 3]


def test_an_irqfd_wakes_a_vcpu_that_sleeps_in_the_kernel(host: Host) -> None:
    machine = make(host, WAITING, handlers={VECTOR: "handler"}, irqchip="split")
    said = listen(machine)
    enable_lapic(machine.cpus[0])
    machine.vm.set_gsi_routing([routing.msi(GSI, MESSAGES, VECTOR)])
    fd = eventfd(host)
    machine.vm.irqfd(fd, GSI)
    asleep(machine)
    Later(host, 0.02, lambda: os.eventfd_write(fd, 1))
    until(machine, said, [0x40, 3])


def test_a_resampled_irqfd_tells_the_end_of_the_interrupt(host: Host) -> None:
    machine = make(host, WAITING, handlers={VECTOR: "handler"}, irqchip="kernel")
    said = listen(machine)
    enable_lapic(machine.cpus[0])
    level_triggered(host, machine, GSI, VECTOR)
    fd, ended = eventfd(host), eventfd(host)
    machine.vm.irqfd(fd, GSI, resample=ended)
    asleep(machine)
    os.eventfd_write(fd, 1)
    until(machine, said, [0x40])
    assert count(ended) == 0
    until(machine, said, [0x40, 3])
    assert count(ended) == 1
