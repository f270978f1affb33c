"""The same instructions on the kvm and the translate engine: a generator, both engines, and what must be equal.

``differential.py MODE FIRST COUNT`` tries that many sequences (MODE: 16, 32, 64 or 643 for ring 3 of long mode), each
from its seed, and prints the differences. KVM is the reference: its emulator on hosts without hardware virtualization.
"""

from __future__ import annotations

import mmap
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kvmpy._native import ffi
from kvmpy.x86 import entry
from kvmpy.x86.entry import EntryState

SIZE = 1 << 20
ORIGIN, DATA, STACK, HANDLERS = 0x1000, 0x6000, 0x9000, 0xA000
DATA_SIZE = 0x1000
SLOT = 0x200  # bytes of one sequence in a batch
CF, PF, AF, ZF, SF, OF = 1, 4, 16, 64, 128, 2048
ARITHMETIC = CF | PF | AF | ZF | SF | OF
COMPARED_FLAGS = 0x3F7FD5 & ~(1 << 16)  # RF: pushed by faults, and gone at the HLT in the handler

UNDEFINED = {
    "and": AF, "or": AF, "xor": AF, "test": AF,
    "shl": AF | OF, "shr": AF | OF, "sar": AF, "rol": OF, "ror": OF, "rcl": OF, "rcr": OF,
    "shld": AF | OF, "shrd": AF | OF,
    "mul": SF | ZF | AF | PF, "imul": SF | ZF | AF | PF, "div": ARITHMETIC, "idiv": ARITHMETIC,
    "bt": OF | SF | AF | PF, "bts": OF | SF | AF | PF, "btr": OF | SF | AF | PF, "btc": OF | SF | AF | PF,
    "bsf": CF | OF | SF | AF | PF, "bsr": CF | OF | SF | AF | PF,
    "daa": OF, "das": OF, "aaa": OF | SF | ZF | PF, "aas": OF | SF | ZF | PF,
    "aam": OF | AF | CF | SF | ZF, "aad": OF | AF | CF | SF | ZF,  # SF and ZF: KVM's emulator takes them from EAX
}  # fmt: skip
"""Arithmetic flags an instruction leaves undefined (SDM vol. 1, appendix A): cleared after it, so never compared."""

CONDITIONS = ["o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g"]
REGISTERS = {
    8: ["al", "bl", "cl", "dl", "ah", "bh", "ch", "dh"],
    16: ["ax", "bx", "cx", "dx", "si", "di", "bp"],
    32: ["eax", "ebx", "ecx", "edx", "esi", "edi", "ebp"],
    64: ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r12", "r13", "r15"],
}
POINTERS = {8: "byte ptr", 16: "word ptr", 32: "dword ptr", 64: "qword ptr"}


class Generator:
    """Writes sequences of instructions for one mode."""

    def __init__(self, bits: int, source: random.Random, ring: int = 0, name: int = 0) -> None:
        self.bits = bits
        self.name, self.labels = name, 0
        self.source = source
        # A host without hardware virtualization runs ring 3 natively, on its own segments.
        kinds = {
            name: kind
            for name, kind in KINDS.items()
            if not ring or name not in ("segment", "system", "fault")
        }
        self.kinds = list(kinds)
        self.weights = [weight for weight, _ in kinds.values()]

    def width(self, *allowed: int) -> int:
        widths = allowed or (8, 16, 32, 64)
        return self.source.choice([width for width in widths if width <= max(self.bits, 32)])

    def register(self, width: int) -> str:
        return self.source.choice(REGISTERS[width])

    def memory(self, width: int) -> str:
        """Somewhere in the data, or (seldom) where a register points."""
        choice = self.source.random
        if choice() < 0.04 and self.bits != 16:  # segment limits aren't checked
            return f"{POINTERS[width]} [{'rbx' if self.bits == 64 else 'ebx'}]"
        return self.data(width)

    def data(self, width: int) -> str:
        """Memory that is there and holds what is written to it."""
        return f"{POINTERS[width]} [{DATA + self.source.randrange(DATA_SIZE - 16):#x}]"

    def immediate(self, width: int) -> int:
        bits = min(width, 32)
        special = [0, 1, 2, 0x7F, (1 << (bits - 1)) - 1, 1 << (bits - 1), (1 << bits) - 1]
        value = self.source.choice(special) if self.source.random() < 0.4 else self.source.getrandbits(bits)
        return value - (1 << 32) if width == 64 and value >> 31 else value

    def operands(self, width: int) -> str:
        """Two operands, of which one may be in memory."""
        pick = self.source.randrange(5)
        if pick == 0:
            return f"{self.register(width)}, {self.immediate(width)}"
        if pick == 1:
            return f"{self.memory(width)}, {self.immediate(width)}"
        if pick == 2:
            return f"{self.memory(width)}, {self.plain(width)}"
        if pick == 3:
            return f"{self.plain(width)}, {self.memory(width)}"
        return f"{self.plain(width)}, {self.plain(width)}"

    def plain(self, width: int) -> str:
        """A register that goes with a REX prefix, too."""
        return self.source.choice(REGISTERS[width][:4] if width == 8 else REGISTERS[width])

    def either(self, width: int) -> str:
        return self.memory(width) if self.source.random() < 0.4 else self.plain(width)

    def instruction(self) -> str:
        kind = self.source.choices(self.kinds, self.weights)[0]
        text: str = KINDS[kind][1](self)
        name = text.split("\n")[-1].strip().removeprefix("lock ").split()[0]
        undefined = UNDEFINED.get(name, 0)
        if not undefined:
            return text
        push, pop, top = {
            16: ("pushf", "popf", "[esp]"),
            32: ("pushfd", "popfd", "[esp]"),
            64: ("pushfq", "popfq", "[rsp]"),
        }[self.bits]
        if self.bits == 16:
            return f"{text}\n pushf\n pop bp\n and bp, {0xFFFF & ~undefined:#x}\n push bp\n popf"
        return f"{text}\n {push}\n and dword ptr {top}, {~undefined}\n {pop}"

    def sequence(self) -> str:
        count = self.source.randrange(1, 9)
        lines = [self.instruction() for _ in range(count)]
        return "\n".join(lines) + "\n hlt"


