"""Random programs for ring 0 of long mode, made of what KVM's instruction emulator can't do among what it can.

``rescue_programs.py FIRST COUNT`` runs that many, each from its seed, on the kvm engine with rescue and on the
translate engine, and prints where they differ.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kvmpy._native import ffi
from kvmpy.boot.payload import Chunk, Payload
from kvmpy.machine.machine import Machine
from kvmpy.x86 import entry

CODE, DATA, HANDLERS, STACK = 0x100000, 0x200000, 0x180000, 0x300000
DATA_SIZE = 0x1000
FXSAVE = 0x1800
"""Where in the data the state of x87 and SSE goes."""
SLOT = 0x1000
MEMORY = "4M"
PATIENCE = 20.0
FLAGS_LEFT_OUT = 1 << 4 | 1 << 16  # AF is undefined after most of these; RF
VECTORS = 32
GENERAL = ["rax", "rbx", "rcx", "rdx", "rsi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"]
PACKED = [
    "addps", "subps", "mulps", "minps", "maxps", "andps", "orps", "xorps", "andnps", "unpcklps", "unpckhps",
    "divps", "sqrtps", "addpd", "subpd", "mulpd", "divpd", "sqrtpd", "minpd", "maxpd", "cvtdq2ps", "cvttps2dq",
    "cvtps2dq", "paddb", "paddw", "paddd", "paddq", "psubb", "psubd", "pmullw", "pmulhw", "pmuludq", "pmaddwd",
    "pand", "por", "pxor", "pandn", "pcmpeqb", "pcmpgtw", "pcmpeqd", "punpcklbw", "punpckhqdq", "packsswb",
    "packuswb", "pavgb", "psadbw", "pminub", "pmaxsw", "pshufb", "phaddw", "pabsd", "pmulhrsw", "psignb", "haddps",
    "addsubpd", "movshdup", "movddup", "pmulld", "pminsd", "pmaxud", "pcmpeqq", "pcmpgtq", "ptest", "packusdw",
]  # fmt: skip
SCALAR = ["addss", "subss", "mulss", "divss", "sqrtss", "minss", "maxss", "ucomiss", "comiss", "cvtss2sd"]
SCALAR_D = ["addsd", "subsd", "mulsd", "divsd", "sqrtsd", "minsd", "maxsd", "ucomisd", "comisd", "cvtsd2ss"]
SHUFFLES = [
    "shufps",
    "pshufd",
    "pshuflw",
    "pshufhw",
    "shufpd",
    "palignr",
    "blendps",
    "pblendw",
    "cmpps",
    "roundps",
]
X87 = [
    "fld1", "fldz", "fldpi", "fabs", "fchs", "faddp", "fmulp", "fsubp", "fxch", "fsqrt", "frndint", "fincstp",
    "fdecstp", "ffree st(3)", "fnclex", "fninit", "fcomip st, st(1)", "fucomi st, st(2)", "fadd st, st(1)",
    "fmul st(2), st", "fscale", "fxam", "ftst", "fwait", "fcmovb st, st(1)", "fcmovne st, st(2)", "fcompp",
    "fdivrp", "fprem",
]  # fmt: skip


class Program:
    """One random program: its text, and the state it starts in."""

    def __init__(self, seed: int) -> None:
        self.source = source = random.Random(f"rescue {seed}")
        self.seed = seed
        self.labels = 0
        self.lines = [self.line() for _ in range(source.randrange(4, 24))]
        self.data = source.randbytes(DATA_SIZE)
        self.registers = {name: source.getrandbits(64) for name in GENERAL}
        self.registers["rflags"] = 0x2 | source.getrandbits(12) & 0x8D5

    def memory(self, size: int, aligned: bool = False) -> str:
        """Somewhere in the data; seldom across its middle page's end, for the others are not far."""
        at = self.source.randrange(DATA_SIZE - 64)
        return f"[{DATA + (at & -size if aligned else at):#x}]"

    def general(self, width: int = 64) -> str:
        name = self.source.choice(GENERAL)
        if width == 64:
            return name
        return f"{name}d" if name[1:].isdigit() else f"e{name[1:]}"

    def vector(self) -> str:
        return f"xmm{self.source.randrange(16)}"

    def line(self) -> str:
        kind = self.source.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])[0]
        text: str = kind(self)
        return text

    def text(self) -> str:
        return "\n ".join(self.lines) + "\n hlt"


