"""Assertions in the guest: the port they write to, and finding out what was asserted."""

from __future__ import annotations

from kvmpy.errors import KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.cpu import Cpu
    from kvmpy.testing.build import Assertion, Program
    from kvmpy.testing.machine import MachineUnderTest
    from kvmpy.testing.where import Caller

PORT = 0xEE
OUT_LENGTH = 2
PLAIN, OPERANDS, NUMBERS = 0, 1, 2
"""How an assertion's values are found: there are none; operands in its text; RAX and RDX."""
WIDTHS = {
    **{name: (name, 64) for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")},
    **{f"e{name}": (f"r{name}", 32) for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")},
    **{name: (f"r{name}", 16) for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")},
    **{f"{letter}l": (f"r{letter}x", 8) for letter in "abcd"},
    **{f"{name}l": (f"r{name}", 8) for name in ("si", "di", "bp", "sp")},
    **{f"r{number}{suffix}": (f"r{number}", bits) for number in range(8, 16)
       for suffix, bits in (("", 64), ("d", 32), ("w", 16), ("b", 8))},
}  # fmt: skip


class Failure:
    """An assertion that didn't hold."""

    def __init__(self, where: str, text: str, values: str) -> None:
        self.where = where
        self.text = text
        self.values = values

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.text} doesn't hold in the guest{f': {self.values}' if self.values else ''}"
        )


class AssertionPort:
    """Takes the writes of failing assertions, and stops the machine."""

    name = "kvmpy-assert"

    def __init__(self, machine: MachineUnderTest, program: Program, caller: Caller) -> None:
        self._machine = machine
        self._program = program
        self._caller = caller
        machine.ports.attach(PORT, 1, self)

    def write(self, offset: int, value: int, size: int) -> None:
        """The first one counts."""
        if self._machine.failure is None:
            self._machine.failure = self._find()
            self._machine.stop()

    def _find(self) -> Failure:
        from kvmpy.machine.crash import linear_rip

        cpu = self._machine.current_cpu()
        at = linear_rip(cpu)
        for address in (at, at - OUT_LENGTH):  # engines differ in whether RIP has moved on already
            note = self._program.assertions.get(address)
            if note is not None:
                return Failure(self._where(note), note.text, _values(cpu, note))
        return Failure(
            str(self._caller), "an ASSERT", f"rip is {at:#x}, where none was assembled: was the code moved?"
        )

    def _where(self, note: Assertion) -> str:
        if note.file != self._program.language:
            return f"{note.file}:{note.line}"
        return self._caller.describe(self._program.source, note.line)


def _values(cpu: Cpu, note: Assertion) -> str:
    if note.kind == NUMBERS:
        return f"{_number(cpu.regs.rax)} and {_number(cpu.regs.rdx)}"
    if note.kind != OPERANDS:
        return ""
    operands = _split(note.text[note.text.index("(") + 1 : note.text.rindex(")")])
    sizes = [WIDTHS[name][1] for each in operands if (name := each.strip().lstrip("%")) in WIDTHS]
    found = [(each.strip(), _operand(cpu, each.strip(), sizes[0] if sizes else 64)) for each in operands]
    return " and ".join(f"{text} is {_number(value)}" for text, value in found if value is not None)


def _number(value: int) -> str:
    return str(value) if value < 10 else f"{value} ({value:#x})"


def _split(text: str) -> list[str]:
    """At the commas outside parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _register(cpu: Cpu, name: str) -> int | None:
    known = WIDTHS.get(name.strip().lstrip("%"))
    return None if known is None else int(getattr(cpu.regs, known[0])) & ((1 << known[1]) - 1)


def _operand(cpu: Cpu, text: str, bits: int) -> int | None:
    """A register's value, or that of a memory operand made of registers and numbers; None for anything else."""
    if text.startswith("%"):
        return _register(cpu, text)
    if text.startswith("$") or not text.endswith(")"):
        return None
    displacement, _, inside = text[:-1].partition("(")
    base, index, scale = ([part.strip() for part in inside.split(",")] + ["", "", ""])[:3]
    try:
        address = int(displacement or "0", 0) + (int(_register(cpu, base) or 0) if base else 0)
        address += (_register(cpu, index) or 0) * int(scale or "1", 0) if index else 0
        physical = cpu.translate(address)
        return (
            None
            if physical is None
            else int.from_bytes(cpu.machine.memory.read(physical, bits // 8), "little")
        )
    except (ValueError, KvmpyError):
        return None
