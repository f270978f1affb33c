"""Which pages the guest has written: the machine's view of KVM's dirty rings and dirty log.

With rings (``Machine(dirty_ring=…)``) the run loop empties a full one by itself, in C; without, the kernel keeps a
bitmap for each memory slot. Either way :meth:`Dirty.take` gives each page once. KVM API document:
KVM_CAP_DIRTY_LOG_RING, KVM_GET_DIRTY_LOG. What rescued instructions write, of which the kernel doesn't know, is added.
"""

from __future__ import annotations

from kvmpy._native import ffi, lib
from kvmpy.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.machine.machine import Machine

PAGE = 4096


class Dirty:
    """Logs what the guest writes to RAM from now on; get one from ``machine.track_dirty()``."""

    def __init__(self, machine: Machine, ring_entries: int) -> None:
        self._machine = machine
        self._slots = [slot for slot in machine.memory.slots if not slot.readonly]
        self._by_rings = bool(ring_entries)
        self._rings: list[Any] = []
        self._bits: dict[int, Any] = {}
        self._set_up()
        for slot in self._slots:
            machine.memory.set_log_dirty(slot, True)

    def _set_up(self) -> None:
        count = max(slot.number for slot in self._slots) + 1
        self._table = ffi.new("struct kvmpy_dirty_slot[]", count)
        for slot in self._slots:
            pages = slot.size // PAGE
            self._bits[slot.number] = ffi.new("uint64_t[]", (pages + 63) // 64)
            self._table[slot.number].pages = pages
            self._table[slot.number].bits = self._bits[slot.number]
        for cpu in self._machine.cpus:
            native = ffi.new("struct kvmpy_dirty *")
            if self._by_rings:
                native.ring, native.entries = cpu.vcpu.dirty_ring, cpu.vcpu.vm.dirty_ring_entries
            native.vm_fd, native.slots, native.slot = cpu.vcpu.vm.fd, count, self._table
            cpu.native.dirty = native
            self._rings.append(native)

    def take(self) -> list[int]:
        """Guest physical addresses of the pages written since the last time, in order; forgets them.

        The machine must be stopped. Page tables' accessed and dirty bits are writes, too, but for those that a rescued
        instruction sets. Raises UsageError.
        """
        if self._machine.running:
            raise UsageError("dirty pages are taken while the machine is stopped")
        for ring in self._rings:
            lib.kvmpy_dirty_collect(ring)
        return [slot.gpa + page * PAGE for slot in self._slots for page in _pages(self._bitmap(slot.number))]

    def _bitmap(self, number: int) -> bytes:
        view = ffi.buffer(self._bits[number])
        found = bytes(view)
        view[:] = bytes(len(found))
        if self._by_rings:
            return found
        kept = bytes(self._machine.vm.get_dirty_log(number))
        length = max(len(kept), len(found))
        return (int.from_bytes(kept, "little") | int.from_bytes(found, "little")).to_bytes(length, "little")

    def stop(self) -> None:
        """Logs no more. Twice is fine."""
        for slot in self._slots:
            self._machine.memory.set_log_dirty(slot, False)
        for cpu in self._machine.cpus:
            if cpu.native is not None:
                cpu.native.dirty = ffi.NULL
        self._slots, self._rings = [], []


def _pages(bitmap: bytes) -> list[int]:
    """The numbers of the set bits."""
    found = []
    for at, byte in enumerate(bitmap):
        while byte:
            low = byte & -byte
            found.append(8 * at + low.bit_length() - 1)
            byte ^= low
    return found
