"""What is known of a vCPU that can't go on, kept as plain values so that it outlives the machine."""

from __future__ import annotations

from os.path import exists

from kvmpy.abi.exits import KVM_EXIT_SHUTDOWN
from kvmpy.errors import KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.ring import Record

CODE_BYTES = 16
AMD_V = "/sys/module/kvm_amd"


class Crash:
    """``what`` happened on ``vcpu``; its registers, the ``code`` at RIP and the last exits before it.

    ``remark`` says what one must know beside it: why nothing helped, or that the registers aren't what they seem; it is
    empty where there is no such thing.
    """

    __slots__ = (
        "code", "code_at", "history", "mode", "registers", "remark", "segments", "system", "vcpu", "what",
    )  # fmt: skip

    def __init__(self, cpu: Cpu, what: str, history: list[Record], remark: str = "") -> None:
        self.vcpu = cpu.index
        self.what = what
        self.remark = remark or _of_registers(cpu)
        self.history = history
        self.registers: dict[str, int] = dict(cpu.regs.items())
        sregs = cpu.sregs
        self.system: dict[str, int] = {
            name: getattr(sregs, name) for name in ("cr0", "cr2", "cr3", "cr4", "efer")
        }
        self.segments: dict[str, tuple[int, int, int]] = {
            name: (getattr(sregs, name).selector, getattr(sregs, name).base, getattr(sregs, name).limit)
            for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt")
        }
        self.mode = mode_of(cpu)
        self.code_at = linear_rip(cpu)
        self.code = code_at(cpu, self.code_at)


def _of_registers(cpu: Cpu) -> str:
    """APM vol. 2 ch. 15.14.3: after a shutdown intercept the VMCB is undefined, so KVM resets the vCPU."""
    if (
        not cpu.machine.engine.in_kernel
        or cpu.native.run.exit_reason != KVM_EXIT_SHUTDOWN
        or not exists(AMD_V)
    ):
        return ""
    return "KVM has reset the vCPU, as it must on AMD-V: these are its registers after that, not at the fault"


def instruction(cpu: Cpu) -> str:
    """The name of the instruction at RIP, as far as it can be told."""
    from kvmpy.machine.disassembly import mnemonic

    return mnemonic(code_at(cpu, linear_rip(cpu)), mode_of(cpu))


def mode_of(cpu: Cpu) -> int:
    """Bits of the code the vCPU runs: 16, 32 or 64."""
    sregs = cpu.sregs
    if sregs.efer & (1 << 10) and sregs.cs.l:
        return 64
    return 32 if sregs.cr0 & 1 and sregs.cs.db else 16


def linear_rip(cpu: Cpu) -> int:
    """The linear address the vCPU fetches its next instruction from."""
    rip = int(cpu.regs.rip)
    if mode_of(cpu) == 64:
        return rip
    return (int(cpu.sregs.cs.base) + rip) & 0xFFFFFFFF


def code_at(cpu: Cpu, linear: int, length: int = CODE_BYTES) -> bytes:
    """Up to ``length`` bytes of guest memory at a linear address; what isn't mapped to RAM is left out."""
    memory = cpu.machine.memory
    code = b""
    while len(code) < length:
        gpa = cpu.translate(linear + len(code))
        if gpa is None:
            break
        step = min(length - len(code), 4096 - gpa % 4096)
        try:
            code += memory.read(gpa, step)
        except KvmpyError:
            break
    return code
