"""Eventfds in place of exits and of KVM_IRQ_LINE: ioeventfd and irqfd."""

from __future__ import annotations

import os

from guests import MESSAGES, make, to_halt
from later import Later
from listing import code
from sleeper import VECTOR, WOKEN, Sleeper
from suite import Host, cases

from kvmpy.kvm import routing

DOORBELL = 0x500
MMIO_DOORBELL = 0xD000_0000
GSI = 20

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
    assert to_halt(machine).exits == {"HLT": 1, "MMIO" if case else "IO": 3}
    assert count(fd) == 3
    machine.vm.ioeventfd(fd, address, pio=case, deassign=True)
    machine.cpus[0].regs.rip = 0x1000
    assert to_halt(machine).exits == {"HLT": 1, "IO": 3, "MMIO": 3}
    assert count(fd) == 0


def routed(host: Host) -> tuple[Sleeper, int]:
    """A sleeper, and an eventfd whose line is routed to it as a message."""
    sleeper = Sleeper(host, "split")
    sleeper.machine.vm.set_gsi_routing([routing.msi(GSI, MESSAGES, VECTOR)])
    fd = eventfd(host)
    sleeper.machine.vm.irqfd(fd, GSI)
    return sleeper, fd


def test_an_irqfd_sends_the_message_of_its_route(host: Host) -> None:
    sleeper, fd = routed(host)
    os.eventfd_write(fd, 1)
    sleeper.says(VECTOR, WOKEN)
    sleeper.sleep()
    os.eventfd_write(fd, 1)
    sleeper.says(VECTOR, WOKEN, VECTOR, WOKEN)
    sleeper.machine.vm.irqfd(fd, GSI, deassign=True)
    os.eventfd_write(fd, 1)
    sleeper.sleep()
    sleeper.says(VECTOR, WOKEN, VECTOR, WOKEN)


def test_an_irqfd_wakes_a_vcpu_that_sleeps_in_the_kernel(host: Host) -> None:
    sleeper, fd = routed(host)
    Later(host, 0.02, lambda: os.eventfd_write(fd, 1))
    sleeper.says(VECTOR, WOKEN)


def test_a_resampled_irqfd_tells_the_end_of_the_interrupt(host: Host) -> None:
    sleeper = Sleeper(host, "kernel")
    sleeper.lead(GSI)
    fd, ended = eventfd(host), eventfd(host)
    sleeper.machine.vm.irqfd(fd, GSI, resample=ended)
    os.eventfd_write(fd, 1)
    sleeper.says(VECTOR)
    assert count(ended) == 0
    sleeper.says(VECTOR, WOKEN)
    assert count(ended) == 1