def _alu(g: Generator) -> str:
    width = g.width()
    name = g.source.choice(["add", "adc", "sub", "sbb", "and", "or", "xor", "cmp", "test"])
    operands = g.operands(width)
    if name == "test":
        first, second = operands.split(", ")
        operands = f"{second}, {first}" if "ptr" in second else operands
    return f"{name} {operands}"


def _one(g: Generator) -> str:
    width = g.width()
    name = g.source.choice(["inc", "dec", "neg", "not", "mul", "imul", "div", "idiv"])
    return f"{name} {g.either(width)}"


def _shift(g: Generator) -> str:
    width = g.width()
    name = g.source.choice(["shl", "shr", "sar", "rol", "ror", "rcl", "rcr"])
    count = g.source.choice(["cl", "1", str(g.source.randrange(32))])
    return f"{name} {g.either(width)}, {count}"


def _double_shift(g: Generator) -> str:
    width = g.width(16, 32, 64)
    name = g.source.choice(["shld", "shrd"])
    return f"{name} {g.either(width)}, {g.plain(width)}, {g.source.randrange(1, 16)}"


def _bits(g: Generator) -> str:
    width = g.width(16, 32, 64)
    name = g.source.choice(["bt", "bts", "btr", "btc"])
    second = str(g.source.randrange(64)) if g.source.random() < 0.5 else ""
    if second:
        return f"{name} {g.either(width)}, {second}"
    return f"{name} {g.plain(width)}, {g.plain(width)}"


def _scan(g: Generator) -> str:
    width = g.width(16, 32, 64)
    # The result for 0 is undefined: no MMIO.
    source = g.data(width) if g.source.random() < 0.4 else g.plain(width)
    return f"or {source}, {g.source.choice([1, 16, 64])}\n {g.source.choice(['bsf', 'bsr'])} {g.plain(width)}, {source}"


def _move(g: Generator) -> str:
    width = g.width()
    pick = g.source.randrange(6)
    if pick == 0:
        return f"mov {g.operands(width)}"
    if pick == 1:
        wide = g.width(32, 64) if g.bits == 64 else 32
        narrow = g.source.choice([8, 16])
        return f"{g.source.choice(['movzx', 'movsx'])} {g.plain(wide)}, {g.either(narrow)}"
    if pick == 2:
        return f"xchg {g.either(width)}, {g.plain(width)}"
    if pick == 3:
        wide = g.width(16, 32, 64)
        return f"cmov{g.source.choice(CONDITIONS)} {g.plain(wide)}, {g.either(wide)}"
    if pick == 4:
        # What faults or begins anew sees flags that were half worked out.
        place = g.data(8) if g.source.random() < 0.4 else g.plain(8)
        return f"set{g.source.choice(CONDITIONS)} {place}"
    return f"bswap {g.plain(g.width(32, 64))}"


