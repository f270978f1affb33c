"""What a kind's machine needs beside its loop: owners of addresses, interrupt routes, memory that is taken away."""

from __future__ import annotations

import mmap
import os

from kvmpy._native import ffi, lib
from kvmpy.lab import guests
from kvmpy.machine.rules import Drop, Native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.lab.trial import GuestTrial
    from kvmpy.machine.backing import Backing
    from kvmpy.machine.bus import Space

PAGE = 4096
HUGE = 2 << 20
HUGE_PAGES = 8
GSI = 5


class PythonDevice:
    """The least a device in Python does."""

    name = "python"

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, value: int, size: int) -> None:
        pass


def ignore_hlt(trial: GuestTrial) -> None:
    """HLT comes to user space: go on."""
    trial.machine.on_exit("HLT")(lambda exit_: None)


def _in_c(trial: GuestTrial, space: Space, first: int, length: int) -> None:
    if trial.bench.spin[0]:
        space.attach(first, length, Native(lib.kvmpy_measure_spin_address(), trial.bench.spin), "spin")
    else:
        space.attach(first, length, Drop(0), "drop")


def port_c(trial: GuestTrial) -> None:
    """C answers."""
    _in_c(trial, trial.machine.ports, guests.USER_PORT, 4)


def mmio_c(trial: GuestTrial) -> None:
    """C answers."""
    _in_c(trial, trial.machine.mmio, guests.OUTSIDE, 4)


def msr_c(trial: GuestTrial) -> None:
    """C answers."""
    _in_c(trial, trial.machine.msrs, guests.USER_MSR, 1)


def port_python(trial: GuestTrial) -> None:
    """Python answers."""
    trial.machine.ports.attach(guests.USER_PORT, 4, PythonDevice())


def mmio_python(trial: GuestTrial) -> None:
    """Python answers."""
    trial.machine.mmio.attach(guests.OUTSIDE, 4, PythonDevice())


def msr_python(trial: GuestTrial) -> None:
    """Python answers."""
    trial.machine.msrs.attach(guests.USER_MSR, 1, PythonDevice())


def port_ring(trial: GuestTrial) -> None:
    """C logs."""
    trial.machine.log(1 << 12, "last", everything=False)
    trial.machine.ports.attach(guests.USER_PORT, 4, PythonDevice(), rule=Drop(0)).place = "ring"


def port_coalesced(trial: GuestTrial) -> None:
    """The kernel keeps the writes."""
    trial.machine.ports.attach(guests.USER_PORT, 4, PythonDevice()).place = "kernel"


def mmio_coalesced(trial: GuestTrial) -> None:
    """The kernel keeps the writes."""
    trial.machine.mmio.attach(guests.OUTSIDE, 4, PythonDevice()).place = "kernel"


def port_eventfd(trial: GuestTrial) -> None:
    """The kernel signals."""
    trial.machine.ports.eventfd(guests.USER_PORT, 4)


def mmio_eventfd(trial: GuestTrial) -> None:
    """The kernel signals."""
    trial.machine.mmio.eventfd(guests.OUTSIDE, 4)


def keep_msr(trial: GuestTrial) -> None:
    """What is written is what the MSR holds."""
    cpu = trial.machine.cpus[0]
    cpu.regs.r15 = cpu.msrs[trial.settings.r14] & 0xFFFFFFFF


# Interrupts


def _route(trial: GuestTrial) -> Any:
    """Line GSI is a message to the local APIC: it needs no other chip to be programmed, as with virtio."""
    from kvmpy.kvm import routing

    vm = trial.machine.vm.vm
    vm.set_gsi_routing([routing.msi(GSI, 0xFEE00000, guests.VECTOR)])
    return vm


def irq_line(trial: GuestTrial) -> None:
    """KVM_IRQ_LINE, from the vCPU's own thread, between an exit and the next entry."""
    trial.measure.inject_fd = _route(trial).fd
    trial.measure.line = GSI
    trial.measure.inject = lib.KVMPY_INJECT_LINE


def irq_irqfd(trial: GuestTrial) -> None:
    """An eventfd does the same."""
    vm = _route(trial)
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    trial.closing.append(lambda: os.close(fd))
    vm.irqfd(fd, GSI)
    trial.measure.inject_fd = fd
    trial.measure.inject = lib.KVMPY_INJECT_EVENTFD


