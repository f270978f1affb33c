"""A PC's interrupt controllers and timer in user space: ``Machine(irqchip="user")``.

For engines that bring none along, and for those that want to see every step. What the controllers have for the CPU is
given to it by KVM's rules for a VM without an irqchip in the kernel (KVM API document, KVM_INTERRUPT and struct
kvm_run: ready_for_interrupt_injection, request_interrupt_window, cr8), which every engine here keeps to.

A change of a line asks for the vCPU's attention with a kick: at its next entry the exit it is at is completed, and
:meth:`Interrupts.deliver` runs with registers and interrupt flag as the next instruction will find them. So lines may
be driven from handlers and from any thread alike.
"""

from __future__ import annotations

from kvmpy._native import lib
from kvmpy.devices.elcr import Elcr
from kvmpy.devices.ioapic import IoApic
from kvmpy.devices.lapic import DEASSERT, TO_ALL, TO_DESTINATION, TPR, Lapic
from kvmpy.devices.pic import PicPair
from kvmpy.devices.pit import Pit
from kvmpy.errors import KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from kvmpy.devices.device import Device
    from kvmpy.devices.lapic import Message
    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.machine import Machine
    from kvmpy.x86.cpuid import CpuidTable

LAPIC_BASE, IOAPIC_BASE = 0xFEE0_0000, 0xFEC0_0000
MASTER, SLAVE, ELCR, PIT = 0x20, 0xA0, 0x4D0, 0x40
PIT_LINE = 0
TSC_DEADLINE = 0x6E0
IA32_TSC = 0x10
APIC_ENABLED = 1 << 11  # of IA32_APIC_BASE, as BSP is
APIC_BSP = 1 << 8
LINES = 24
LOOK_AT_TPR_NS = 500_000
"""While an interrupt waits for a lower task priority: not every engine says when the guest lowers CR8 (KVM_EXIT_SET_TPR
isn't for CR8 writes that KVM emulates, and translated code has no such exit)."""


