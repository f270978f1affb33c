"""Memory slots: read-only ones, and those that come, move and go while the guest runs."""

from __future__ import annotations

import threading
from typing import Any

from devices import Recorder
from guests import PATIENCE, make, to_exit, to_halt
from listing import Code, code
from offers import require
from suite import Host, cases, raises

from kvmpy.errors import KvmError
from kvmpy.machine.backing import anonymous
from kvmpy.machine.machine import Machine

AT = 0x10000000
PAGE = 4096
RAX = 0x1122334455667788


def one(hexadecimal: str, instruction: str) -> Code:
    """A guest of one instruction, and HLT."""
    return code(64, f"{hexadecimal}   {instruction}\nf4   hlt")


READ = one("48 8b 0b", "mov rcx, [rbx]")
WRITE = one("48 89 03", "mov [rbx], rax")
ADD = one("01 03", "add [rbx], eax")
COPY = one("f3 a4", "rep movsb")
CALL = one("ff d3", "call rbx")
RETURN_5 = code(
    64,
    """
    b9 05 00 00 00   mov ecx, 5
    c3               ret
    """,
)
READS_TWICE = code(
    64,
    """
    48 8b 0b   mov rcx, [rbx]
    e6 e9      out 0xe9, al
    48 8b 13   mov rdx, [rbx]
    f4         hlt
    """,
)
WRITES_UNTIL_TOLD = code(
    64,
    """
    again:
      48 ff c0                  inc rax
      48 89 03                  mov [rbx], rax
      83 3c 25 00 50 00 00 00   cmp dword ptr [0x5000], 0
      74 f0                     je again
      f4                        hlt
    """,
)
READS_UNTIL_CHANGED = code(
    64,
    """
      e6 e9      out 0xe9, al
    again:
      48 8b 13   mov rdx, [rbx]
      48 39 c2   cmp rdx, rax
      74 f8      je again
      f4         hlt
    """,
)


def facing(host: Host, what: Code, **registers: int) -> Machine:
    return make(host, what, memory="2M", registers={"rax": RAX, "rbx": AT, **registers})


# Read-only


def rom(machine: Machine, data: bytes) -> None:
    require("KVM_CAP_READONLY_MEM")
    machine.memory.add(AT, PAGE, readonly=True, name="rom")
    machine.memory.write(AT, data, force=True)


def test_a_read_only_slot_is_read_without_an_exit(host: Host) -> None:
    machine = facing(host, READ)
    rom(machine, b"constant")
    assert dict(to_halt(machine).exits) == {"HLT": 1}
    assert machine.cpus[0].regs.rcx.to_bytes(8, "little") == b"constant"


def test_code_runs_in_a_read_only_slot(host: Host) -> None:
    machine = facing(host, CALL)
    rom(machine, RETURN_5.data)
    assert dict(to_halt(machine).exits) == {"HLT": 1}
    assert machine.cpus[0].regs.rcx == 5


def test_a_write_to_a_read_only_slot_is_an_mmio_exit(host: Host) -> None:
    for what, size, value in ((WRITE, 8, RAX), (ADD, 4, RAX + 0x736E6F63 & 0xFFFFFFFF)):
        machine = facing(host, what)
        rom(machine, b"constant")
        device = Recorder()
        machine.mmio.attach(AT, PAGE, device)
        to_halt(machine)
        assert device.seen == [("write", 0, value, size)], "what was there was read from memory"
        assert machine.memory.read(AT, 8) == b"constant"


def test_a_string_written_to_a_read_only_slot_arrives_whole(host: Host) -> None:
    machine = facing(host, COPY, rsi=0x5000, rdi=AT + 4, rcx=8)
    rom(machine, b"constant")
    machine.memory.write(0x5000, b"anything")
    device = Recorder()
    machine.mmio.attach(AT, PAGE, device)
    to_halt(machine)
    assert device.bytes_written() == list(enumerate(b"anything", 4))
    assert machine.memory.read(AT, 12) == b"constant".ljust(12, b"\0")