def _wide(g: Generator) -> str:
    names = ["cbw", "cwde", "cwd", "cdq", "lahf", "sahf", "clc", "stc", "cmc", "cld", "nop"]
    names += ["cdqe", "cqo"] if g.bits == 64 else ["daa", "das", "aaa", "aas", "aam 10", "aad 10", "salc"]
    if g.bits == 64:
        names = [name for name in names if name not in ("lahf", "sahf")]
    name = g.source.choice(names)
    return ".byte 0xd6" if name == "salc" else name


def _atomic(g: Generator) -> str:
    width = g.width()
    name = g.source.choice(["xadd", "cmpxchg"])
    lock = g.source.choice(["", "lock "])
    text = f"{lock}{name} {g.memory(width)}, {g.plain(width)}"
    # The translator takes the upper half of RAX away when it succeeds, too.
    return f"{text}\n mov eax, eax" if (g.bits, name, width) == (64, "cmpxchg", 32) else text


def _stack(g: Generator) -> str:
    width = g.bits
    pick = g.source.randrange(5)
    if pick == 0:
        return f"push {g.either(width)}"
    if pick == 1:
        return f"pop {g.either(width)}"
    if pick == 2:
        return f"push {g.source.randrange(-128, 128)}"
    if pick == 3:
        return f"enter {g.source.randrange(64)}, 0\n leave"
    return {16: "pushf\n popf", 32: "pushfd\n popfd", 64: "pushfq\n popfq"}[g.bits]


def _string(g: Generator) -> str:
    si, di, cx = {16: ("si", "di", "cx"), 32: ("esi", "edi", "ecx"), 64: ("rsi", "rdi", "rcx")}[g.bits]
    name = g.source.choice(["movs", "stos", "lods", "cmps", "scas"])
    width = g.width()
    suffix = {8: "b", 16: "w", 32: "d", 64: "q"}[width]
    repeat = (
        g.source.choice(["", "rep ", "repe ", "repne "])
        if name in ("cmps", "scas")
        else g.source.choice(["", "rep "])
    )
    setup = f"mov {si}, {DATA + 0x100}\n mov {di}, {DATA + 0x400 + g.source.randrange(64)}"
    setup += f"\n mov {cx}, {g.source.randrange(9)}"
    return f"{setup}\n {g.source.choice(['cld', 'std', 'cld'])}\n {repeat}{name}{suffix}\n cld"


def _branch(g: Generator) -> str:
    g.labels += 1
    label = f"l{g.name}_{g.labels}"
    pick = g.source.randrange(4)
    cx = {16: "cx", 32: "ecx", 64: "rcx"}[g.bits]
    skipped = f"mov {g.plain(32)}, {g.immediate(32)}"
    if pick == 0:
        return f"j{g.source.choice(CONDITIONS)} {label}\n {skipped}\n {label}:"
    if pick == 1:
        return f"mov {cx}, {g.source.randrange(1, 5)}\n {label}: add eax, 3\n loop {label}"
    if pick == 2:
        return f"call {label}\n {skipped}\n jmp {label}x\n {label}: inc edx\n ret\n {label}x:"
    return f"jmp {label}\n {skipped}\n {label}:"


def _segment(g: Generator) -> str:
    selectors = [0, 8, 0x10, 0x13, 0x18, 0x1B, 0x20, 0x23, 0x28, 0x38, 0x48, 0x50, 0x58, 0x78, 0xFFF8]
    value = g.source.choice(selectors) if g.bits != 16 else g.source.randrange(0x400)
    # Translated code doesn't check types and limits of segments: only those that nothing uses.
    name = g.source.choice(["fs", "gs"] if g.bits == 32 else ["es", "fs", "gs"])
    pick = g.source.randrange(3)
    if g.bits == 16:
        return f"mov ax, {name}" if pick == 0 else f"mov ax, {value}\n mov {name}, ax"
    if pick == 0:
        return f"mov eax, {value}\n mov {name}, ax"
    if pick == 1:
        return f"mov eax, {name}"
    return f"mov eax, {value}\n " + g.source.choice(["lsl ebx, eax", "lar ebx, eax", "verr ax", "verw ax"])


def _system(g: Generator) -> str:
    texts = [
        "mov eax, cr0",
        "mov rax, cr0",
        "smsw ax",
        "sldt ax",
        "str ax",
        "sgdt [0x6800]",
        "sidt [0x6800]",
        "mov eax, cr2",
        "cli",
        "sti\n nop",
        "clts",
    ]
    if g.bits == 64:
        texts = [text for text in texts if text not in ("mov eax, cr0", "mov eax, cr2")] + [
            "mov rax, cr4",
            "swapgs",
        ]
    else:
        texts.remove("mov rax, cr0")
    return g.source.choice(texts)


