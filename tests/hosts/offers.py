"""What this host must offer, by the names of kvmpy.machine.host: "pages_1g", "KVM_CAP_SYNC_REGS", "cpuid.avx2"."""

from __future__ import annotations

from functools import cache

from suite import skip

from kvmpy.machine.host import HostFacts, facts


@cache
def offers() -> HostFacts:
    """The facts of this host, found once."""
    return facts()


def require(*conditions: str) -> None:
    """Skip the test on a host that doesn't meet every condition; the reason names the file or capability."""
    reason = offers().missing(*conditions)
    if reason:
        skip(reason)