def _packed(p: Program) -> str:
    second = (
        p.vector()
        if p.source.random() < 0.6
        else f"xmmword ptr {p.memory(16, aligned=p.source.random() < 0.95)}"
    )
    name = p.source.choice(PACKED)
    if name == "movddup" and "ptr" in second:
        second = second.replace("xmmword", "qword")
    return f"{name} {p.vector()}, {second}"


def _scalar(p: Program) -> str:
    if p.source.random() < 0.5:
        second = p.vector() if p.source.random() < 0.6 else f"dword ptr {p.memory(4)}"
        return f"{p.source.choice(SCALAR)} {p.vector()}, {second}"
    second = p.vector() if p.source.random() < 0.6 else f"qword ptr {p.memory(8)}"
    return f"{p.source.choice(SCALAR_D)} {p.vector()}, {second}"


def _shuffle(p: Program) -> str:
    name = p.source.choice(SHUFFLES)
    bits = 3 if name == "cmpps" else 4 if name in ("roundps", "blendps") else 8
    return f"{name} {p.vector()}, {p.vector()}, {p.source.getrandbits(bits)}"


def _shift(p: Program) -> str:
    name = p.source.choice(["psllw", "psrld", "psrlq", "psraw", "psrldq", "pslldq", "psrad"])
    return f"{name} {p.vector()}, {p.source.randrange(20)}"


def _between(p: Program) -> str:
    """From one file of registers to the other."""
    return p.source.choice([
        f"movq {p.vector()}, {p.general()}",
        f"movd {p.general(32)}, {p.vector()}",
        f"cvtsi2sd {p.vector()}, {p.general()}",
        f"cvttsd2si {p.general()}, {p.vector()}",
        f"cvtsi2ss {p.vector()}, {p.general(32)}",
        f"movmskps {p.general(32)}, {p.vector()}",
        f"pmovmskb {p.general(32)}, {p.vector()}",
        f"pextrw {p.general(32)}, {p.vector()}, {p.source.randrange(8)}",
        f"pinsrq {p.vector()}, {p.general()}, {p.source.randrange(2)}",
        f"movss dword ptr {p.memory(4)}, {p.vector()}",
        f"movlps qword ptr {p.memory(8)}, {p.vector()}",
        f"movhpd {p.vector()}, qword ptr {p.memory(8)}",
        f"movntdq xmmword ptr {p.memory(16, aligned=True)}, {p.vector()}",
    ])  # fmt: skip


def _x87(p: Program) -> str:
    if p.source.random() < 0.6:
        return p.source.choice(X87)
    size, name = p.source.choice([(4, "dword"), (8, "qword")])
    return p.source.choice([
        f"fld {name} ptr {p.memory(size)}",
        f"fst {name} ptr {p.memory(size)}",
        f"fstp {name} ptr {p.memory(size)}",
        f"fld tbyte ptr {p.memory(1)}",
        f"fstp tbyte ptr {p.memory(1)}",
        f"fild {name} ptr {p.memory(size)}",
        f"fistp {name} ptr {p.memory(size)}",
        f"fisttp {name} ptr {p.memory(size)}",
        f"fadd {name} ptr {p.memory(size)}",
        f"fnstsw word ptr {p.memory(2)}",
        "fnstsw ax",
        f"fnstcw word ptr {p.memory(2)}",
    ])  # fmt: skip


