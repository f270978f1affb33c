"""The crash report on stderr: which vCPU, registers, the code at RIP disassembled, and the last exits."""

from __future__ import annotations

from kvmpy.cli.report import describe_record, record_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.crash import Crash
    from kvmpy.machine.machine import Machine

ROWS = (("rax", "rbx", "rcx", "rdx"), ("rsi", "rdi", "rbp", "rsp"), ("r8", "r9", "r10", "r11"),
        ("r12", "r13", "r14", "r15"), ("rip", "rflags"))  # fmt: skip


def render(machine: Machine, crash: Crash) -> str:
    """The report as text, lines of up to about 100 characters."""
    lines = [f"kvmpy: vCPU {crash.vcpu} can't go on: {crash.what}", ""]
    for row in ROWS:
        lines.append("  " + "  ".join(f"{name:>6} {crash.registers[name]:016x}" for name in row))
    lines.append("  " + "  ".join(f"{name:>6} {value:x}" for name, value in crash.system.items()))
    for group in (("cs", "ss"), ("ds", "es"), ("fs", "gs"), ("tr", "ldt")):
        lines.append("  " + "   ".join(_segment(name, *crash.segments[name]) for name in group))
    lines += ["", f"  {crash.mode}-bit code at {crash.code_at:#x}:"]
    lines += [f"    {line}" for line in disassemble(crash.code, crash.code_at, crash.mode)]
    if crash.history:
        lines += ["", "  last exits:"]
        lines += [f"    {describe_record(record_fields(machine, record))}" for record in crash.history]
    return "\n".join(lines) + "\n"


def _segment(name: str, selector: int, base: int, limit: int) -> str:
    return f"{name:>6} {selector:04x} base {base:016x} limit {limit:08x}"


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
