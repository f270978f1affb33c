"""Machine code as text, where capstone is there."""

from __future__ import annotations

MODES = {16: 1 << 1, 32: 1 << 2, 64: 1 << 3}
"""capstone's CS_MODE_16, _32 and _64, by the bits of the code."""


def mnemonic(code: bytes, bits: int) -> str:
    """The first instruction's name, without prefixes; "" where capstone (kvmpy[debug]) isn't there or knows none."""
    try:
        import capstone
    except ImportError:
        return ""
    for instruction in capstone.Cs(capstone.CS_ARCH_X86, MODES[bits]).disasm(code, 0, 1):
        name = str(instruction.mnemonic).split()[-1]
        # Not cmpltps and its like, which are CMPPS with an operand.
        return str(instruction.insn_name()) if name.startswith("cmp") else name
    return ""


def disassemble(code: bytes, address: int, bits: int) -> list[str]:
    """A line an instruction; plain bytes where capstone (kvmpy[debug]) isn't installed or there is nothing to read."""
    if not code:
        return ["(nothing mapped to RAM there)"]
    try:
        import capstone
    except ImportError:
        return [f"{code.hex(' ')}   (pip install 'kvmpy[debug]' to see instructions)"]
    lines = []
    done = 0
    for _, size, mnemonic, operands in capstone.Cs(capstone.CS_ARCH_X86, MODES[bits]).disasm_lite(
        code, address
    ):
        text = code[done : done + size].hex(" ")
        lines.append(f"{address + done:#x}  {text:<24} {mnemonic} {operands}".rstrip())
        done += size
    if done < len(code):
        lines.append(f"{address + done:#x}  {code[done:].hex(' ')}")
    return lines