def test_a_slot_becomes_read_only_and_writable_again(host: Host) -> None:
    """KVM API document: flags other than logging can't be changed in place, so it takes a removal."""
    require("KVM_CAP_READONLY_MEM")
    machine = facing(host, WRITE)
    backing = host.enter(anonymous(PAGE))
    exits = []
    for readonly in (False, True, False):
        machine.vm.set_user_memory_region(9, AT, PAGE, backing.address, 2 * readonly)
        machine.cpus[0].regs.rip = 0x1000
        exits.append(to_halt(machine).exits.get("MMIO", 0))
        machine.vm.set_user_memory_region(9, AT, 0, 0)
    assert exits == [0, 1, 0]


# Coming, moving and going


def test_a_slot_that_is_made_at_an_exit_serves_the_next_access(host: Host) -> None:
    machine = facing(host, READS_TWICE)
    device = Recorder()
    machine.mmio.attach(AT, PAGE, device)

    @machine.ports.on_write(0xE9)
    def add(offset: int, value: int, size: int) -> None:
        machine.memory.add(AT, PAGE)
        machine.memory.write(AT, b"memories")

    result = to_halt(machine)
    assert device.seen == [("read", 0, 8)]
    assert result.exits["MMIO"] == 1
    assert machine.cpus[0].regs.rdx.to_bytes(8, "little") == b"memories"


def test_a_slot_that_is_made_while_its_absence_is_handled(host: Host) -> None:
    """The access that found nothing is finished as MMIO all the same."""
    machine = facing(host, READS_TWICE)
    machine.ports.drop(0xE9)

    @machine.mmio.on_read(AT, PAGE)
    def add(offset: int, size: int) -> int:
        machine.memory.add(AT, PAGE)
        machine.memory.write(AT, b"memories")
        return RAX

    to_halt(machine)
    regs: Any = machine.cpus[0].regs
    assert (regs.rcx, regs.rdx.to_bytes(8, "little")) == (RAX, b"memories")


def test_a_slot_that_is_removed_leaves_mmio_behind(host: Host) -> None:
    machine = facing(host, READS_TWICE)
    slot = machine.memory.add(AT, PAGE)
    machine.memory.write(AT, b"memories")
    device = Recorder()
    machine.mmio.attach(AT, PAGE, device)
    machine.ports.on_write(0xE9)(lambda offset, value, size: machine.memory.remove(slot))
    to_halt(machine)
    assert machine.cpus[0].regs.rcx.to_bytes(8, "little") == b"memories"
    assert device.seen == [("read", 0, 8)]


@cases(moved="gpa", other_memory="address")
def test_a_slot_that_changes_between_two_reads(host: Host, case: str) -> None:
    """It moves to another address, or (removed and made anew) shows other memory at the same."""
    machine = facing(host, READS_TWICE)
    machine.ports.drop(0xE9)
    first, second = (host.enter(anonymous(PAGE)) for _ in range(2))
    first.view[:8], second.view[:8] = b"memory 1", b"memory 2"
    machine.vm.set_user_memory_region(9, AT, PAGE, first.address)
    to_exit(machine, "IO")
    if case == "gpa":
        machine.vm.set_user_memory_region(9, AT + PAGE, PAGE, first.address)
        machine.vm.set_user_memory_region(10, AT, PAGE, second.address)
    else:
        machine.vm.set_user_memory_region(9, AT, 0, 0)
        machine.vm.set_user_memory_region(9, AT, PAGE, second.address)
    to_halt(machine)
    regs: Any = machine.cpus[0].regs
    assert regs.rcx.to_bytes(8, "little") == b"memory 1"
    assert regs.rdx.to_bytes(8, "little") == b"memory 2"


