"""Which pages a guest wrote: the dirty bitmap, its clearing by hand, and the dirty ring.

The programs run in ring 3, which PVM doesn't emulate, and end with a write to where there is nothing.
"""

from __future__ import annotations

from typing import Any

from devices import Recorder
from guests import make, to_exit, to_halt
from listing import ORIGIN, code
from offers import require
from suite import Host, cases, raises

from kvmpy.errors import KvmError
from kvmpy.kvm import System
from kvmpy.machine import exits
from kvmpy.machine.machine import Machine
from kvmpy.machine.slots import Slot

AT = 0x10000000
NOTHING = 0xFE000000
PAGE = 4096
ENTRIES = 1024
"""Of a dirty ring: processors that log by themselves (PML) need more than 512."""

WRITES = code(
    64,
    """
    again:
      88 03                  mov [rbx], al
      48 81 c3 00 10 00 00   add rbx, 4096
      ff c9                  dec ecx
      75 f3                  jnz again
      41 88 00               mov [r8], al
    """,
)
READS = code(
    64,
    """
    again:
      8a 03                  mov al, [rbx]
      48 81 c3 00 10 00 00   add rbx, 4096
      ff c9                  dec ecx
      75 f3                  jnz again
      41 88 00               mov [r8], al
    """,
)
INPUT = code(64, "f3 6c   rep insb\nf4   hlt")


def logging(host: Host, pages: int = 128, *, on: bool = True, **settings: Any) -> tuple[Machine, Slot]:
    """A machine with a slot of its own to write to; page tables are elsewhere."""
    machine = make(host, WRITES, memory="2M", ring=3, **settings)
    return machine, machine.memory.add(AT, pages * PAGE, log_dirty=on)


def write(machine: Machine, first: int, count: int = 1) -> None:
    """Lets the guest write to pages of that slot."""
    registers = {"rip": ORIGIN, "rbx": AT + first * PAGE, "rcx": count, "r8": NOTHING}
    machine.cpus[0].regs.update(registers)
    to_exit(machine, "MMIO")


def pages_in(bitmap: bytes | bytearray) -> set[int]:
    bits = int.from_bytes(bitmap, "little")
    return {page for page in range(8 * len(bitmap)) if bits >> page & 1}


def logged(machine: Machine, slot: Slot) -> set[int]:
    return pages_in(machine.vm.get_dirty_log(slot.number))


