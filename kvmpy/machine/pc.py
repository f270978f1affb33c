"""A PC without PCI: the devices small guests, firmware and bare-metal test suites expect, at their usual addresses."""

from __future__ import annotations

import sys
import time

from kvmpy.devices.acpi_pm1 import AcpiPm1
from kvmpy.devices.acpi_pm_timer import AcpiPmTimer
from kvmpy.devices.cmos import Cmos
from kvmpy.devices.debugcon import DebugConsole
from kvmpy.devices.elcr import Elcr
from kvmpy.devices.exit_port import ExitPort
from kvmpy.devices.fw_cfg import FwCfg
from kvmpy.devices.fw_cfg_items import describe_kernel, describe_machine
from kvmpy.devices.i8042 import I8042
from kvmpy.devices.latches import Latches
from kvmpy.devices.pc_testdev import MEMORY_LENGTH, PcTestdevIrq, PcTestdevMemory, PcTestdevPorts
from kvmpy.devices.pci_absent import PciAbsent
from kvmpy.devices.port61 import Port61
from kvmpy.devices.port92 import Port92
from kvmpy.devices.post import PostPort
from kvmpy.devices.serial import Serial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.devices.device import Device
    from kvmpy.machine.machine import Machine

SERIAL_IRQ, KEYBOARD_IRQ, RTC_IRQ, MOUSE_IRQ = 4, 1, 8, 12
TESTDEV_MEMORY = 0xFF000000