def _fault(g: Generator) -> str:
    texts = ["ud2", "xor ecx, ecx\n div ecx", "mov eax, 0x78\n mov fs, ax"]
    if g.bits == 16:
        texts = ["ud2", "xor cx, cx\n div cx", "int 0x21", "int3"]
    if g.bits == 64:
        texts.append("mov rax, 0x8000000000000000\n mov al, [rax]")
        texts.append("mov rax, 0x700000000000\n mov [rax], al")
    return g.source.choice(texts)


KINDS: dict[str, tuple[int, Any]] = {
    "alu": (30, _alu), "one": (10, _one), "shift": (10, _shift), "double": (3, _double_shift), "bits": (5, _bits),
    "scan": (3, _scan), "move": (15, _move), "wide": (5, _wide), "atomic": (4, _atomic), "stack": (6, _stack),
    "string": (6, _string), "branch": (6, _branch), "segment": (3, _segment), "system": (2, _system),
    "fault": (1, _fault),
}  # fmt: skip


def assemble(sequences: list[str], bits: int) -> list[bytes]:
    """Each as if at ORIGIN: all addresses in them are absolute or relative to themselves."""
    text = ".intel_syntax noprefix\n" + f".code{bits}\n"
    for number, sequence in enumerate(sequences):
        text += f".org {number * SLOT}, 0xf4\n {sequence}\n"
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "a.s").write_text(text + f".org {len(sequences) * SLOT}, 0xf4\n")
        subprocess.run(["as", "--64", "a.s", "-o", "a.o"], cwd=base, check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "a.o", "a"], cwd=base, check=True)
        data = (base / "a").read_bytes()
    return [data[at : at + SLOT] for at in range(0, len(sequences) * SLOT, SLOT)]


def start_state(bits: int, ring: int) -> EntryState:
    """Where a sequence starts: with a HLT for each vector."""
    if bits == 16:
        return entry.real_mode(0, ORIGIN, sp=STACK)
    idt = {vector: HANDLERS + vector * 16 for vector in range(32)}
    common: dict[str, Any] = {
        "stack": STACK,
        "idt": idt,
        "ring": ring,
        "tables_at": 0x40000,
        "memory_size": SIZE,
    }
    if bits == 32:
        return entry.protected_mode(ORIGIN, **common)
    return entry.long_mode(ORIGIN, **common)


class Side:
    """A vCPU of one engine, used for one sequence after the other."""

    def __init__(self, system: Any) -> None:
        self.vm = system.create_vm()
        self.memory = mmap.mmap(-1, SIZE)
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(self.memory)))
        self.vm.set_user_memory_region(0, 0, SIZE, address)
        self.vcpu = self.vm.create_vcpu(0)
        self.sregs = self.vcpu.get_sregs()
        self.state: EntryState | None = None

    def load(self, state: EntryState, code: bytes, data: bytes, values: dict[str, int]) -> None:
        memory = self.memory
        if self.state is not state:
            self.clear()
            self.state = state
            self.blank = self.vcpu.get_sregs()
        memory[0 : ORIGIN + SLOT] = self._vectors(state) + code
        memory[DATA : DATA + DATA_SIZE] = data
        memory[STACK - 0x400 : STACK + 0x100] = bytes(0x500)
        memory[HANDLERS : HANDLERS + 4096] = b"\xf4" * 4096
        for gpa, table in state.memory:
            memory[gpa : gpa + len(table)] = table
        self._registers(state, values)
        if hasattr(self.vm, "wrote"):
            self.vm.wrote(0, SIZE)

    def clear(self) -> None:
        """Sequences that KVM gave up in the middle of leave different memory behind."""
        self.memory[0:SIZE] = bytes(SIZE)

    def _vectors(self, state: EntryState) -> bytes:
        if state.mode != "real":
            return bytes(ORIGIN)
        table = b"".join((HANDLERS + vector * 16).to_bytes(2, "little") + bytes(2) for vector in range(256))
        return table.ljust(ORIGIN, b"\0")

    def _registers(self, state: EntryState, values: dict[str, int]) -> None:
        sregs = self.sregs
        for name, segment in state.segments.items():
            for field in FIELDS:
                setattr(getattr(sregs, name), field, getattr(segment, field))
        for name in ("gdt", "idt"):
            table = getattr(state, name)
            getattr(sregs, name).base, getattr(sregs, name).limit = table.base, table.limit
        for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
            setattr(sregs, name, getattr(state, name))
        self.vcpu.set_sregs(sregs)
        regs = ffi.new("struct kvm_regs *")
        for name, _ in ffi.typeof("struct kvm_regs").fields or []:
            setattr(regs, name, values.get(name, state.reg(name)))
        self.vcpu.set_regs(regs)

    def run(self) -> dict[str, Any]:
        """To the HLT; the state to be compared."""
        run, error, accesses = self.vcpu.run, 0, []
        for _ in range(MOST_EXITS):
            error = self.vcpu.enter()
            if error or run.exit_reason != MMIO:
                break
            data = ffi.buffer(run.mmio.data, run.mmio.len)
            accesses.append((run.mmio.phys_addr, bytes(data) if run.mmio.is_write else len(data)))
            if not run.mmio.is_write:
                data[:] = bytes(len(data))
        regs, sregs = self.vcpu.get_regs(), self.vcpu.get_sregs()
        seen: dict[str, Any] = {"error": error, "exit": run.exit_reason, "mmio": accesses}
        for name, _ in ffi.typeof("struct kvm_regs").fields or []:
            seen[name] = getattr(regs, name)
        seen["rflags"] &= COMPARED_FLAGS
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            segment = getattr(sregs, name)
            cached = (segment.base, segment.limit, segment.type, segment.dpl)
            seen[name] = (segment.selector, *(() if segment.unusable or not segment.present else cached))
        for name in ("cr0", "cr2", "cr3", "cr4"):
            seen[name] = getattr(sregs, name)
        seen["data"] = self.memory[DATA : DATA + DATA_SIZE]
        seen["stack"] = self.memory[STACK - 0x400 : STACK + 0x100]
        return seen