def _control(p: Program) -> str:
    at = p.memory(4)
    rounding = p.source.randrange(4)
    return p.source.choice([
        f"mov dword ptr {at}, {0x1F80 | rounding << 13:#x}\n ldmxcsr dword ptr {at}",
        f"stmxcsr dword ptr {at}",
        f"mov word ptr {at}, {0x37F | rounding << 10:#x}\n fldcw word ptr {at}",
    ])  # fmt: skip


def _integer(p: Program) -> str:
    """Of general registers, and not in the emulator either."""
    other = p.general() if p.source.random() < 0.6 else f"qword ptr {p.memory(8)}"
    return p.source.choice([
        f"popcnt {p.general()}, {other}",
        f"crc32 {p.general()}, {other}",
        f"andn {p.general()}, {p.general()}, {p.general()}",
        f"pdep {p.general()}, {p.general()}, {p.general()}",
        f"rorx {p.general()}, {p.general()}, 13",
        f"shlx {p.general()}, {p.general()}, {p.general()}",
        f"adcx {p.general()}, {p.general()}",
        f"blsr {p.general()}, {p.general()}",
    ])  # fmt: skip


def _exchange(p: Program) -> str:
    """Equal half of the time."""
    at = p.memory(16, aligned=p.source.random() < 0.9)
    address = int(at[1:-1], 16)
    equal = f"mov rax, [{address:#x}]\n mov rdx, [{address + 8:#x}]\n " if p.source.random() < 0.5 else ""
    return f"{equal}{p.source.choice(['', 'lock '])}cmpxchg16b xmmword ptr {at}"


def _trap(p: Program) -> str:
    return p.source.choice(["int3", "int 0x10", "int 9", "ud2", "int 0x80"])


def _fault(p: Program) -> str:
    """In the middle of an instruction that is rescued."""
    p.labels += 1
    return p.source.choice([
        f"addps {p.vector()}, xmmword ptr [{DATA + 8:#x}]",  # not aligned: #GP
        f"mov rdi, {0x7F00_0000_0000 + p.source.getrandbits(20):#x}\n paddd {p.vector()}, xmmword ptr [rdi]",
        "mov rdi, 0x8000000000000000\n fstp qword ptr [rdi]",
        f"mov rdi, {0x7F00_0000_0000 + p.source.getrandbits(20):#x}\n movss dword ptr [rdi], {p.vector()}",
        "mov rdi, cr0\n or rdi, 8\n mov cr0, rdi\n fld1\n mulps xmm1, xmm2\n clts",
    ])  # fmt: skip


def _plain(p: Program) -> str:
    """What KVM's emulator can do."""
    return p.source.choice([
        f"add {p.general()}, {p.general()}",
        f"sub {p.general(32)}, {p.general(32)}",
        f"mov {p.general()}, qword ptr {p.memory(8)}",
        f"mov qword ptr {p.memory(8)}, {p.general()}",
        f"movaps {p.vector()}, xmmword ptr {p.memory(16, aligned=True)}",
        f"movdqu xmmword ptr {p.memory(1)}, {p.vector()}",
        f"xor {p.general()}, {p.source.getrandbits(31)}",
        f"push {p.general()}",
        f"pop {p.general()}",
        "sti\n nop\n cli",
        f"lock xadd qword ptr {p.memory(8)}, {p.general()}",
        f"fxsave [{DATA + FXSAVE:#x}]",
    ])  # fmt: skip


KINDS: list[tuple[Any, int]] = [
    (_packed, 10), (_scalar, 6), (_shuffle, 4), (_shift, 2), (_between, 6), (_x87, 10), (_control, 2), (_integer, 5),
    (_exchange, 2), (_trap, 2), (_fault, 2), (_plain, 8),
]  # fmt: skip


