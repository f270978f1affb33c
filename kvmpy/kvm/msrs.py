"""Reading and writing lists of MSRs: KVM stops at the first one it refuses, these go on behind it."""

from __future__ import annotations

from kvmpy._native import ffi
from kvmpy.abi.ioctls import KVM_GET_MSRS, KVM_SET_MSRS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvmpy._native import CData
    from kvmpy.abi.ioctls import Ioctl
    from kvmpy.kvm.descriptor import Descriptor

AT_ONCE = 255  # the kernel's limit for one call
_ENTRY = ffi.sizeof("struct kvm_msr_entry")


def read(descriptor: Descriptor, indices: Iterable[int]) -> dict[int, int]:
    """The values of the MSRs that can be read; the others are missing."""
    wanted = list(indices)
    array = _array([(index, 0, 0) for index in wanted])
    refused = set(_each(descriptor, KVM_GET_MSRS, array, len(wanted)))
    entries = array.entries
    return {wanted[n]: entries[n].data for n in range(len(wanted)) if n not in refused}


def write(descriptor: Descriptor, values: Mapping[int, int]) -> list[int]:
    """Write MSRs in the order of ``values``; the indices of those that were refused."""
    wanted = list(values)
    array = _array([(index, 0, value) for index, value in values.items()])
    return [wanted[n] for n in _each(descriptor, KVM_SET_MSRS, array, len(wanted))]


def _array(entries: list[tuple[int, int, int]]) -> CData:
    return ffi.new("struct kvm_msrs *", {"nmsrs": len(entries), "entries": entries})


def _each(descriptor: Descriptor, request: Ioctl, array: CData, count: int) -> list[int]:
    """Positions that were refused. A call takes a header of eight bytes and then entries: for all calls but the first
    it is written over the end of an entry that is done with, and put back behind it."""
    refused: list[int] = []
    start = 0
    while start < count:
        base = ffi.cast("char *", array) + start * _ENTRY
        header = ffi.cast("struct kvm_msrs *", base)
        saved = (header.nmsrs, header.pad)
        header.nmsrs, header.pad = min(count - start, AT_ONCE), 0
        size = header.nmsrs
        try:
            done = descriptor.call(request, header)
        finally:
            header.nmsrs, header.pad = saved
        start += done
        if done < size:
            refused.append(start)
            start += 1
    return refused
