"""The I/O APIC in the kernel."""

from __future__ import annotations

from guests import not_on_pvm
from suite import Host

from kvmpy.abi.constants import KVM_IRQCHIP_IOAPIC
from kvmpy.machine.machine import Machine


def level_triggered(host: Host, machine: Machine, line: int, vector: int) -> None:
    """Leads a line of the I/O APIC in the kernel to the first vCPU, level-triggered."""
    not_on_pvm(host, "it keeps a level-triggered interrupt of the I/O APIC pending while the guest serves it")
    chip = machine.vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
    chip.chip.ioapic.redirtbl[line].bits = vector | 1 << 15
    machine.vm.set_irqchip(chip)
