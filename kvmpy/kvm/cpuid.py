"""CPUID tables between KVM's ``struct kvm_cpuid2`` and tuples.

An entry is ``(function, index, flags, eax, ebx, ecx, edx)``; flags are ``KVM_CPUID_FLAG_*`` (bit 0: the entry is for
this index, the value of ECX, only).
"""

from __future__ import annotations

import struct

from kvmpy._native import ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmpy._native import CData
    from kvmpy.abi.ioctls import Ioctl
    from kvmpy.kvm.descriptor import Descriptor

    Entry = tuple[int, int, int, int, int, int, int]

MOST = 256  # KVM_MAX_CPUID_ENTRIES
_ENTRY = struct.Struct("<7I12x")


def pack(entries: Iterable[Entry]) -> CData:
    """A ``struct kvm_cpuid2 *`` of these entries; it can be given to the ``set_cpuid2`` of any number of vCPUs."""
    data = b"".join(_ENTRY.pack(*entry) for entry in entries)
    count = len(data) // _ENTRY.size
    table = ffi.new("struct kvm_cpuid2 *", {"nent": count, "entries": count})
    ffi.memmove(table.entries, data, len(data))
    return table


def unpack(table: CData) -> list[Entry]:
    """The entries of a ``struct kvm_cpuid2 *``."""
    data = ffi.buffer(table.entries, table.nent * _ENTRY.size)
    return list(_ENTRY.iter_unpack(data))


def fetch(descriptor: Descriptor, request: Ioctl) -> list[Entry]:
    """The table that ``request`` gives."""
    table = ffi.new("struct kvm_cpuid2 *", {"nent": MOST, "entries": MOST})
    descriptor.call(request, table)
    return unpack(table)
