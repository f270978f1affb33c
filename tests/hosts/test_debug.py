"""KVM_SET_GUEST_DEBUG: single-stepping, breakpoints and watchpoints of the host; and the guest's own."""

from __future__ import annotations

from typing import Any

from guests import enable_lapic, listen, make, msi, not_on_pvm, start, state, to_exit, to_halt
from listing import Code, code
from suite import Host, cases

from kvmpy.abi import constants as c
from kvmpy.machine.machine import Machine

ON = c.KVM_GUESTDBG_ENABLE
STEP = ON | c.KVM_GUESTDBG_SINGLESTEP
SOFTWARE = ON | c.KVM_GUESTDBG_USE_SW_BP
HARDWARE = ON | c.KVM_GUESTDBG_USE_HW_BP
DB, BP = 1, 3  # vectors
DR6_BS = 1 << 14
DR7_FIXED = 1 << 10
WRITES, ACCESSES = 1, 3  # DR7, R/W field
# What the emulators get wrong.
QEMU_INT3 = "QEMU 7.2 doesn't intercept the #BP of INT3"
QEMU_DR7 = "QEMU 7.2 doesn't look at the DR7 that VMRUN loads"
BOCHS_STEP = "Bochs 2.7 ends at a single step in AMD-V"

PLAIN = code(
    64,
    """
    start:
      b8 01 00 00 00   mov eax, 1
    second:
      ff c0            inc eax
    third:
      eb 01            jmp fifth
      90               nop
    fifth:
      f4               hlt
    """,
)
REAL = code(
    16,
    """
    start:
      b8 01 00   mov ax, 1
    second:
      40         inc ax
    third:
      eb 01      jmp fifth
      90         nop
    fifth:
      f4         hlt
    """,
)


def stop(machine: Machine) -> Any:
    """Runs to the next debug exit: its struct kvm_debug_exit_arch."""
    seen: Any = to_exit(machine, "DEBUG")
    return seen.arch


def debug(machine: Machine, control: int, *breakpoints: tuple[int, int]) -> None:
    """Sets what the host wants to see; a breakpoint is (address, its four bits in DR7: LEN and R/W)."""
    registers = [0] * 8
    registers[7] = DR7_FIXED
    for number, (address, bits) in enumerate(breakpoints):
        registers[number] = address
        registers[7] |= 1 << 2 * number | bits << 16 + 4 * number
    machine.cpus[0].vcpu.set_guest_debug(control, registers)


def names(host: Host, dr6: int, number: int) -> bool:
    """Whether DR6 names this breakpoint alone; on amd-bochs anything will do, as Bochs 2.7 doesn't save DR6 there."""
    return host.name == "amd-bochs" or dr6 & 0xF == 1 << number


def again(machine: Machine, code: Code, **how: Any) -> None:
    """Lets the guest run and puts it back to its start. On the intel hosts, Bochs repeats a single step that an EPT
    violation interrupted: so no page may be new to the guest when its steps are counted."""
    machine.run(timeout=0.1)
    start(machine, state(code, machine.memory.size, **how))


@cases(long=PLAIN, real=REAL)
def test_single_step_stops_behind_each_instruction(host: Host, case: Any) -> None:
    host.avoid("amd-bochs", because=BOCHS_STEP)
    machine = make(host, case)
    again(machine, case)
    debug(machine, STEP)
    for label in ("second", "third", "fifth"):
        seen = stop(machine)
        assert (seen.pc, seen.exception) == (case.at[label], DB)
        assert seen.dr6 & DR6_BS
    assert machine.cpus[0].regs.rax == 2
    debug(machine, 0)
    to_halt(machine)


def test_single_step_goes_on_where_the_host_puts_the_guest(host: Host) -> None:
    host.avoid("amd-bochs", because=BOCHS_STEP)
    machine = make(host, PLAIN)
    again(machine, PLAIN)
    debug(machine, STEP)
    assert stop(machine).pc == PLAIN.at["second"]
    machine.cpus[0].regs.update({"rip": PLAIN.at["third"], "rbx": 5})
    assert stop(machine).pc == PLAIN.at["fifth"]
    debug(machine, 0)
    to_halt(machine)
    assert (machine.cpus[0].regs.rax, machine.cpus[0].regs.rbx) == (1, 5)


@cases(long=PLAIN, real=REAL)
def test_single_step_can_begin_anywhere(host: Host, case: Any) -> None:
    host.avoid("amd-bochs", because=BOCHS_STEP)
    host.avoid("amd", because=QEMU_DR7)
    machine = make(host, case)
    debug(machine, HARDWARE, (case.at["third"], 0))
    assert stop(machine).pc == case.at["third"]
    debug(machine, STEP)
    assert stop(machine).pc == case.at["fifth"]


def test_a_software_breakpoint_stops_at_its_address(host: Host) -> None:
    host.avoid("amd", because=QEMU_INT3)
    not_on_pvm(host, "it doesn't emulate INT3 of ring 0")
    machine = make(host, PLAIN)
    at = PLAIN.at["third"]
    original = bytes(machine.memory[at : at + 1])
    machine.memory.write(at, b"\xcc")
    debug(machine, SOFTWARE)
    seen = stop(machine)
    assert (seen.pc, seen.exception) == (at, BP)
    assert machine.cpus[0].regs.rip == at
    machine.memory.write(at, original)
    to_halt(machine)
    assert machine.cpus[0].regs.rax == 2


