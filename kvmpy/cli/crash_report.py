"""The crash report on stderr: which vCPU, registers, the code at RIP disassembled, and the last exits."""

from __future__ import annotations

from kvmpy.cli.report import describe_record, record_fields
from kvmpy.machine.disassembly import disassemble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.crash import Crash
    from kvmpy.machine.machine import Machine

ROWS = (("rax", "rbx", "rcx", "rdx"), ("rsi", "rdi", "rbp", "rsp"), ("r8", "r9", "r10", "r11"),
        ("r12", "r13", "r14", "r15"), ("rip", "rflags"))  # fmt: skip


def render(machine: Machine, crash: Crash) -> str:
    """The report as text, lines of up to about 100 characters."""
    lines = [f"kvmpy: vCPU {crash.vcpu} can't go on: {crash.what}"]
    if crash.remark:
        lines.append(f"kvmpy: {crash.remark}")
    lines.append("")
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
