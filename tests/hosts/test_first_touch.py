"""Guest memory that the host finds when it is first touched: in pages of 4 KiB, 2 MiB and 1 GiB, and split again.

The programs run in ring 3: that is where every host, PVM too, has the guest's accesses go through page tables. They end
with a write to where there is nothing.
"""

from __future__ import annotations

import mmap
import struct

from guests import make, to_exit
from listing import ORIGIN, code
from offers import require
from suite import Host, needs, skip

from kvmpy._native import ffi
from kvmpy.machine.backing import Backing, anonymous
from kvmpy.machine.machine import Machine
from kvmpy.machine.slots import Slot

AT = 0x40000000
NOTHING = 0xFE000000
KIB4, MIB2, GIB1 = 1 << 12, 1 << 21, 1 << 30
FAR = 16 * KIB4
"""Between two pages so that KVM doesn't map the one along with the other."""

TOUCHES = code(
    64,
    """
    again:
      48 8b 03   mov rax, [rbx]
      48 89 0b   mov [rbx], rcx
      48 09 c2   or rdx, rax
      48 01 f3   add rbx, rsi
      ff c9      dec ecx
      75 f0      jnz again
      41 88 00   mov [r8], al
    """,
)


def machine_with(host: Host, backing: Backing) -> tuple[Machine, Slot]:
    """With ``backing`` as memory at AT. All else that the program uses is mapped already."""
    machine = make(host, TOUCHES, memory="2M", ring=3)
    slot = machine.memory.add(AT, backing)
    machine.memory.add(AT + GIB1 // 2, KIB4)  # the same of its page tables lead there
    touch(machine, AT + GIB1 // 2, 1)
    return machine, slot


def touch(machine: Machine, gpa: int, count: int, step: int = FAR) -> int:
    """Has the guest read and write 8 bytes at ``count`` places; all that it read, or-ed."""
    registers = {"rip": ORIGIN, "rbx": gpa, "rcx": count, "rsi": step, "rdx": 0, "r8": NOTHING}
    machine.cpus[0].regs.update(registers)
    to_exit(machine, "MMIO")
    return int(machine.cpus[0].regs.rdx)


def mapped(machine: Machine) -> dict[str, int]:
    """How many pages of each size KVM has mapped for the guest now."""
    require("KVM_CAP_BINARY_STATS_FD")
    with machine.vm.get_stats() as stats:
        found = stats.read()
    if "pages_2m" not in found:
        skip("KVM_GET_STATS_FD has no counter pages_2m (Linux 5.14)")
    return {name: found[name] for name in ("pages_4k", "pages_2m", "pages_1g")}


def more(before: dict[str, int], after: dict[str, int]) -> tuple[int, ...]:
    return tuple(after[name] - before[name] for name in before)


def resident(backing: Backing) -> list[int]:
    """Which of its pages the host has found memory for (Linux, Documentation/admin-guide/mm/pagemap.rst)."""
    count = backing.size // KIB4
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(backing.address // KIB4 * 8)
        entries = struct.unpack(f"<{count}Q", file.read(8 * count))
    return [page for page, entry in enumerate(entries) if entry >> 63]


def small_pages(size: int) -> Backing:
    backing = anonymous(size)
    backing.map.madvise(mmap.MADV_NOHUGEPAGE)
    return backing


def huge_page() -> Backing:
    """2 MiB that are one page of the host's. Skips where it has none."""
    require("thp")
    backing = anonymous(MIB2, huge="thp", phase=AT % MIB2)
    backing.view[0] = 0
    if len(resident(backing)) != MIB2 // KIB4:
        backing.close()
        skip("the host has no 2 MiB page free (/sys/kernel/mm/transparent_hugepage/defrag)")
    return backing


def test_memory_of_small_pages_is_found_page_by_page(host: Host) -> None:
    backing = small_pages(MIB2)
    machine, _ = machine_with(host, backing)
    assert resident(backing) == []
    before = mapped(machine)
    assert touch(machine, AT, 8) == 0, "it reads as zero"
    assert resident(backing) == [n * FAR // KIB4 for n in range(8)], "and nothing else was found"
    found = more(before, mapped(machine))
    assert found == (8, 0, 0)
    before = mapped(machine)
    assert touch(machine, AT, 8) != 0
    found = more(before, mapped(machine))
    assert found == (0, 0, 0), "the second time nothing is new"


def test_memory_of_2_mib_pages_is_mapped_at_once(host: Host) -> None:
    machine, _ = machine_with(host, huge_page())
    before = mapped(machine)
    assert touch(machine, AT, 8) == 0
    found = more(before, mapped(machine))
    assert found == (0, 1, 0)


@needs("vmx_flag ept_1gb or kvm_amd.npt=Y")
def test_memory_of_1_gib_pages_is_mapped_at_once(host: Host) -> None:
    require("hugetlb_1g", "pages_1g")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000 | 30 << 26  # MAP_HUGETLB, MAP_HUGE_1GB
    page = mmap.mmap(-1, GIB1, flags=flags)
    host.defer(page.close)
    machine = make(host, TOUCHES, memory="2M", ring=3)
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(page)))
    machine.vm.set_user_memory_region(9, AT, GIB1, address)
    before = mapped(machine)
    assert touch(machine, AT, 8, step=GIB1 // 8) == 0
    found = more(before, mapped(machine))
    assert found[1:] == (0, 1), "and some small ones, of its page tables"
    assert page[GIB1 - GIB1 // 8] == 1


def test_memory_that_is_given_back_reads_as_zero_again(host: Host) -> None:
    """The host's page is gone, and with it what KVM had mapped of it."""
    backing = small_pages(MIB2)
    machine, slot = machine_with(host, backing)
    touch(machine, AT, 8)
    machine.memory.fill(AT, slot.size)
    assert resident(backing) == []
    assert touch(machine, AT, 8) == 0
    assert touch(machine, AT, 8) != 0


def test_a_huge_page_is_split_while_its_pages_are_logged(host: Host) -> None:
    machine, slot = machine_with(host, huge_page())
    touch(machine, AT, 1)
    before = mapped(machine)
    machine.memory.set_log_dirty(slot, True)
    touch(machine, AT + 3 * FAR, 2)
    log = int.from_bytes(machine.vm.get_dirty_log(slot.number), "little")
    assert log == 1 << 3 * 16 | 1 << 4 * 16, "two small pages, not all of the large one"
    assert more(before, mapped(machine))[1] == -1
    machine.memory.set_log_dirty(slot, False)
    touch(machine, AT, 8)
    assert mapped(machine)["pages_2m"] == before["pages_2m"], "whole again when nobody wants to know"
