"""Machine code as text, where capstone is there."""

from __future__ import annotations


def disassemble(code: bytes, address: int, bits: int) -> list[str]:
    """A line an instruction; plain bytes where capstone (kvmpy[debug]) isn't installed or there is nothing to read."""
    if not code:
        return ["(nothing mapped to RAM there)"]
    try:
        import capstone
    except ImportError:
        return [f"{code.hex(' ')}   (pip install 'kvmpy[debug]' to see instructions)"]
    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    lines = []
    done = 0
    for _, size, mnemonic, operands in capstone.Cs(capstone.CS_ARCH_X86, modes[bits]).disasm_lite(
        code, address
    ):
        text = code[done : done + size].hex(" ")
        lines.append(f"{address + done:#x}  {text:<24} {mnemonic} {operands}".rstrip())
        done += size
    if done < len(code):
        lines.append(f"{address + done:#x}  {code[done:].hex(' ')}")
    return lines
