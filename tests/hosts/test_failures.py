"""Guests that can't go on: triple faults, and instructions that KVM doesn't emulate."""

from __future__ import annotations

from typing import Any

from guests import listen, make, start, state, to_halt
from listing import code
from suite import Host, cases

from kvmpy.machine import exits
from kvmpy.machine.exits import InternalError

TRIPLE_FAULT = "Bochs ends at a guest's triple fault instead of leaving the guest"

# No IDT: #UD, then #GP or #PF, then a double fault, none of which has a handler.
LONG = code(
    64,
    """
      b0 01   mov al, 1
      e6 e9   out 0xe9, al
      0f 0b   ud2
    """,
)
PROTECTED = code(
    32,
    """
      b0 01   mov al, 1
      e6 e9   out 0xe9, al
      0f 0b   ud2
    """,
)
FINE = code(
    64,
    """
      b0 02   mov al, 2
      e6 e9   out 0xe9, al
      f4      hlt
    """,
)


@cases(protected=PROTECTED, long=LONG)
def test_a_triple_fault_ends_the_run_as_a_crash(host: Host, case: Any) -> None:
    host.avoid("amd-bochs", because=TRIPLE_FAULT)
    machine = make(host, case)
    said = listen(machine)
    result = machine.run(timeout=20)
    assert (result.reason, result.detail) == ("crash", "SHUTDOWN: triple fault")
    assert result.crash is not None
    assert said == [1]


def test_a_machine_can_be_started_again_behind_a_triple_fault(host: Host) -> None:
    host.avoid("amd-bochs", because=TRIPLE_FAULT)
    machine = make(host, LONG)
    said = listen(machine)
    assert machine.run(timeout=20).reason == "crash"
    machine.memory.write(0x1000, FINE.data)
    start(machine, state(FINE, machine.memory.size))
    to_halt(machine)
    assert said == [1, 2]


HANDLED = code(
    64,
    """
      0f 0b            ud2
    behind:
      f4               hlt
    handler:
      48 83 04 24 02   add qword ptr [rsp], 2
      b0 06            mov al, 6
      e6 e9            out 0xe9, al
      48 cf            iretq
    """,
)


def test_an_exception_with_a_handler_is_no_failure(host: Host) -> None:
    machine = make(host, HANDLED, handlers={6: "handler"})
    said = listen(machine)
    to_halt(machine)
    assert said == [6]
    assert machine.cpus[0].regs.rip == HANDLED.at["behind"] + 1


# Nobody is at that address, so KVM has to emulate the instruction; x87 loads it doesn't.
UNKNOWN = code(
    64,
    """
      bb 00 00 00 d0   mov ebx, 0xd0000000
      b9 05 00 00 00   mov ecx, 5
    failing:
      d9 03            fld dword ptr [rbx]
    behind:
      ff c1            inc ecx
      f4               hlt
    """,
)


def test_an_emulation_failure_shows_the_instruction(host: Host) -> None:
    machine = make(host, UNKNOWN)
    result = machine.run(timeout=20)
    assert result.reason == "crash"
    failure = exits.view(machine.cpus[0])
    assert isinstance(failure, InternalError)
    assert failure.suberror == 1
    assert failure.instruction.startswith(b"\xd9\x03")
    assert len(failure.instruction) == 15
    assert "d9 03" in result.detail
    assert machine.cpus[0].regs.rip == UNKNOWN.at["failing"]


def test_a_guest_goes_on_behind_an_instruction_that_the_host_did(host: Host) -> None:
    machine = make(host, UNKNOWN)
    seen: list[bytes] = []

    @machine.on_exit("INTERNAL_ERROR")
    def _(exit_: Any) -> None:
        seen.append(exit_.instruction[:2])
        exit_.cpu.regs.rip = UNKNOWN.at["behind"]

    to_halt(machine)
    assert seen == [b"\xd9\x03"]
    assert machine.cpus[0].regs.rcx == 6