class Pc:
    """Puts the devices on a machine's buses; each is an attribute afterwards.

    ``output(bytes)``  takes what the guest sends to its serial port; by default stdout
    ``debug(bytes)``   what it sends to the debug consoles at 0xe9 and 0x402; by default the same as ``output``
    ``append``         command line, for firmware that asks fw_cfg
    ``qemu_exit``      the exit port gives 2n+1, as QEMU's isa-debug-exit would
    ``serial_timing``  the serial port's character timeout takes its time; else it is due at once
    """

    def __init__(
        self,
        machine: Machine,
        output: Callable[[bytes], None] | None = None,
        debug: Callable[[bytes], None] | None = None,
        *,
        append: str = "",
        qemu_exit: bool = False,
        serial_timing: bool = False,
    ) -> None:
        self.machine = machine
        output = output or _stdout
        debug = debug or output
        self.serial = self._serial(output, serial_timing)
        self.debugcon = DebugConsole(debug)
        self.firmware_log = DebugConsole(debug, readback=0xFF)
        self.exit = ExitPort(lambda status: machine.stop(status, "exit"), qemu=qemu_exit)
        self.debug_exit = ExitPort(lambda status: machine.stop(status, "exit"), qemu=qemu_exit)
        self.post = PostPort()
        self.cmos = Cmos(irq=self._irq(RTC_IRQ))
        self.fw_cfg = FwCfg(machine.memory)
        self.i8042 = I8042(on_reset=self._reset, irq=self._irq(KEYBOARD_IRQ), aux_irq=self._irq(MOUSE_IRQ))
        self.port92 = Port92(on_reset=self._reset)
        self.port61 = self._port61()
        self.testdev = PcTestdevPorts()
        self.testdev_irq = PcTestdevIrq(machine.set_irq)
        self.testdev_memory = PcTestdevMemory()
        self.pm_timer = AcpiPmTimer(time.monotonic_ns)
        self.pm1 = AcpiPm1(on_sleep=self._sleep)
        self.pci = PciAbsent(on_reset=self._reset)
        self._attach()
        self._describe_machine(append)

    def _attach(self) -> None:
        for first, device in (
            (0x3F8, self.serial),
            (0xE9, self.debugcon),
            (0x402, self.firmware_log),
            (0xF4, self.exit),
            (0x501, self.debug_exit),
            (0x80, self.post),
            (0x510, self.fw_cfg),
            (0x92, self.port92),
            (0x2000, self.testdev_irq),
            (0x600, self.pm1),
            (0x608, self.pm_timer),
            (0xCF8, self.pci),
            (0x81, Latches("dma-page", 15)),
            (0x00, Latches("dma1", 16)),
            (0xC0, Latches("dma2", 32)),
        ):
            self._ports(first, device)
        # Port 0x61 lies among the keyboard controller's, debug port 0xe9 among the test device's.
        self._ports(0x60, self.i8042, 1)
        self._ports(0x61, self.port61)
        self._attach_clock()
        self.machine.ports.attach(0x64, 1, _Shifted(self.i8042, 4), self.i8042.name)
        self._ports(0xE0, self.testdev, 9)
        if self.machine.irqchip == "none":
            self._ports(0x4D0, Elcr())
        self.machine.mmio.attach(TESTDEV_MEMORY, MEMORY_LENGTH, self.testdev_memory)

    def _serial(self, output: Callable[[bytes], None], timing: bool) -> Serial:
        irq, lock = self._irq(SERIAL_IRQ), self.machine.guard
        if not timing or self.machine.irqchip == "none":
            return Serial(output, irq, lock=lock, clock=time.monotonic_ns if timing else None)
        timers = self.machine.timers
        timer = timers.add(lambda: serial.poll())
        serial = Serial(
            output, irq, lock=lock, clock=timers.now, on_timeout=lambda when: timers.arm(timer, when)
        )
        return serial

    def _port61(self) -> Port61:
        if self.machine.interrupts is None:
            return Port61(clock=time.monotonic_ns)
        pit = self.machine.interrupts.pit
        return Port61(time.monotonic_ns, lambda: pit.out(2), lambda level: pit.set_gate(2, level))

    def _attach_clock(self) -> None:
        """The real-time clock: with interrupt controllers, its interrupts come when they are due."""
        cmos = self.cmos
        if self.machine.irqchip == "none":
            self._ports(0x70, cmos)
            return
        timers = self.machine.timers

        def due() -> int | None:
            moment = cmos.poll()  # on the clock on the wall, which may be put forward and back meanwhile
            return None if moment is None else moment - time.time_ns() + timers.now()

        timer = timers.add(due)
        owner = _Watched(cmos, lambda: timers.arm(timer, due()))
        self.machine.ports.attach(0x70, cmos.LENGTH, owner, cmos.name)

    def _ports(self, first: int, device: Device, length: int | None = None) -> None:
        self.machine.ports.attach(first, length or device.LENGTH, device, device.name)

    def _irq(self, line: int) -> Callable[[bool], None]:
        return lambda level: self.machine.set_irq(line, level)

    def _reset(self) -> None:
        self.machine.stop(reason="reset")

    def _sleep(self, kind: int) -> None:
        self.machine.stop(reason="shutdown")

    def _describe_machine(self, append: str) -> None:
        memory, cpus = self.machine.memory, len(self.machine.cpus)
        ram = [(slot.gpa, slot.size) for slot in memory.slots if not slot.readonly]
        below = sum(size for gpa, size in ram if gpa < 1 << 32)
        above = sum(size for gpa, size in ram if gpa >= 1 << 32)
        self.cmos.set_memory(below, above)
        self.cmos.set_cpus(cpus)
        describe_machine(self.fw_cfg, ram, cpus=cpus)
        if append:
            describe_kernel(self.fw_cfg, cmdline=append)


class _Shifted:
    """A device whose registers begin further on: a port that lies apart from its others."""

    def __init__(self, device: Device, offset: int) -> None:
        self._device = device
        self._offset = offset

    def read(self, offset: int, size: int) -> int:
        return self._device.read(offset + self._offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        self._device.write(offset + self._offset, value, size)


class _Watched:
    """A device, and somebody who is told of each access to it."""

    def __init__(self, device: Device, after: Callable[[], None]) -> None:
        self._device = device
        self._after = after

    def read(self, offset: int, size: int) -> int:
        value = self._device.read(offset, size)
        self._after()
        return value

    def write(self, offset: int, value: int, size: int) -> None:
        self._device.write(offset, value, size)
        self._after()


def _stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
