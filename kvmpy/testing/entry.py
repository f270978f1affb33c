"""Starting a program in a state that isn't the usual one: ring 3, an IDT, registers, page tables of one's own."""

from __future__ import annotations

from kvmpy.boot.payload import Chunk, Payload
from kvmpy.errors import UsageError
from kvmpy.x86 import entry as x86

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.testing.build import Program
    from kvmpy.testing.machine import MachineUnderTest
    from kvmpy.x86.entry import EntryState

REAL_STACK = 0x7C00


def load(machine: MachineUnderTest, program: Program, mode: str, state: dict[str, Any]) -> None:
    """Loads ``program`` to start as ``state`` says. Raises UsageError for an option the mode doesn't have."""
    state = resolve(program, state)
    low = next((slot.size for slot in machine.memory.slots if slot.gpa == 0), 0)
    entry = build(mode, program.entry, memory_size=low, avoid=[(program.at, len(program.data))], **state)
    machine.load(Payload("flat", [Chunk(program.at, program.data)], entry))


def resolve(program: Program, state: dict[str, Any]) -> dict[str, Any]:
    """The same with addresses in place of labels."""
    return {**state, "idt": _handlers(program, state["idt"])} if "idt" in state else state


def build(mode: str, entry: int, **options: Any) -> EntryState:
    """The entry state of a mode at guest physical address ``entry`` (long mode: virtual)."""
    if mode == "real":
        options.pop("memory_size", None)
        options.pop("avoid", None)
        make = x86.real_mode
        cs = options.pop("cs", entry >> 16 << 12)
        arguments: tuple[int, ...] = (cs, entry - (cs << 4))
        options.setdefault("sp", REAL_STACK)
    else:
        make = x86.protected_mode if mode == "protected" else x86.long_mode  # type: ignore[assignment]
        arguments = (entry,)
        if options.get("ring") == 3:
            options.setdefault("ports", True)
    try:
        return make(*arguments, **options)
    except TypeError as error:
        raise UsageError(f"{mode} mode: {str(error).partition('() ')[2] or error}") from None


def _handlers(program: Program, idt: dict[int, str | int]) -> dict[int, int]:
    found = {}
    for vector, handler in idt.items():
        if isinstance(handler, str):
            if handler not in program.symbols:
                names = ", ".join(program.symbols) or "there are none"
                raise UsageError(
                    f"handler {handler!r} of vector {vector} is no label of the program: {names}"
                )
            handler = program.symbols[handler]
        found[vector] = handler
    return found