def handlers() -> bytes:
    """For each vector: counts it in memory, with error code and CR2; behind a fault the program goes on with the next
    instruction: each begins at a multiple of 16, so the handler rounds RIP up."""
    text = ".intel_syntax noprefix\n.code64\n"
    for vector in range(VECTORS):
        has_code = vector in (8, 10, 11, 12, 13, 14, 17)
        text += f".org {vector * 64}, 0xf4\n"
        text += f"inc dword ptr [{DATA + DATA_SIZE + 4 * vector:#x}]\n"
        if has_code:
            text += "xchg rax, [rsp]\n mov [0x201200], rax\n mov rax, cr2\n mov [0x201208], rax\n pop rax\n"
        if vector in FAULTS:
            text += "add qword ptr [rsp], 16\n and qword ptr [rsp], -16\n"
        text += "iretq\n"
    return _assemble(text + f".org {VECTORS * 64}, 0xf4\n")


FAULTS = (0, 5, 6, 7, 10, 11, 12, 13, 14, 16, 17, 19)


def assemble_text(text: str) -> bytes:
    """Machine code of Intel syntax, for 64 bits."""
    return _assemble(".intel_syntax noprefix\n.code64\n" + text)


def _assemble(text: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "a.s").write_text(text)
        subprocess.run(["as", "--64", "a.s", "-o", "a.o"], cwd=base, check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "a.o", "a"], cwd=base, check=True)
        return (base / "a").read_bytes()


def assemble(programs: list[Program]) -> list[bytes]:
    """Each as if at CODE: all addresses in them are absolute. Every instruction begins at a multiple of 16."""
    text = ".intel_syntax noprefix\n.code64\n"
    for number, program in enumerate(programs):
        text += f".org {number * SLOT}, 0xf4\n"
        for line in program.text().split("\n"):
            text += f".balign 16, 0x90\n {line}\n"
    data = _assemble(text + f".org {len(programs) * SLOT}, 0xf4\n")
    return [data[at : at + SLOT] for at in range(0, len(programs) * SLOT, SLOT)]


class Side:
    """A machine of one engine, used for one program after the other."""

    def __init__(self, engine: str) -> None:
        self.machine = Machine(MEMORY, engine=engine)
        idt = {vector: HANDLERS + vector * 64 for vector in range(VECTORS)}
        idt[0x80] = HANDLERS + 3 * 64
        self.state = entry.long_mode(
            CODE, stack=STACK, idt=idt, tables_at=0x10000, memory_size=4 << 20, avoid=[(CODE, SLOT)]
        )
        self.handlers = handlers()
        self.rescued: dict[str, int] = {}

    def close(self) -> None:
        self.machine.close()

    def run(self, program: Program, code: bytes) -> dict[str, Any]:
        """To its HLT; the state to be compared."""
        machine, cpu = self.machine, self.machine.cpus[0]
        chunks = [
            Chunk(CODE, code),
            Chunk(HANDLERS, self.handlers),
            Chunk(DATA, program.data + bytes(0x1000)),
        ]
        machine.load(Payload("flat", [*chunks, Chunk(STACK - 0x1000, bytes(0x1100))], self.state))
        cpu.regs.update(program.registers)
        self._reset_fpu()
        result = machine.run(timeout=PATIENCE)
        for name, count in result.rescued.items():
            self.rescued[name] = self.rescued.get(name, 0) + count
        seen: dict[str, Any] = {"end": result.reason, "detail": result.detail, **dict(cpu.regs.items())}
        seen["rflags"] &= ~FLAGS_LEFT_OUT
        for name in ("cs", "ss"):
            segment = getattr(cpu.sregs, name)
            seen[name] = (segment.selector, segment.base, segment.limit, segment.type, segment.dpl)
        for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
            seen[name] = getattr(cpu.sregs, name)
        seen |= self._fpu()
        # What FXSAVE and FNSTENV leave of the last instruction's place isn't kept up.
        seen["data"] = _without_places(machine.memory.read(DATA, DATA_SIZE + 0x1000))
        seen["stack"] = _without_flags(machine.memory.read(STACK - 0x1000, 0x1100))
        return seen

    def _reset_fpu(self) -> None:
        vcpu = self.machine.cpus[0].vcpu
        if self.machine.engine.name == "kvm":
            area = bytearray(4096)
            area[0:2], area[24:28] = (0x37F).to_bytes(2, "little"), (0x1F80).to_bytes(4, "little")
            area[512] = 3
            xsave = vcpu.get_xsave()
            ffi.memmove(xsave, bytes(area), 576)
            vcpu.set_xsave(xsave)
        else:
            vcpu.set_fpu(ffi.new("struct kvm_fpu *", {"fcw": 0x37F, "mxcsr": 0x1F80}))

    def _fpu(self) -> dict[str, Any]:
        vcpu = self.machine.cpus[0].vcpu
        if self.machine.engine.name == "kvm":
            area = bytes(ffi.buffer(vcpu.get_xsave(), 576))
            st = [area[32 + 16 * n : 42 + 16 * n] for n in range(8)]
            found = {"fcw": area[0:2], "fsw": area[2:4], "tags": area[4], "mxcsr": area[24:28], "st": st}
            return {**found, "xmm": [area[160 + 16 * n : 176 + 16 * n] for n in range(16)]}
        fpu = vcpu.get_fpu()
        st = [bytes(fpu.fpr[n])[:10] for n in range(8)]
        found = {"fcw": fpu.fcw.to_bytes(2, "little"), "fsw": fpu.fsw.to_bytes(2, "little"), "tags": fpu.ftwx}
        return {
            **found,
            "mxcsr": fpu.mxcsr.to_bytes(4, "little"),
            "st": st,
            "xmm": [bytes(x) for x in fpu.xmm],
        }


