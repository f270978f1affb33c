"""The dispatch loop: run the guest, hand what C didn't handle to whoever owns it, run again.

The C loop returns the number of a handler for a plain access (it is the index into ``bus.handlers``), so the common
way is one call into C, one look at shared memory and one call of a device.
"""

from __future__ import annotations

import errno
import os

from kvmpy._native import ffi, lib
from kvmpy.errors import BusError, DeviceError, KvmError
from kvmpy.machine import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.machine import Machine

# Words of struct kvmpy_access (native/vcpu.h).
RANGE, OFFSET, SIZE, VALUE, COUNT, ADDRESS, IS_WRITE, SPACE = range(8)

NOTHING = 0
SLEEP_NS = 100_000_000
IN_GUEST = -1000
"""The C loop has the vCPU. An exception that comes with this (a signal handler's) hides what the C loop returned."""


def dispatch(machine: Machine, cpu: Cpu) -> None:
    """Runs the vCPU until the machine has an ending, or the vCPU nothing left to do.

    What a handler raises comes out unchanged, with a note that says at which exit; the access is then still to be done:
    the next call begins with it.
    """
    serve = _serve if len(machine.cpus) == 1 else _serve_in_turn
    code, cpu.unfinished = cpu.unfinished, NOTHING
    if code == lib.KVMPY_HANDLER_FAILED:
        code = NOTHING  # the C loop tries it again
    try:
        while True:
            if machine.ending is not None or cpu.idle:
                break
            if cpu.halted:
                code = _sleep(cpu)
            if code >= NOTHING:
                code = serve(machine, cpu, code)
            with machine.guard:
                OTHERS[code](machine, cpu)
                code = NOTHING
        _keep(cpu, code)  # another vCPU ended the run before this one began
    except BaseException as error:
        _keep(cpu, cpu.unfinished or code)
        if cpu.unfinished:
            note(cpu, error)
        raise


# Python looks for signals after a call of C and when it jumps back, and what a signal handler raises comes out there.
# So ``code`` always says what is still to be done: it never holds what was before while the C loop runs, and no such
# place lies between the end of a handler and the next assignment. The loops end in their middle, for from 3.12 on a
# ``while`` with a condition jumps back outside of the ``try`` around it.


def _serve(machine: Machine, cpu: Cpu, code: int) -> int:
    """Plain accesses, one after the other, from that of ``code`` on (0: enter the guest); the first other code."""
    run, native, access, handlers = lib.kvmpy_run, cpu.native, cpu.access, machine.bus.handlers
    try:
        if not code:
            code = IN_GUEST
            code = run(native)
        while True:
            if code <= 0:
                return code
            if code & 1:
                handlers[code](access[1], access[3], access[2])
            else:
                answer = handlers[code](access[1], access[2])
                try:
                    access[3] = answer
                except (TypeError, ValueError):
                    raise bad_answer(machine, cpu) from None
            code = IN_GUEST
            code = run(native)
    except BaseException:
        cpu.unfinished = native.returned if code == IN_GUEST else code
        raise


def _serve_in_turn(machine: Machine, cpu: Cpu, code: int) -> int:
    """The same where other vCPUs use the same devices: one handler at a time. The lock costs as much as a handler."""
    run, native, access, handlers = lib.kvmpy_run, cpu.native, cpu.access, machine.bus.handlers
    guard = machine.guard
    try:
        if not code:
            code = IN_GUEST
            code = run(native)
        while True:
            if code <= 0:
                return code
            with guard:
                if code & 1:
                    handlers[code](access[1], access[3], access[2])
                else:
                    answer = handlers[code](access[1], access[2])
                    try:
                        access[3] = answer
                    except (TypeError, ValueError):
                        raise bad_answer(machine, cpu) from None
                code = NOTHING
            code = IN_GUEST
            code = run(native)
    except BaseException:
        cpu.unfinished = native.returned if code == IN_GUEST else code
        raise


def _keep(cpu: Cpu, code: int) -> None:
    """What the next run begins with; what the C loop itself takes up again isn't among it."""
    if code == lib.KVMPY_BAD_ANSWER:
        code = 2 * cpu.access[RANGE]
    cpu.unfinished = code if code > 0 or code in KEPT else NOTHING