def later(machine: Machine, what: Any) -> tuple[threading.Thread, list[BaseException]]:
    """Starts ``what`` on another thread, while the guest runs; a failure there ends the guest's run."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            what()
        except BaseException as error:
            failures.append(error)
            machine.stop()

    thread = threading.Thread(target=work)
    thread.start()
    return thread, failures


def test_slots_come_and_go_below_a_running_vcpu(host: Host) -> None:
    """Each write lands in the memory that is there, or is an exit: none is lost, and nothing crashes."""
    machine = facing(host, WRITES_UNTIL_TOLD, rax=0)
    seen: list[int] = []
    waiting = threading.Event()

    @machine.mmio.on_write(AT, PAGE)
    def take(offset: int, value: int, size: int) -> None:
        seen.append(value)
        waiting.set()

    backing = host.enter(anonymous(PAGE))

    def work() -> None:
        for _ in range(5):
            waiting.clear()
            assert waiting.wait(PATIENCE), "without a slot every write is an exit"
            machine.vm.set_user_memory_region(9, AT, PAGE, backing.address)
            backing.view[8:16] = bytes(8)
            machine.vm.set_user_memory_region(9, AT, 0, 0)
        machine.memory.write(0x5000, b"\1")

    thread, failures = later(machine, work)
    result = machine.run(timeout=PATIENCE)
    thread.join()
    assert not failures, failures
    assert result.reason == "halt"
    assert seen == sorted(set(seen)), "in order, none twice"
    last = max(seen[-1], int.from_bytes(backing.view[:8], "little"))
    assert machine.cpus[0].regs.rax == last


def test_a_slot_moves_below_a_running_vcpu(host: Host) -> None:
    """The guest never leaves: what it has mapped is taken from under it."""
    before, after = (int.from_bytes(text, "little") for text in (b"memory 1", b"memory 2"))
    machine = facing(host, READS_UNTIL_CHANGED, rax=before)
    first, second = (host.enter(anonymous(PAGE)) for _ in range(2))
    first.view[:8], second.view[:8] = b"memory 1", b"memory 2"
    machine.vm.set_user_memory_region(9, AT, PAGE, first.address)
    machine.vm.set_user_memory_region(10, AT + PAGE, PAGE, second.address)
    machine.mmio.on_read(AT, PAGE)(lambda offset, size: before)
    begun = threading.Event()
    machine.ports.on_write(0xE9)(lambda offset, value, size: begun.set())

    def work() -> None:
        assert begun.wait(PATIENCE)
        machine.vm.set_user_memory_region(9, AT + 2 * PAGE, PAGE, first.address)
        machine.vm.set_user_memory_region(10, AT, PAGE, second.address)

    thread, failures = later(machine, work)
    result = machine.run(timeout=PATIENCE)
    thread.join()
    assert not failures, failures
    assert result.reason == "halt"
    assert machine.cpus[0].regs.rdx == after


def test_slots_that_cannot_be_are_refused(host: Host) -> None:
    machine = facing(host, READ)
    backing = host.enter(anonymous(2 * PAGE))
    machine.vm.set_user_memory_region(9, AT, 2 * PAGE, backing.address)
    for slot, gpa, size, address in (
        (10, AT + PAGE, PAGE, backing.address),  # overlaps
        (9, AT, PAGE, backing.address),  # another size
        (11, AT + 0x800, PAGE, backing.address),  # not at a page
        (11, AT + 0x10000, PAGE, backing.address + 1),
        (1 << 15, AT + 0x10000, PAGE, backing.address),  # beyond the last slot
    ):
        with raises(KvmError, f"slot {slot}, "):
            machine.vm.set_user_memory_region(slot, gpa, size, address)
    to_halt(machine)
    assert machine.cpus[0].regs.rcx == 0


def test_many_slots_at_once(host: Host) -> None:
    machine = facing(host, WRITE)
    backing = host.enter(anonymous(PAGE))
    for slot in range(9, 109):
        machine.vm.set_user_memory_region(slot, AT + 2 * slot * PAGE, PAGE, backing.address)
    for slot, exits in ((9, 0), (108, 0), (109, 1)):
        machine.cpus[0].regs.update({"rip": 0x1000, "rbx": AT + 2 * slot * PAGE})
        assert to_halt(machine).exits.get("MMIO", 0) == exits
    assert backing.view[:8] == RAX.to_bytes(8, "little")