def bitmap_of(pages: set[int], size: int = 128) -> bytes:
    return sum(1 << page for page in pages).to_bytes(size // 8, "little")


# The bitmap


def test_the_dirty_log_has_exactly_the_pages_that_were_written(host: Host) -> None:
    machine, slot = logging(host)
    assert logged(machine, slot) == set()
    for first, count in ((0, 1), (5, 2), (62, 4), (127, 1)):
        write(machine, first, count)
    assert logged(machine, slot) == {0, 5, 6, 62, 63, 64, 65, 127}
    assert logged(machine, slot) == set(), "reading it cleared it"
    write(machine, 5, 1)
    assert logged(machine, slot) == {5}, "and protected the page again"


def test_reading_makes_no_page_dirty(host: Host) -> None:
    machine, slot = logging(host)
    machine.memory.write(ORIGIN, READS.data)
    write(machine, 0, 16)
    assert logged(machine, slot) == set()


def test_what_kvm_writes_for_the_guest_is_dirty_too(host: Host) -> None:
    """String input: it is the kernel that puts the bytes into memory."""
    machine = make(host, INPUT, memory="2M")
    slot = machine.memory.add(AT, 128 * PAGE, log_dirty=True)
    machine.ports.attach(0x300, 1, Recorder())
    end = AT + 10 * PAGE - 2
    machine.cpus[0].regs.update({"rdi": end, "rcx": 4, "rdx": 0x300})
    to_halt(machine)
    assert logged(machine, slot) == {9, 10}


def test_logging_is_switched_on_and_off_while_pages_are_mapped(host: Host) -> None:
    machine, slot = logging(host, on=False)
    write(machine, 0, 8)
    with raises(KvmError, "KVM_MEM_LOG_DIRTY_PAGES"):
        machine.vm.get_dirty_log(slot.number)
    machine.memory.set_log_dirty(slot, True)
    assert logged(machine, slot) == set(), "what was written before doesn't count"
    write(machine, 3)
    assert logged(machine, slot) == {3}
    write(machine, 4)
    machine.memory.set_log_dirty(slot, False)
    write(machine, 5)
    machine.memory.set_log_dirty(slot, True)
    assert logged(machine, slot) == set(), "a new log"
    write(machine, 6)
    assert logged(machine, slot) == {6}


def test_the_dirty_log_of_a_slot_that_is_no_multiple_of_64_pages(host: Host) -> None:
    machine, slot = logging(host, 67)
    write(machine, 60, 7)
    assert logged(machine, slot) == set(range(60, 67))
    assert len(machine.vm.get_dirty_log(slot.number)) == 16


# Cleared by hand


def by_hand(host: Host, *, initially_set: bool = False) -> tuple[Machine, Slot]:
    require("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")
    machine = make(host, WRITES, memory="2M", ring=3)
    machine.vm.enable_manual_dirty_log_protect(initially_set=initially_set)
    return machine, machine.memory.add(AT, 128 * PAGE, log_dirty=True)


def test_a_log_cleared_by_hand_stays_until_then(host: Host) -> None:
    machine, slot = by_hand(host)
    write(machine, 60, 8)
    assert logged(machine, slot) == logged(machine, slot) == set(range(60, 68))
    machine.vm.clear_dirty_log(slot.number, 0, 64, bitmap_of({60, 61}, 64))
    assert logged(machine, slot) == set(range(62, 68))
    write(machine, 60)
    assert logged(machine, slot) == {60, *range(62, 68)}, "a cleared page is protected again"
    machine.vm.clear_dirty_log(slot.number, 64, 64, bitmap_of({0, 1, 2, 3}, 64))
    assert logged(machine, slot) == {60, 62, 63}, "bit 0 is the first page of the range"


def test_a_page_written_after_the_look_and_before_the_clearing_is_not_lost(host: Host) -> None:
    """That is what clearing by hand is for: only what was seen is cleared."""
    machine, slot = by_hand(host)
    write(machine, 1)
    seen = machine.vm.get_dirty_log(slot.number)
    write(machine, 2)
    machine.vm.clear_dirty_log(slot.number, 0, 128, seen)
    assert logged(machine, slot) == {2}


def test_a_log_that_begins_full(host: Host) -> None:
    """KVM_DIRTY_LOG_INITIALLY_SET: nothing is protected until it is cleared."""
    machine, slot = by_hand(host, initially_set=True)
    assert logged(machine, slot) == set(range(128))
    machine.vm.clear_dirty_log(slot.number, 0, 128, bitmap_of(set(range(128))))
    assert logged(machine, slot) == set()
    write(machine, 7, 2)
    assert logged(machine, slot) == {7, 8}


def test_ranges_to_clear_that_cannot_be_are_refused(host: Host) -> None:
    machine, slot = by_hand(host)
    for first, count in ((1, 64), (0, 63), (64, 128), (192, 64)):
        with raises(KvmError, f"slot {slot.number}, {count} pages from {first}"):
            machine.vm.clear_dirty_log(slot.number, first, count, bytes(16))


# The ring


def ring(host: Host, pages: int = 128) -> tuple[Machine, Slot, Any]:
    require("KVM_CAP_DIRTY_LOG_RING")
    machine, slot = logging(host, pages, dirty_ring=ENTRIES)
    return machine, slot, machine.cpus[0].vcpu


def taken(vcpu: Any, slot: Slot) -> set[int]:
    """The pages of the slot in the ring; some hosts tell a page more than once."""
    return {page for number, page in vcpu.take_dirty() if number == slot.number}


def test_the_dirty_ring_has_exactly_the_pages_that_were_written(host: Host) -> None:
    machine, slot, vcpu = ring(host)
    write(machine, 5, 2)
    write(machine, 100)
    assert taken(vcpu, slot) == {5, 6, 100}
    assert taken(vcpu, slot) == set()


def test_a_page_comes_into_the_ring_again_after_the_reset(host: Host) -> None:
    machine, slot, vcpu = ring(host)
    for _ in range(3):
        write(machine, 5, 3)
        assert taken(vcpu, slot) == {5, 6, 7}
        assert machine.vm.reset_dirty_rings() >= 3
        assert machine.vm.reset_dirty_rings() == 0, "each entry is given back once"


def test_entries_that_were_not_taken_are_not_reset(host: Host) -> None:
    machine, slot, vcpu = ring(host)
    write(machine, 5, 3)
    assert machine.vm.reset_dirty_rings() == 0
    assert taken(vcpu, slot) == {5, 6, 7}


def test_a_full_ring_stops_the_vcpu_until_there_is_room(host: Host) -> None:
    machine, _, vcpu = ring(host, 1)
    pages = vcpu.vm.dirty_ring_entries + 100
    slot = machine.memory.add(2 * AT, pages * PAGE, log_dirty=True)
    cpu = machine.cpus[0]
    cpu.set_up()
    cpu.regs.update({"rbx": slot.gpa, "rcx": pages, "r8": NOTHING})
    found: set[int] = set()
    full = 0
    while enter(cpu) == "DIRTY_RING_FULL":
        full += 1
        assert enter(cpu) == "DIRTY_RING_FULL", "still"
        found |= taken(vcpu, slot)
        assert machine.vm.reset_dirty_rings() > 0
        assert full < 100
    assert exits.name_of(cpu.native.run.exit_reason) == "MMIO"
    assert full
    assert found | taken(vcpu, slot) == set(range(pages))


def enter(cpu: Any) -> str:
    assert cpu.vcpu.enter() == 0
    return exits.name_of(cpu.native.run.exit_reason)


def test_the_dirty_bitmap_is_not_there_beside_a_ring(host: Host) -> None:
    machine, slot, _ = ring(host)
    with raises(KvmError, "KVM_GET_DIRTY_LOG"):
        machine.vm.get_dirty_log(slot.number)


def test_sizes_of_a_ring_that_cannot_be_are_refused(host: Host) -> None:
    require("KVM_CAP_DIRTY_LOG_RING")
    with System() as system, system.create_vm() as vm:
        for entries in (1000, 1 << 20, 1):
            with raises(KvmError, "KVM_ENABLE_CAP"):
                vm.enable_dirty_ring(entries)
        with vm.create_vcpu(0), raises(KvmError, "KVM_ENABLE_CAP"):
            vm.enable_dirty_ring(ENTRIES)


# As a machine has it


@cases(bitmap=0, ring=ENTRIES)
def test_a_machine_tells_each_page_once(host: Host, case: int) -> None:
    """More of them than the ring has entries: the run loop makes room by itself."""
    if case:
        require("KVM_CAP_DIRTY_LOG_RING")
    pages = 1100
    machine, slot = logging(host, pages, on=False, dirty_ring=case)
    write(machine, 0, 4)
    dirty = machine.track_dirty()
    assert [gpa for gpa in dirty.take() if gpa >= AT] == []
    for _ in range(2):
        write(machine, 0, pages)
        assert [gpa for gpa in dirty.take() if gpa >= AT] == [AT + page * PAGE for page in range(pages)]
    write(machine, 9)
    assert [gpa for gpa in dirty.take() if gpa >= AT] == [AT + 9 * PAGE]
    dirty.stop()
    write(machine, 10)
    assert not slot.log_dirty