def bad_answer(machine: Machine, cpu: Cpu) -> DeviceError:
    """The error for a read's answer that is no integer of the access's size."""
    owner = machine.bus.by_id.get(cpu.access[RANGE])
    bits = 8 * cpu.access[SIZE]
    return DeviceError(
        f"read handler of {owner or 'nobody'}: its answer must be an integer from 0 to {(1 << bits) - 1:#x}"
        f" ({cpu.access[SIZE]} bytes at offset {cpu.access[OFFSET]:#x})"
    )


def note(cpu: Cpu, error: BaseException) -> None:
    """Attaches the exit to an exception."""
    if cpu.unfinished == lib.KVMPY_COALESCED:
        what = "a write that the kernel had kept"
    elif cpu.unfinished == lib.KVMPY_EXIT:
        what = exits.view(cpu).describe()
    else:
        what = describe_access(cpu)
    text = f"at {what} on vCPU {cpu.index}"
    if text not in getattr(error, "__notes__", ()):
        error.add_note(text)


def describe_access(cpu: Cpu) -> str:
    """The access the vCPU waits for, in words."""
    access = cpu.access
    space = ("port", "MMIO address", "MSR", "hypercall")[access[SPACE]]
    kind = "write" if access[IS_WRITE] else "read"
    value = f" of {access[VALUE]:#x}" if access[IS_WRITE] else ""
    return f"{access[SIZE]} byte {kind}{value}, {space} {access[ADDRESS]:#x}"


def _exit(machine: Machine, cpu: Cpu) -> None:
    exit_ = exits.view(cpu)
    handler = machine.exit_handlers.get(exit_.reason)
    if handler is None or handler(exit_) is NotImplemented:
        exits.default(machine, exit_)


def _elements(machine: Machine, cpu: Cpu) -> None:
    """String I/O for an owner that takes it whole."""
    access, elements = cpu.access, cpu.native.elements
    owner: Any = machine.bus.by_id[access[RANGE]].owner
    size, count = access[SIZE], access[COUNT]
    data = ffi.buffer(elements.data + elements.done * size, size * count)
    if access[IS_WRITE]:
        owner.write_string(access[OFFSET], bytes(data), size)
    else:
        # Kept, so that it isn't asked for again if a signal handler raises before it is in its place.
        if cpu.answer is None:
            cpu.answer = owner.read_string(access[OFFSET], size, count)
        answer = cpu.answer
        if not isinstance(answer, (bytes, bytearray, memoryview)) or len(answer) != size * count:
            cpu.answer = None
            raise _bad_string(machine, cpu, answer)
        data[:] = answer
        cpu.answer = None
    elements.done += count


def _bad_string(machine: Machine, cpu: Cpu, answer: object) -> DeviceError:
    length = cpu.access[SIZE] * cpu.access[COUNT]
    got = f"{len(answer)} bytes" if isinstance(answer, (bytes, bytearray, memoryview)) else repr(answer)
    return DeviceError(
        f"read_string of {machine.bus.by_id[cpu.access[RANGE]]}: it gave {got}, {length} bytes are asked for"
    )


def skip(machine: Machine, cpu: Cpu) -> bool:
    """Goes on past the access or exit that a handler failed at: a write is dropped, a read gives all ones."""
    code, cpu.unfinished = cpu.unfinished, NOTHING
    if code > 0:
        _skip_access(cpu)
    elif code == lib.KVMPY_ELEMENTS:
        _skip_string(cpu)
    elif code == lib.KVMPY_HANDLER_FAILED:
        _skip_access(cpu)
        one = cpu.native.pending == lib.KVMPY_GO_ON
        cpu.native.pending = lib.KVMPY_ANSWER_ONE if one else lib.KVMPY_ANSWER
    elif code == lib.KVMPY_COALESCED:
        machine.bus.kernel_places().forget_one()
        cpu.unfinished = code  # the others
    return code != NOTHING


def _skip_access(cpu: Cpu) -> None:
    if not cpu.access[IS_WRITE]:
        cpu.access[VALUE] = (1 << (8 * cpu.access[SIZE])) - 1


