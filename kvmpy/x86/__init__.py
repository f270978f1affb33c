"""The CPU manuals' words: segments, descriptor tables, paging, modes, CPUID, MSRs. No I/O and no KVM in here.

Names are imported when they are first used, so that starting a guest doesn't pay for what it doesn't need.
"""

from __future__ import annotations

from kvmpy.lazily import exports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.x86.cpuid import CpuidTable as CpuidTable
    from kvmpy.x86.cpuid import Leaf as Leaf
    from kvmpy.x86.descriptors import Gate as Gate
    from kvmpy.x86.descriptors import Gdt as Gdt
    from kvmpy.x86.descriptors import Tss32 as Tss32
    from kvmpy.x86.descriptors import Tss64 as Tss64
    from kvmpy.x86.entry import EntryState as EntryState
    from kvmpy.x86.entry import long_mode as long_mode
    from kvmpy.x86.entry import protected_mode as protected_mode
    from kvmpy.x86.entry import real_mode as real_mode
    from kvmpy.x86.entry import reset_vector as reset_vector
    from kvmpy.x86.entry import startup_ipi as startup_ipi
    from kvmpy.x86.explain import explain_entry as explain_entry
    from kvmpy.x86.explain import explain_sregs as explain_sregs
    from kvmpy.x86.modes import Mode as Mode
    from kvmpy.x86.modes import cpu_mode as cpu_mode
    from kvmpy.x86.modes import paging_mode as paging_mode
    from kvmpy.x86.paging import Mapping as Mapping
    from kvmpy.x86.paging import PageTables as PageTables
    from kvmpy.x86.segments import DescriptorTable as DescriptorTable
    from kvmpy.x86.segments import Segment as Segment
    from kvmpy.x86.walker import Translation as Translation
    from kvmpy.x86.walker import TranslationFault as TranslationFault
    from kvmpy.x86.walker import mapped as mapped
    from kvmpy.x86.walker import translate as translate

_HOME = {
    "CpuidTable": "cpuid",
    "Leaf": "cpuid",
    "Gate": "descriptors",
    "Gdt": "descriptors",
    "Tss32": "descriptors",
    "Tss64": "descriptors",
    "EntryState": "entry",
    "long_mode": "entry",
    "protected_mode": "entry",
    "real_mode": "entry",
    "reset_vector": "entry",
    "startup_ipi": "entry",
    "explain_entry": "explain",
    "explain_sregs": "explain",
    "Mode": "modes",
    "cpu_mode": "modes",
    "paging_mode": "modes",
    "Mapping": "paging",
    "PageTables": "paging",
    "DescriptorTable": "segments",
    "Segment": "segments",
    "Translation": "walker",
    "TranslationFault": "walker",
    "mapped": "walker",
    "translate": "walker",
}

__all__ = sorted(_HOME)

__getattr__, __dir__ = exports(
    __name__, {name: f"{__name__}.{home}" for name, home in _HOME.items()}, globals()
)