def _without_places(data: bytes) -> bytes:
    """Without what FXSAVE has no register for, or the place of the last instruction, which isn't kept up."""
    area = bytearray(data[FXSAVE : FXSAVE + 512])
    area[6:24] = bytes(18)
    area[28:32] = bytes(4)
    for at in range(32, 160, 16):
        area[at + 10 : at + 16] = bytes(6)
    area[416:] = bytes(96)
    return data[:FXSAVE] + bytes(area) + data[FXSAVE + 512 :]


def _without_flags(stack: bytes) -> bytes:
    """Without AF and RF where they were saved: see kvmpy.lab.lockstep."""
    words = [int.from_bytes(stack[at : at + 8], "little") for at in range(0, len(stack), 8)]
    return b"".join((w & ~FLAGS_LEFT_OUT if w < 1 << 18 else w).to_bytes(8, "little") for w in words)


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What isn't equal."""
    found: dict[str, Any] = {}
    for name, value in one.items():
        if value == other[name]:
            continue
        if name in ("data", "stack"):
            found[name] = [
                (hex(at), a, b) for at, (a, b) in enumerate(zip(value, other[name], strict=True)) if a != b
            ][:8]
        else:
            found[name] = (value, other[name])
    return found


def compare(first: int, count: int) -> tuple[list[str], dict[str, int]]:
    """Runs programs from their seeds; what differs, and what was rescued."""
    sides = [Side("kvm"), Side("translate")]
    failures = []
    try:
        for start in range(first, first + count, 50):
            programs = [Program(seed) for seed in range(start, min(start + 50, first + count))]
            for program, code in zip(programs, assemble(programs), strict=True):
                found = differences(*(side.run(program, code) for side in sides))
                if found:
                    failures.append(f"seed {program.seed}: {found}\n {program.text()}")
    finally:
        for side in sides:
            side.close()
    return failures, sides[0].rescued


if __name__ == "__main__":
    wrong, rescued = compare(int(sys.argv[1]), int(sys.argv[2]))
    print("\n".join(wrong))
    print(f"{len(wrong)} of {sys.argv[2]} differ; {sum(rescued.values())} rescued, of {len(rescued)} kinds")
