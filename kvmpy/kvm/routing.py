"""GSI routes: where an interrupt line of the VM leads. Give a list of them to :meth:`kvmpy.kvm.Vm.set_gsi_routing`.

A route is ``(gsi, type, flags, words)``, words being what the kernel's union holds for the type.
Source: KVM API document, KVM_SET_GSI_ROUTING.
"""

from __future__ import annotations

from kvmpy._native import ffi
from kvmpy.abi import constants as c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmpy._native import CData

    Route = tuple[int, int, int, tuple[int, ...]]


def irqchip(gsi: int, chip: int, pin: int) -> Route:
    """To an input of an in-kernel chip: ``KVM_IRQCHIP_PIC_MASTER``, ``_PIC_SLAVE`` (pins 0-7) or ``_IOAPIC``
    (pins 0-23)."""
    return (gsi, c.KVM_IRQ_ROUTING_IRQCHIP, 0, (chip, pin))


def msi(gsi: int, address: int, data: int, device: int | None = None) -> Route:
    """To a message: what a device would write, ``data`` (32 bits) to ``address`` (0xfee00000 and up)."""
    words = (address & 0xFFFFFFFF, address >> 32, data, device or 0)
    return (gsi, c.KVM_IRQ_ROUTING_MSI, 0 if device is None else c.KVM_MSI_VALID_DEVID, words)


def hyperv_sint(gsi: int, vcpu: int, sint: int) -> Route:
    """To a synthetic interrupt source (0-15) of Hyper-V's controller on a vCPU."""
    return (gsi, c.KVM_IRQ_ROUTING_HV_SINT, 0, (vcpu, sint))


def xen_event(gsi: int, port: int, vcpu: int) -> Route:
    """To a Xen event channel, delivered through the two-level bitmap."""
    return (gsi, c.KVM_IRQ_ROUTING_XEN_EVTCHN, 0, (port, vcpu, 0xFFFFFFFF))


def default() -> list[Route]:
    """What the kernel sets up with KVM_CREATE_IRQCHIP: each GSI to the I/O APIC's pin of its number, and 0-15 to
    the PICs too."""
    routes = []
    for gsi in range(c.KVM_IOAPIC_NUM_PINS):
        if gsi < 16:
            chip = c.KVM_IRQCHIP_PIC_MASTER if gsi < 8 else c.KVM_IRQCHIP_PIC_SLAVE
            routes.append(irqchip(gsi, chip, gsi % 8))
        routes.append(irqchip(gsi, c.KVM_IRQCHIP_IOAPIC, gsi))
    return routes


def pack(routes: Iterable[Route]) -> CData:
    """A ``struct kvm_irq_routing *``."""
    entries = [(gsi, type, flags, 0, {"pad": words}) for gsi, type, flags, words in routes]
    return ffi.new("struct kvm_irq_routing *", {"nr": len(entries), "entries": entries})
