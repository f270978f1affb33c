"""The place "kernel": accesses that never leave it, or that leave it in bulk.

Writes go to an eventfd (KVM_IOEVENTFD) or into the ring of coalesced writes (KVM_REGISTER_COALESCED_MMIO); MSRs are
left to KVM by its MSR filter. What the kernel can't keep exits as ever and is handled where the owner would.
"""

from __future__ import annotations

import os
from collections import deque

from kvmpy._native import lib
from kvmpy.errors import BusError, KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.machine.bus import Bus, Range

FILTER_READ, FILTER_WRITE = 1, 2  # KVM_MSR_FILTER_*
FILTER_RANGES, FILTER_LENGTH = 16, 0x600 * 8


class Eventfd:
    """Writes to an address signal an eventfd; ``datamatch`` and ``length`` (0: any) say which ones.

    In the kernel's place no vCPU waits for anybody. In any other, Python does what the kernel would have done.
    Poll :meth:`fileno`, then call :meth:`take`.
    """

    name = "eventfd"
    undivided = True
    """A write that is too long isn't several short ones, which might match."""

    def __init__(self, length: int = 0, datamatch: int | None = None) -> None:
        if length not in (0, 1, 2, 4, 8):
            raise BusError(f"eventfd: length {length}: 1, 2, 4 or 8 bytes, or 0 for any")
        if datamatch is not None and not (length and 0 <= datamatch < 1 << (8 * length)):
            raise BusError(f"eventfd: datamatch {datamatch:#x} needs a length it fits in, not {length}")
        self.length = length
        self.datamatch = datamatch
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waiting = 0
        self._own = 0
        self._seen = 0

    def fileno(self) -> int:
        """The eventfd, for select and poll; -1 once closed."""
        return self._fd

    def _collect(self) -> None:
        if self._fd < 0:
            return
        try:
            news = os.eventfd_read(self._fd)
        except (BlockingIOError, OSError):
            return
        self._waiting += news
        self._seen += news

    def take(self) -> int:
        """Signals since the last time."""
        self._collect()
        waiting, self._waiting = self._waiting, 0
        return waiting

    @property
    def from_kernel(self) -> int:
        """Signals so far that the kernel sent. Looking at them leaves them to whoever polls."""
        return self._seen + self._unread() - self._own

    def _unread(self) -> int:
        """The eventfd's counter, without taking it (proc(5), /proc/pid/fdinfo)."""
        if self._fd < 0:
            return 0
        with open(f"/proc/self/fdinfo/{self._fd}") as file:
            for line in file:
                if line.startswith("eventfd-count:"):
                    return int(line.split()[1], 16)
        return 0

    def write(self, offset: int, value: int, size: int) -> None:
        """A write that came to Python: signals if it matches."""
        if offset == 0 and self.length in (0, size) and self.datamatch in (None, value):
            self._own += 1
            os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Closes the eventfd; the machine does this. What it had to say can still be taken."""
        self._collect()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class KernelPlaces:
    """What of a machine's ranges is in the kernel's hands. Every method is called with the bus's lock held."""

    def __init__(self, bus: Bus, vm: Any, vcpu: Any) -> None:
        self._bus = bus
        self._vm = vm
        self._vcpu = vcpu
        self._coalesced: set[Range] = set()
        self._undelivered: deque[tuple[Range, int, bytes]] = deque()
        self._user_space_msrs = False

    def enter(self, range_: Range) -> None:
        """Hands the range to the kernel. BusError, and nothing changed, if it can't have it."""
        if range_.space is self._bus.hypercalls:
            raise BusError(f"{range_}: hypercalls can't be handled in the kernel")
        if range_.space is self._bus.msrs:
            return  # the filter is made anew when the range has its place
        self._call(range_, "hand it to the kernel", on=True)

    def leave(self, range_: Range) -> None:
        """Takes the range back; what the kernel still holds of it is its owner's, whatever becomes of the range."""
        if range_.space is self._bus.msrs:
            return
        self._call(range_, "take it back from the kernel", on=False)
        self.collect()

    def _call(self, range_: Range, what: str, on: bool) -> None:
        pio = range_.space is self._bus.ports
        try:
            if isinstance(range_.owner, Eventfd):
                self._ioeventfd(range_.owner, range_.first, pio, on)
            else:
                self._coalesce(range_, pio, on)
        except KvmError as error:
            raise BusError(f"{range_}: can't {what}: {error}") from error

    def _ioeventfd(self, owner: Eventfd, address: int, pio: bool, on: bool) -> None:
        self._vm.ioeventfd(
            owner.fileno(), address, owner.length, datamatch=owner.datamatch, pio=pio, deassign=not on
        )

    def _coalesce(self, range_: Range, pio: bool, on: bool) -> None:
        if on:
            lib.kvmpy_bus_coalesce(self._bus.native, self._vcpu.coalesced_ring)
            self._vm.register_coalesced(range_.first, range_.length, pio=pio)
            self._coalesced.add(range_)
        else:
            self._vm.unregister_coalesced(range_.first, range_.length, pio=pio)
            self._coalesced.discard(range_)

    def collect(self) -> None:
        """Takes the writes out of the kernel's ring while it is known whose they are; deliver() hands them on."""
        native = self._bus.native
        if not native.coalesced:
            return
        for address, data, pio in self._vcpu.take_coalesced():
            space = self._bus.ports if pio else self._bus.mmio
            range_ = space.find(address)
            if range_ is not None:
                self._undelivered.append((range_, address - range_.first, data))
        lib.kvmpy_bus_set_undelivered(native, bool(self._undelivered))

    def deliver(self) -> None:
        """Hands on the writes that the kernel kept, oldest first. One at which the owner raises is handed on again.

        Where handlers run: on a vCPU's thread, or while the machine doesn't run.
        """
        self.collect()
        waiting = self._undelivered
        while waiting:
            range_, offset, data = waiting[0]
            value, size = int.from_bytes(data, "little"), len(data)
            self._bus.handlers[2 * range_.id + 1](offset, value, size)
            del waiting[0]  # at once, and nothing is called before: see loop._serve()
            range_.kernel_count += 1
        lib.kvmpy_bus_set_undelivered(self._bus.native, False)

    def forget_one(self) -> None:
        """The oldest write that was collected isn't handed on any more."""
        if self._undelivered:
            del self._undelivered[0]
        lib.kvmpy_bus_set_undelivered(self._bus.native, bool(self._undelivered))

    def update_msr_filter(self) -> None:
        """MSRs whose place isn't the kernel exit to user space."""
        denied = [range_ for range_ in self._bus.msrs if range_.place != "kernel"]
        if not denied and not self._user_space_msrs:
            return
        ranges = [
            (FILTER_READ | FILTER_WRITE, first, count, bytes((count + 7) // 8))
            for range_ in denied
            for first, count in _pieces(range_.first, range_.length)
        ]
        if len(ranges) > FILTER_RANGES:
            raise BusError(f"{len(ranges)} ranges of MSRs: the kernel's filter has {FILTER_RANGES} at most")
        if not self._user_space_msrs:
            self._vm.enable_user_space_msrs()
            self._user_space_msrs = True
        self._vm.set_msr_filter(ranges)


def _pieces(first: int, length: int) -> list[tuple[int, int]]:
    """Ranges as short as one entry of the filter can be."""
    return [
        (start, min(FILTER_LENGTH, first + length - start))
        for start in range(first, first + length, FILTER_LENGTH)
    ]