BREAKPOINT_OF_ITS_OWN = code(
    64,
    """
      cc            int3
    behind:
      f4            hlt
    handler:
      48 8b 04 24   mov rax, [rsp]
      48 cf         iretq
    """,
)


def test_an_int3_without_the_hosts_breakpoints_is_the_guests(host: Host) -> None:
    not_on_pvm(host, "it doesn't emulate INT3 of ring 0")
    machine = make(host, BREAKPOINT_OF_ITS_OWN, handlers={BP: "handler"})
    to_halt(machine)
    assert machine.cpus[0].regs.rax == BREAKPOINT_OF_ITS_OWN.at["behind"]


FOUR = code(
    64,
    """
      90   nop
    one:
      90   nop
    two:
      90   nop
    three:
      90   nop
    four:
      f4   hlt
    """,
)


def test_four_hardware_breakpoints(host: Host) -> None:
    host.avoid("amd", because=QEMU_DR7)
    machine = make(host, FOUR)
    places = [FOUR.at[label] for label in ("four", "three", "two", "one")]
    for number, address in reversed(list(enumerate(places))):
        debug(machine, HARDWARE, *((place, 0) for place in places[: number + 1]))
        seen = stop(machine)
        assert (seen.pc, seen.exception) == (address, DB)
        assert names(host, seen.dr6, number)
    debug(machine, 0)
    to_halt(machine)


WATCHED = 0x5000
MEMORY = code(
    64,
    """
      8b 04 25 00 50 00 00      mov eax, [0x5000]
    read:
      c6 04 25 08 50 00 00 01   mov byte ptr [0x5008], 1
      c6 04 25 03 50 00 00 01   mov byte ptr [0x5003], 1
    written:
      90                        nop
      f4                        hlt
    """,
)


@cases(write=(WRITES, "written"), access=(ACCESSES, "read"))
def test_a_watchpoint_stops_behind_the_access(host: Host, case: tuple[int, str]) -> None:
    host.avoid("amd", because=QEMU_DR7)
    not_on_pvm(host, "it has no data watchpoints")
    kind, label = case
    machine = make(host, MEMORY)
    debug(machine, HARDWARE, (WATCHED + 0x100, WRITES), (WATCHED, kind | 3 << 2))  # the second: four bytes
    seen = stop(machine)
    assert (seen.pc, seen.exception) == (MEMORY.at[label], DB)
    assert names(host, seen.dr6, 1)


OWN = code(
    64,
    """
      48 8d 04 25 13 10 00 00   lea rax, [at]
      0f 23 c0                  mov dr0, rax
      b8 03 04 00 00            mov eax, 0x403
      0f 23 f8                  mov dr7, rax
    at:
      90                        nop
      f4                        hlt
    handler:
      48 8b 04 24               mov rax, [rsp]
      e7 e9                     out 0xe9, eax
      0f 21 f0                  mov rax, dr6
      e7 e9                     out 0xe9, eax
      31 c0                     xor eax, eax
      0f 23 f8                  mov dr7, rax
      48 cf                     iretq
    """,
)


def test_the_guests_own_breakpoint_is_the_guests_exception(host: Host) -> None:
    machine = make(host, OWN, handlers={DB: "handler"})
    said = listen(machine)
    to_halt(machine)
    assert said[0] == OWN.at["at"]
    assert names(host, said[1], 0)
    registers = machine.cpus[0].vcpu.get_debugregs()
    assert (registers.db[0], registers.dr7 & 0xFF) == (OWN.at["at"], 0)


def test_debug_registers_come_back(host: Host) -> None:
    machine = make(host, PLAIN)
    vcpu = machine.cpus[0].vcpu
    registers = vcpu.get_debugregs()
    for number in range(4):
        registers.db[number] = 0x1_0000 + number
    registers.dr6, registers.dr7 = 0xFFFF0FF0 | 2, 0x455
    vcpu.set_debugregs(registers)
    again = vcpu.get_debugregs()
    assert list(again.db) == [0x10000, 0x10001, 0x10002, 0x10003]
    assert (again.dr6, again.dr7) == (0xFFFF0FF2, 0x455)


INTERRUPTED = code(
    64,
    """
      90   nop
    second:
      90   nop
    third:
      f4   hlt
    handler:
      f4   hlt
    """,
)
PENDING = 0x40


def test_single_step_with_interrupts_held_back(host: Host) -> None:
    host.avoid("amd-bochs", because=BOCHS_STEP)
    machine = make(host, INTERRUPTED, handlers={PENDING: "handler"}, interrupts=True, irqchip="split")
    again(machine, INTERRUPTED, interrupts=True, gates={PENDING: INTERRUPTED.at["handler"]})
    enable_lapic(machine.cpus[0])
    machine.cpus[0].vcpu.set_mp_state(c.KVM_MP_STATE_RUNNABLE)
    msi(machine, PENDING)
    debug(machine, STEP | c.KVM_GUESTDBG_BLOCKIRQ)
    assert stop(machine).pc == INTERRUPTED.at["second"]
    assert stop(machine).pc == INTERRUPTED.at["third"]
    debug(machine, 0)
    to_halt(machine)
    assert machine.cpus[0].regs.rip == INTERRUPTED.at["handler"] + 1