class Interrupts:
    """PIC, PIT, local APIC and I/O APIC of a machine with one vCPU: attributes ``pic``, ``pit``, ``lapic``,
    ``ioapic``, ``elcr``.

    Line n (0-15) goes to the PICs and to pin n of the I/O APIC, lines 16-23 to the latter alone, as KVM routes them
    where nobody says otherwise. The local APIC stays at 0xfee00000, whatever the guest writes to IA32_APIC_BASE.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.cpu: Cpu = machine.cpus[0]
        self._guard = machine.guard
        self._asked = False  # deliver() is going to be called: no kick needed
        self._nmi = False
        self._started = False
        timers = machine.timers
        vcpu = self.cpu.vcpu
        self.tsc_khz = _tsc_khz(vcpu)
        self.pic = PicPair(self._int)
        self.elcr = Elcr(self.pic.set_elcr)
        self.ioapic = IoApic(self._message)
        self.lapic = Lapic(
            self.cpu.index,
            timers.now,
            self._attention,
            nmi=self.nmi,
            send=self._ipi,
            ended=self.ioapic.end_of_interrupt,
            changed=self._lapic_changed,
            tsc=lambda: int(vcpu.get_msrs([IA32_TSC])[IA32_TSC]),
            tsc_khz=self.tsc_khz,
        )
        self.pit = Pit(timers.now, lambda level: self.set_line(PIT_LINE, level), self._pit_changed)
        self._pit_timer = timers.add(self.pit.poll)
        self._lapic_timer = timers.add(self.lapic.poll)
        self._tpr_timer = timers.add(lambda: None)  # what follows it is all that is wanted: deliver()
        # In the order of their wires: what one tells the next when it is restored is then overwritten by its own state.
        self._devices: tuple[Device, ...] = (
            self.pit, self.pic.slave, self.pic.master, self.elcr, self.ioapic, self.lapic,
        )  # fmt: skip
        self._attach()

    def _attach(self) -> None:
        ports, mmio, guard = self.machine.ports, self.machine.mmio, self._guard
        devices: tuple[tuple[int, Device], ...] = (
            (MASTER, self.pic.master),
            (SLAVE, self.pic.slave),
            (ELCR, self.elcr),
            (PIT, self.pit),
        )
        for first, device in devices:
            ports.attach(first, device.LENGTH, _Guarded(device, guard), device.name)
        mmio.attach(IOAPIC_BASE, self.ioapic.LENGTH, _Guarded(self.ioapic, guard), self.ioapic.name)
        mmio.attach(LAPIC_BASE, self.lapic.LENGTH, _LapicPage(self, guard), self.lapic.name)
        if self.tsc_khz:
            self.machine.msrs.attach(TSC_DEADLINE, 1, _Deadline(self.lapic, guard), "tsc-deadline")

    def edit_cpuid(self, table: CpuidTable) -> CpuidTable:
        """What the CPUID instruction says of the local APIC: an xAPIC, with the TSC deadline where it can be."""
        table.hide("x2apic", "tsc_deadline_timer")
        return table.force("tsc_deadline_timer") if self.tsc_khz else table

    def start(self) -> None:
        """A run begins: what came while there was none is seen to at the first entry."""
        run = self.cpu.native.run
        run.ready_for_interrupt_injection = 0  # it may no longer be true: registers can have been written
        if not self._started:
            self._started = True
            run.apic_base = self.cpu.sregs.apic_base = LAPIC_BASE | APIC_ENABLED | APIC_BSP
        self._asked = False
        self._attention()

    # State

    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs: each device's state by name, and what the vCPU waits for."""
        with self._guard:
            self.take_tpr(self.cpu.native.run)
            devices = {device.name: device.state() for device in self._devices}
            return {"devices": devices, "halted": self.cpu.halted, "nmi": self._nmi}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` gave, of this machine or another. The vCPU's registers come first.

        Raises DeviceError for a value that a device can't have.
        """
        with self._guard:
            for device in self._devices:
                device.restore(state["devices"][device.name])
            self.cpu.native.run.cr8 = self.lapic.tpr >> 4
            self.cpu.halted, self._nmi = state["halted"], state["nmi"]
            self._started = True

    # Lines and messages

    def set_line(self, number: int, level: bool) -> None:
        """The level of line 0-23. From any thread."""
        with self._guard:
            if number < 16:
                self.pic.set_line(number, level)
            if number < LINES:
                self.ioapic.set_line(number, level)

    def nmi(self) -> None:
        """An NMI for the vCPU. From any thread."""
        self._nmi = True
        self._attention()

    def _int(self, level: bool) -> None:
        """The PICs' output: LINT0, or the CPU's own pin."""
        self.lapic.set_lint(0, level)

    def _message(self, message: Message) -> bool:
        return self.lapic.matches(message) and self.lapic.accept(message)

    def _ipi(self, message: Message, shorthand: int) -> None:
        """There is one CPU: what is for others is for nobody. INIT and start-up of oneself do nothing here."""
        if message.flags & DEASSERT and message.mode:
            return
        if shorthand == TO_ALL or (shorthand == TO_DESTINATION and self.lapic.matches(message)):
            self.lapic.accept(message)

    def _pit_changed(self) -> None:
        self.machine.timers.arm(self._pit_timer, self.pit.next_event())

    def _lapic_changed(self) -> None:
        self.machine.timers.arm(self._lapic_timer, self.lapic.next_event())

    # The vCPU

    @property
    def waiting(self) -> bool:
        """Whether there is an interrupt for the CPU, if it takes one."""
        if self.pic.output and (self.lapic.accepts_extint or not self._apic_enabled):
            return True
        return bool(self.lapic.pending) and self._apic_enabled

    @property
    def _apic_enabled(self) -> bool:
        return bool(self.cpu.native.run.apic_base & APIC_ENABLED)

    def acknowledge(self) -> int:
        """The vector of what is waiting; it is in service from now on. The PICs come first, as in KVM."""
        if self.pic.output and (self.lapic.accepts_extint or not self._apic_enabled):
            return self.pic.acknowledge()
        return self.lapic.acknowledge()

    def _attention(self) -> None:
        if not self._asked and self.cpu.native is not None:
            self._asked = True
            lib.kvmpy_kick(self.cpu.native, lib.KVMPY_KICK_IRQ)

    def take_times(self) -> None:
        """Runs the timers that are due, then :meth:`deliver`."""
        self._asked = True
        try:
            with self._guard:
                self.machine.timers.run()
        finally:
            self.deliver()

    def deliver(self) -> None:
        """Gives the vCPU what it can take now; for the rest it leaves the guest when it can. On its thread."""
        cpu = self.cpu
        run = cpu.native.run
        with self._guard:
            self._asked = False
            self.take_tpr(run)
            if self._nmi:
                self._nmi = False
                cpu.vcpu.nmi()
                cpu.halted = False
            # Behind HLT with interrupts on nothing holds one back, whatever the engine said at the exit.
            if (run.ready_for_interrupt_injection or cpu.halted) and self.waiting:
                cpu.vcpu.interrupt(self.acknowledge())
                run.ready_for_interrupt_injection = 0
                cpu.halted = False
            run.request_interrupt_window = self.waiting
            if self.lapic.held_back:
                timers = self.machine.timers
                timers.arm(self._tpr_timer, timers.now() + LOOK_AT_TPR_NS)

    def take_tpr(self, run: Any) -> None:
        """The task priority that the guest has set by CR8."""
        if run.cr8 != self.lapic.tpr >> 4:
            self.lapic.tpr = (run.cr8 & 0xF) << 4

    def wakes(self) -> bool:
        """Whether anything can wake the vCPU that has just halted: interrupts are on, or an NMI is there."""
        return bool(self.cpu.native.run.if_flag) or self._nmi


class _Guarded:
    """A device that other threads drive as well."""

    def __init__(self, device: Device, guard: Any) -> None:
        self._device = device
        self._guard = guard

    def read(self, offset: int, size: int) -> int:
        with self._guard:
            return self._device.read(offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        with self._guard:
            self._device.write(offset, value, size)


class _LapicPage(_Guarded):
    """The local APIC's page: its task priority is CR8 too."""

    def __init__(self, interrupts: Interrupts, guard: Any) -> None:
        super().__init__(interrupts.lapic, guard)
        self._interrupts = interrupts
        self._run = interrupts.cpu.native.run

    def read(self, offset: int, size: int) -> int:
        with self._guard:
            self._interrupts.take_tpr(self._run)
            return self._device.read(offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        with self._guard:
            self._interrupts.take_tpr(self._run)
            self._device.write(offset, value, size)
            if offset == TPR:
                self._run.cr8 = self._interrupts.lapic.tpr >> 4


class _Deadline:
    """MSR IA32_TSC_DEADLINE."""

    def __init__(self, lapic: Lapic, guard: Any) -> None:
        self._lapic = lapic
        self._guard = guard

    def read(self, offset: int, size: int) -> int:
        with self._guard:
            return self._lapic.read_deadline()

    def write(self, offset: int, value: int, size: int) -> None:
        with self._guard:
            self._lapic.write_deadline(value)


def _tsc_khz(vcpu: Any) -> int:
    """The guest's TSC frequency; 0 where the engine doesn't know."""
    try:
        return int(vcpu.get_tsc_khz())
    except (AttributeError, KvmpyError):
        return 0
