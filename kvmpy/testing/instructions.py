"""Short runs of x86 instructions, encoded without an assembler, for tests that generate code.

Everything here means the same on every processor and engine: integer instructions with defined results, no memory
operands, and flags only where all of them are defined. Source: Intel SDM vol. 2, chapters 2 to 5.
"""

from __future__ import annotations

from kvmpy.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

REGISTERS = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
USABLE = (0, 1, 2, 3, 5, 6, 7)
"""Numbers of the registers that programs use: all but the stack pointer."""
ALU = {"add": 0x01, "or": 0x09, "and": 0x21, "sub": 0x29, "xor": 0x31, "cmp": 0x39}
UNARY = {"not": (0xF7, 2), "neg": (0xF7, 3), "inc": (0xFF, 0), "dec": (0xFF, 1)}
SHIFTS = {"shl": 4, "shr": 5, "sar": 7}
STATUS_FLAGS = 0x8D5
"""CF, PF, AF, ZF, SF and OF in RFLAGS."""
UNDEFINED_AF = 1 << 4
WIDTHS = {"real": 16, "protected": 32, "long": 64}


class Instruction:
    """``text`` in AT&T syntax, ``code``; ``undefined`` are the flags it leaves undefined."""

    __slots__ = ("code", "text", "undefined", "writes_flags")

    def __init__(self, text: str, code: bytes, *, writes_flags: bool = True, undefined: int = 0) -> None:
        self.text = text
        self.code = code
        self.writes_flags = writes_flags
        self.undefined = undefined

    def __repr__(self) -> str:
        return f"<{self.text}>"


def register_name(number: int, mode: str) -> str:
    """``%eax`` and the like, as wide as the mode's usual operands."""
    return "%" + {"real": "", "protected": "e", "long": "r"}[mode] + REGISTERS[number]


def _modrm(reg: int, rm: int) -> bytes:
    return bytes((0xC0 | reg << 3 | rm,))


def _rex(mode: str) -> bytes:
    return b"\x48" if mode == "long" else b""


def alu(name: str, mode: str, source: int, target: int) -> Instruction:
    """add, or, and, sub, xor or cmp of two registers."""
    text = f"{name} {register_name(source, mode)}, {register_name(target, mode)}"
    undefined = UNDEFINED_AF if name in ("or", "and", "xor") else 0
    return Instruction(text, _rex(mode) + bytes((ALU[name],)) + _modrm(source, target), undefined=undefined)


def unary(name: str, mode: str, target: int) -> Instruction:
    """not, neg, inc or dec of a register."""
    opcode, extension = UNARY[name]
    text = f"{name} {register_name(target, mode)}"
    return Instruction(
        text, _rex(mode) + bytes((opcode,)) + _modrm(extension, target), writes_flags=name != "not"
    )


def move(mode: str, source: int, target: int) -> Instruction:
    """mov between registers."""
    text = f"mov {register_name(source, mode)}, {register_name(target, mode)}"
    return Instruction(text, _rex(mode) + b"\x89" + _modrm(source, target), writes_flags=False)


def exchange(mode: str, source: int, target: int) -> Instruction:
    """xchg of two registers."""
    text = f"xchg {register_name(source, mode)}, {register_name(target, mode)}"
    return Instruction(text, _rex(mode) + b"\x87" + _modrm(source, target), writes_flags=False)


def load(mode: str, target: int, value: int) -> Instruction:
    """mov of a number of the mode's width."""
    width = WIDTHS[mode] // 8
    if not 0 <= value < 1 << (8 * width):
        raise UsageError(f"mov of {value:#x}: {8 * width} bits in {mode} mode")
    opcode = "movabs" if mode == "long" else "mov"
    code = _rex(mode) + bytes((0xB8 + target,)) + value.to_bytes(width, "little")
    return Instruction(f"{opcode} ${value:#x}, {register_name(target, mode)}", code, writes_flags=False)


def shift(name: str, mode: str, count: int, target: int) -> Instruction:
    """shl, shr or sar by 1: the only count for which OF is defined."""
    extension = SHIFTS[name]
    if count != 1:
        raise UsageError(f"{name} by {count}: only by 1, other counts leave OF undefined")
    text = f"{name} {register_name(target, mode)}"
    return Instruction(text, _rex(mode) + b"\xd1" + _modrm(extension, target), undefined=UNDEFINED_AF)


def out(port: int) -> Instruction:
    """``out %al, $port``."""
    if not 0 <= port <= 0xFF:
        raise UsageError(f"out to port {port:#x}: 0x0 to 0xff here")
    return Instruction(f"out %al, ${port:#x}", bytes((0xE6, port)), writes_flags=False)


def read_port(port: int) -> Instruction:
    """``in $port, %al``."""
    if not 0 <= port <= 0xFF:
        raise UsageError(f"in from port {port:#x}: 0x0 to 0xff here")
    return Instruction(f"in ${port:#x}, %al", bytes((0xE4, port)), writes_flags=False)


NOP = Instruction("nop", b"\x90", writes_flags=False)
HLT = Instruction("hlt", b"\xf4", writes_flags=False)


class Sequence(tuple[Instruction, ...]):
    """Instructions in a row, for one mode; ``code`` ends with ``hlt``.

    ``defined_flags`` masks RFLAGS down to what is the same everywhere at the end.
    """

    mode: str

    def __new__(cls, mode: str, instructions: Iterable[Instruction]) -> Sequence:
        self = super().__new__(cls, tuple(instructions))
        self.mode = mode
        return self

    @property
    def code(self) -> bytes:
        """Machine code, with a ``hlt`` behind it."""
        return b"".join(each.code for each in self) + HLT.code

    @property
    def source(self) -> str:
        """The same as assembly for ``guest.asm``."""
        return "; ".join([*(each.text for each in self), HLT.text])

    @property
    def defined_flags(self) -> int:
        """Status flags that the last instruction which writes flags defines."""
        mask = STATUS_FLAGS
        for each in self:
            if each.writes_flags:
                mask = (mask | STATUS_FLAGS) & ~each.undefined
        return mask

    def __repr__(self) -> str:
        return f"program({self.source!r}, mode={self.mode!r}, code={self.code.hex()!r})"


def program(source: str, *, mode: str, code: str) -> Sequence:
    """What the ``repr`` of a sequence evaluates to: the same code as one instruction."""
    body = bytes.fromhex(code)[: -len(HLT.code)]
    text = source.removesuffix(HLT.text).removesuffix("; ")
    return Sequence(mode, [Instruction(text, body)] if body else [])
