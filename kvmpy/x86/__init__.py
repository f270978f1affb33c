"""The CPU manuals' words: segments, descriptor tables, paging, modes, CPUID, MSRs. No I/O and no KVM in here.

Names are imported when they are first used, so that starting a guest doesn't pay for what it doesn't need.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.x86.entry import EntryState as EntryState
    from kvmpy.x86.entry import long_mode as long_mode
    from kvmpy.x86.entry import protected_mode as protected_mode
    from kvmpy.x86.entry import real_mode as real_mode
    from kvmpy.x86.entry import reset_vector as reset_vector
    from kvmpy.x86.entry import startup_ipi as startup_ipi
    from kvmpy.x86.paging import Mapping as Mapping
    from kvmpy.x86.paging import PageTables as PageTables
    from kvmpy.x86.segments import DescriptorTable as DescriptorTable
    from kvmpy.x86.segments import Segment as Segment

_HOME = {
    "EntryState": "entry",
    "long_mode": "entry",
    "protected_mode": "entry",
    "real_mode": "entry",
    "reset_vector": "entry",
    "startup_ipi": "entry",
    "Mapping": "paging",
    "PageTables": "paging",
    "DescriptorTable": "segments",
    "Segment": "segments",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = __import__(f"{__name__}.{_HOME[name]}", fromlist=[name])
    found: object = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
