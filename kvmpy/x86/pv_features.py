"""Bits of KVM's paravirtual features, leaf 0x40000001 EAX: kernel documentation, "KVM CPUID bits"."""

from __future__ import annotations

CLOCKSOURCE, CLOCKSOURCE2, CLOCKSOURCE_STABLE = 1 << 0, 1 << 3, 1 << 24
NEED_APIC = sum(1 << bit for bit in (4, 6, 7, 9, 10, 11, 12, 13, 14, 15))
"""Asynchronous page faults, PV EOI, unhalt, TLB flush, IPIs, halt polling, yielding: a local APIC in the kernel."""
NEED_HYPERCALL = sum(1 << bit for bit in (2, 7, 11, 13, 16))
"""What the guest does by hypercall: the MMU's, kicking a vCPU, IPIs, yielding, page encryption."""


def limited(features: int, *, apic: bool, hypercalls: bool) -> int:
    """KVM's feature bits without those that can't work: without a local APIC in the kernel, or where KVM's own
    hypercalls don't."""
    gone = (0 if apic else NEED_APIC) | (0 if hypercalls else NEED_HYPERCALL)
    return features & ~gone
