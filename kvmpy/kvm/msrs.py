"""Lists of MSRs, read and written: KVM stops at the first one it refuses, these go on behind it. And filters."""

from __future__ import annotations

from kvmpy._native import ffi
from kvmpy.abi.constants import KVM_MSR_FILTER_MAX_BITMAP_SIZE, KVM_MSR_FILTER_MAX_RANGES
from kvmpy.abi.ioctls import KVM_GET_MSRS, KVM_SET_MSRS, KVM_X86_SET_MSR_FILTER
from kvmpy.kvm.errors import refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kvmpy._native import CData
    from kvmpy.abi.ioctls import Ioctl
    from kvmpy.kvm.descriptor import Descriptor

    FilterRange = tuple[int, int, int, bytes]

AT_ONCE = 255  # the kernel's limit for one call
_ENTRY = ffi.sizeof("struct kvm_msr_entry")


def read(descriptor: Descriptor, indices: Iterable[int]) -> dict[int, int]:
    """The values of the MSRs that can be read; the others are missing."""
    wanted = list(indices)
    array = _array([(index, 0, 0) for index in wanted])
    missing = set(_each(descriptor, KVM_GET_MSRS, array, len(wanted)))
    entries = array.entries
    return {wanted[n]: entries[n].data for n in range(len(wanted)) if n not in missing}


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
    stops: list[int] = []
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
            stops.append(start)
            start += 1
    return stops


def pack_filter(ranges: Sequence[FilterRange], flags: int, who: str) -> tuple[CData, list[CData]]:
    """A ``struct kvm_msr_filter *``, and the bitmaps it points to (to be kept until the kernel has them).

    Raises KvmError for more than 16 ranges, a bitmap that is too short for its range or longer than 1536 bytes.
    """
    most = KVM_MSR_FILTER_MAX_RANGES
    if len(ranges) > most:
        raise refused(KVM_X86_SET_MSR_FILTER, who, f"{len(ranges)} ranges; {most} are the most")
    bitmaps: list[CData] = []
    entries = []
    for access, first, count, bits in ranges:
        size = (count + 63) // 64 * 8  # the kernel reads whole words
        if len(bits) * 8 < count or size > KVM_MSR_FILTER_MAX_BITMAP_SIZE:
            limit = KVM_MSR_FILTER_MAX_BITMAP_SIZE * 8
            why = f"{len(bits)} bytes of bits for {count} MSRs from {first:#x}: a bit each, {limit} are the most"
            raise refused(KVM_X86_SET_MSR_FILTER, who, why)
        bitmaps.append(ffi.new("__u8[]", bits[:size].ljust(size, b"\0")))
        entries.append((access, count, first, bitmaps[-1]))
    return ffi.new("struct kvm_msr_filter *", (flags, entries)), bitmaps
