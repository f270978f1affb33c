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


def dispatch(machine: Machine, cpu: Cpu) -> None:
    """Runs the vCPU until the machine has an ending, or the vCPU nothing left to do.

    What a handler raises comes out unchanged, with a note that says at which exit; the access is then still to be done:
    the next call begins with it.
    """
    serve = _serve if len(machine.cpus) == 1 else _serve_in_turn
    code, cpu.unfinished = cpu.unfinished, 0
    try:
        while machine.ending is None and not cpu.idle:
            if code >= 0:
                code = serve(machine, cpu, code)
            OTHERS[code](machine, cpu)
            code = 0
    except BaseException as error:
        _keep(cpu, code)
        if cpu.native.pending == lib.KVMPY_ANSWER and not cpu.access[IS_WRITE] and _refused_answer(error):
            raise bad_answer(machine, cpu) from None
        if cpu.unfinished:
            note(cpu, error)
        raise


def _serve(machine: Machine, cpu: Cpu, code: int) -> int:
    """Plain accesses, one after the other, from that of ``code`` on (0: enter the guest); the first other code."""
    run, native, access, handlers = lib.kvmpy_run, cpu.native, cpu.access, machine.bus.handlers
    code = code or run(native)
    while code > 0:
        if code & 1:
            handlers[code](access[1], access[3], access[2])
        else:
            access[3] = handlers[code](access[1], access[2])
        code = run(native)
    return code


def _serve_in_turn(machine: Machine, cpu: Cpu, code: int) -> int:
    """The same where other vCPUs use the same devices: one handler at a time. The lock costs as much as a handler."""
    run, native, access, handlers = lib.kvmpy_run, cpu.native, cpu.access, machine.bus.handlers
    guard = machine.guard
    code = code or run(native)
    while code > 0:
        with guard:
            if code & 1:
                handlers[code](access[1], access[3], access[2])
            else:
                access[3] = handlers[code](access[1], access[2])
        code = run(native)
    return code


def _keep(cpu: Cpu, code: int) -> None:
    """What the next run begins with; what the C loop takes up by itself isn't among it."""
    if cpu.native.pending == lib.KVMPY_ANSWER:
        cpu.unfinished = 2 * cpu.access[RANGE] + cpu.access[IS_WRITE]
    else:
        cpu.unfinished = code if code in (lib.KVMPY_EXIT, lib.KVMPY_ELEMENTS) else 0


def _refused_answer(error: BaseException) -> bool:
    """Whether storing a handler's answer failed, rather than the handler."""
    frames = error.__traceback__
    return (
        isinstance(error, (TypeError, ValueError))
        and frames is not None
        and frames.tb_next is not None
        and frames.tb_next.tb_next is None
    )


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
    what = exits.view(cpu).describe() if cpu.unfinished == lib.KVMPY_EXIT else describe_access(cpu)
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
    with machine.guard:
        if handler is None or handler(exit_) is NotImplemented:
            exits.default(machine, exit_)


def _elements(machine: Machine, cpu: Cpu) -> None:
    """String I/O, or a piece of an access that no range holds alone: as many elements as one owner has."""
    access, elements = cpu.access, cpu.native.elements
    size, count = access[SIZE], access[COUNT]
    data = ffi.buffer(elements.data + elements.done * size, size * count)
    owner = machine.bus.by_id.get(access[RANGE])
    with machine.guard:
        if access[IS_WRITE]:
            _write_string(machine, owner, access, bytes(data))
        else:
            answer = _read_string(machine, owner, access)
            if len(answer) != size * count:
                raise DeviceError(f"{owner}: read_string gave {len(answer)} bytes for {size * count}")
            data[:] = answer
    elements.done += count


def _write_string(machine: Machine, owner: Any, access: memoryview, data: bytes) -> None:
    offset, size = access[OFFSET], access[SIZE]
    whole = getattr(owner and owner.owner, "write_string", None)
    if whole is not None and access[COUNT] > 1:
        whole(offset, data, size)
        return
    write = machine.bus.handlers[2 * access[RANGE] + 1]
    for at in range(0, len(data), size):
        write(offset, int.from_bytes(data[at : at + size], "little"), size)


def _read_string(machine: Machine, owner: Any, access: memoryview) -> bytes:
    offset, size, count = access[OFFSET], access[SIZE], access[COUNT]
    whole = getattr(owner and owner.owner, "read_string", None)
    if whole is not None and count > 1:
        return bytes(whole(offset, size, count))
    read = machine.bus.handlers[2 * access[RANGE]]
    try:
        return b"".join([read(offset, size).to_bytes(size, "little") for _ in range(count)])
    except (OverflowError, AttributeError):
        raise DeviceError(
            f"read handler of {owner or 'nobody'}: its answers must be integers of {size} bytes"
        ) from None


def skip(cpu: Cpu) -> bool:
    """Goes on past the access or exit that a handler failed at: a write is dropped, a read gives all ones."""
    code, cpu.unfinished = cpu.unfinished, 0
    if code > 0:
        cpu.access[VALUE] = (1 << (8 * cpu.access[SIZE])) - 1
    elif code == lib.KVMPY_ELEMENTS:
        elements, length = cpu.native.elements, cpu.access[SIZE] * cpu.access[COUNT]
        if not cpu.access[IS_WRITE]:
            ffi.memmove(elements.data + elements.done * cpu.access[SIZE], b"\xff" * length, length)
        elements.done += cpu.access[COUNT]
    return code != 0


def _kicked(machine: Machine, cpu: Cpu) -> None:
    why = cpu.native.why
    if why & lib.KVMPY_KICK_BUDGET:
        machine.end("max-exits", cpu=cpu)
    if why & lib.KVMPY_KICK_UNTIL:
        machine.end("until", cpu=cpu, detail=exits.name_of(cpu.native.run.exit_reason))
    if why & lib.KVMPY_KICK_DEADLINE:
        machine.end("timeout", cpu=cpu)
    elif why & lib.KVMPY_KICK_TICK:
        machine.tick(cpu)


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
}