def _skip_string(cpu: Cpu) -> None:
    elements, length = cpu.native.elements, cpu.access[COUNT] * cpu.access[SIZE]
    cpu.answer = None
    if not cpu.access[IS_WRITE]:
        ffi.memmove(elements.data + elements.done * cpu.access[SIZE], b"\xff" * length, length)
    elements.done += cpu.access[COUNT]


def _kicked(machine: Machine, cpu: Cpu) -> None:
    why = cpu.native.why
    if why & lib.KVMPY_KICK_BUDGET:
        machine.end("max-exits", cpu=cpu)
    if why & lib.KVMPY_KICK_UNTIL:
        machine.end("until", cpu=cpu, detail=exits.name_of(cpu.native.run.exit_reason))
    if why & lib.KVMPY_KICK_DEADLINE:
        from kvmpy.machine.hypercalls import where_stuck

        machine.end("timeout", cpu=cpu, detail=where_stuck(cpu))
    elif why & lib.KVMPY_KICK_TICK:
        machine.tick(cpu)
    if why & (lib.KVMPY_KICK_WAKE | lib.KVMPY_KICK_IRQ):
        _attend(machine, why)


def _attend(machine: Machine, why: int) -> None:
    """Devices' timers, and interrupt controllers in user space. The vCPU stands between two instructions."""
    if machine.interrupts is None:
        machine.timers.run()
    elif why & lib.KVMPY_KICK_WAKE:
        machine.interrupts.take_times()
    else:
        machine.interrupts.deliver()


def _sleep(cpu: Cpu) -> int:
    """The vCPU has halted: until a kick, or until Python should look whether a signal came just before."""
    lib.kvmpy_sleep(cpu.native, SLEEP_NS)
    cpu.native.why = why = lib.kvmpy_take_kick(cpu.native)
    code: int = lib.KVMPY_KICKED if why else lib.KVMPY_SIGNAL
    return code


def _signal(machine: Machine, cpu: Cpu) -> None:
    """Python runs its signal handlers between two of its own instructions: being here is enough."""


def _failed(machine: Machine, cpu: Cpu) -> None:
    number = cpu.native.error
    why = "the engine can't enter the guest"
    if number == errno.EINVAL:
        why = "; ".join(explain(cpu)) or "the engine refuses the registers it was given"
    name = errno.errorcode.get(number, str(number))
    raise KvmError(f"KVM_RUN on vCPU {cpu.index}: {name} ({os.strerror(number)}): {why}", number)


def explain(cpu: Cpu) -> list[str]:
    """What the manuals have against the vCPU's control registers; empty if nothing."""
    from kvmpy.x86.explain import explain_sregs

    sregs = cpu.sregs
    names = ("cr0", "cr3", "cr4", "efer")
    return explain_sregs(**{name: getattr(sregs, name) for name in names})


def _bad_answer(machine: Machine, cpu: Cpu) -> None:
    raise bad_answer(machine, cpu)


def _ring_full(machine: Machine, cpu: Cpu) -> None:
    machine.ring_full(cpu)


def _handler_failed(machine: Machine, cpu: Cpu) -> None:
    owner = machine.bus.by_id.get(cpu.access[RANGE])
    number = cpu.native.error
    raise BusError(f"native handler of {owner}: returned -{number} ({os.strerror(number)})")


def _coalesced(machine: Machine, cpu: Cpu) -> None:
    machine.drain_coalesced()


def _rescue(machine: Machine, cpu: Cpu) -> None:
    machine.rescue().attend(cpu)


KEPT = (lib.KVMPY_EXIT, lib.KVMPY_ELEMENTS, lib.KVMPY_HANDLER_FAILED, lib.KVMPY_COALESCED)
"""What of these is begun with when the vCPU runs again after an exception."""

OTHERS: dict[int, Callable[[Machine, Cpu], None]] = {
    lib.KVMPY_EXIT: _exit,
    lib.KVMPY_ELEMENTS: _elements,
    lib.KVMPY_KICKED: _kicked,
    lib.KVMPY_SIGNAL: _signal,
    lib.KVMPY_FAILED: _failed,
    lib.KVMPY_BAD_ANSWER: _bad_answer,
    lib.KVMPY_RING_FULL: _ring_full,
    lib.KVMPY_HANDLER_FAILED: _handler_failed,
    lib.KVMPY_COALESCED: _coalesced,
    lib.KVMPY_RESCUE: _rescue,
}