FIELDS = ("base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable")
MMIO, INTERNAL_ERROR = 6, 17
MOST_EXITS = 60


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What isn't equal; nothing where KVM couldn't emulate the instruction."""
    if INTERNAL_ERROR in (one["exit"], other["exit"]):
        return {} if one["exit"] == INTERNAL_ERROR else {"exit": (one["exit"], other["exit"])}
    found: dict[str, Any] = {}
    if any(gpa & 0xFFF > 0xFF0 for gpa, _ in one["mmio"] + other["mmio"]):
        return found  # across a page's end: if the next isn't mapped, the translator finds out too late
    for name, value in one.items():
        if value == other[name]:
            continue
        if isinstance(value, bytes):
            found[name] = [
                (at, a, b) for at, (a, b) in enumerate(zip(value, other[name], strict=True)) if a != b
            ][:8]
        else:
            found[name] = (value, other[name])
    return found


def inputs(source: random.Random, bits: int) -> tuple[bytes, dict[str, int]]:
    """Data in memory and in registers."""
    names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"] + (
        [f"r{n}" for n in range(8, 16)] if bits == 64 else []
    )
    special = [
        0,
        1,
        0x7F,
        0x80,
        0xFF,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x7FFFFFFF,
        0x80000000,
        0xFFFFFFFF,
        1 << 63,
        (1 << 64) - 1,
    ]
    mask = (1 << (64 if bits == 64 else 32)) - 1
    values = {
        n: (source.choice(special) if source.random() < 0.3 else source.getrandbits(64)) & mask for n in names
    }
    values["rbx"] = DATA + source.randrange(DATA_SIZE - 16) if source.random() < 0.9 else values["rbx"]
    # Natively run ring 3 can't be without IF.
    values["rflags"] = 0x202 | source.getrandbits(12) & ARITHMETIC
    return source.randbytes(DATA_SIZE), values


def main(mode: int, first: int, count: int) -> None:
    from kvmpy import kvm, translate

    bits, ring = (64, 3) if mode == 643 else (mode, 0)
    sides = [Side(kvm.System()), Side(translate.System())]
    state = start_state(bits, ring)
    failures = skipped = 0
    for start in range(first, first + count, 200):
        seeds = range(start, min(start + 200, first + count))
        texts = [Generator(bits, random.Random(f"{mode} {seed}"), ring, seed).sequence() for seed in seeds]
        for seed, text, code in zip(seeds, texts, assemble(texts, bits), strict=True):
            data, values = inputs(random.Random(f"{mode} {seed} data"), bits)
            seen = []
            for side in sides:
                side.load(state, code, data, values)
                seen.append(side.run())
            if seen[0]["exit"] == INTERNAL_ERROR:
                skipped += 1
                for side in sides:
                    side.clear()
            found = differences(*seen)
            if found:
                failures += 1
                print(f"seed {seed}: {found}\n {text}\n", flush=True)
                if failures >= 40:
                    break
        if failures >= 40:
            break
    print(
        f"mode {mode}: {count} sequences from {first}, {failures} differ, {skipped} not emulated by KVM",
        flush=True,
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