def deadline_timer(trial: GuestTrial) -> None:
    """KVM doesn't count the timer among what it supports; the local APIC in the kernel has it all the same."""
    trial.machine.cpus[0].cpuid.force("tsc_deadline_timer")


# Memory


def huge_backing(size: int, offset: int) -> Backing:
    """RAM in transparent 2 MiB pages."""
    from kvmpy.machine.backing import anonymous

    return anonymous(size, huge="thp", phase=offset % HUGE)


def _region(trial: GuestTrial, length: int, stride: int, prepare: int) -> None:
    measure = trial.measure
    measure.memory = ffi.cast("void *", trial.machine.memory.address(guests.REGION_AT, length))
    measure.length, measure.stride, measure.prepare = length, stride, prepare


def remap_4k(trial: GuestTrial) -> None:
    """Between chunks the host gives the pages back and touches new ones: what is missing is the guest's mapping."""
    slot = trial.machine.memory.slots[0]
    slot.backing.map.madvise(mmap.MADV_NOHUGEPAGE)
    _region(trial, trial.settings.chunk * PAGE, PAGE, lib.KVMPY_PREPARE_REMAP)


def remap_2m(trial: GuestTrial) -> None:
    """The same with pages of 2 MiB."""
    from kvmpy.lab.trial import Unavailable

    backing = trial.machine.memory.slots[0].backing
    if "thp" not in backing.kind:
        raise Unavailable("the host has no transparent huge pages: echo madvise >"
                          " /sys/kernel/mm/transparent_hugepage/enabled")  # fmt: skip
    _region(trial, HUGE_PAGES * HUGE, HUGE, lib.KVMPY_PREPARE_REMAP)


def dirty_log(trial: GuestTrial) -> None:
    """Between chunks the dirty log is fetched, which write-protects the pages, or clears their dirty bits."""
    length = trial.settings.chunk * PAGE
    slot = trial.machine.memory.add(guests.REGION_AT, length, log_dirty=True, name="logged")
    bitmap = ffi.new("uint64_t[]", (length // PAGE + 63) // 64)
    trial.keep.append(bitmap)
    measure = trial.measure
    measure.vm_fd, measure.slot, measure.bitmap = trial.machine.vm.vm.fd, slot.number, bitmap
    measure.prepare = lib.KVMPY_PREPARE_DIRTY_LOG


def write_protect(trial: GuestTrial) -> None:
    """A read-only slot."""
    length = trial.settings.chunk * PAGE
    trial.machine.memory.add(guests.REGION_AT, length, readonly=True, name="read-only")
    _in_c(trial, trial.machine.mmio, guests.REGION_AT, length)


def userfault(trial: GuestTrial) -> None:
    """A thread in C brings the pages; between chunks they are given back."""
    from kvmpy.lab.trial import Unavailable

    length = trial.settings.chunk * PAGE
    trial.machine.memory.add(guests.REGION_AT, length, name="user faults")
    _region(trial, length, PAGE, lib.KVMPY_PREPARE_UNMAP)
    fd = lib.kvmpy_uffd_open()
    if fd < 0:
        raise Unavailable(f"userfaultfd: {os.strerror(-fd)}: needs CAP_SYS_PTRACE, access to /dev/userfaultfd, or"
                          " sysctl vm.unprivileged_userfaultfd=1")  # fmt: skip
    trial.closing.insert(0, lambda: os.close(fd))  # last of all: the memory goes first
    error = lib.kvmpy_uffd_register(fd, trial.measure.memory, length)
    if error:
        raise Unavailable(f"userfaultfd of {length} bytes: {os.strerror(-error)}")
    server = ffi.new("struct kvmpy_uffd *", {"fd": fd, "page": PAGE})
    trial.keep.append(server)
    other = trial.bench.other_cpu
    error = lib.kvmpy_uffd_start(server, -1 if other is None else other)
    if error:
        raise Unavailable(f"no thread for userfaultfd: {os.strerror(-error)}")
    trial.closing.append(lambda: lib.kvmpy_uffd_stop(server))
