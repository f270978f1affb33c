"""Hand-assembled guests on a vCPU of the translate engine, without a machine around it."""

from __future__ import annotations

import mmap
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pytest

from kvmpy._native import ffi, lib
from kvmpy.errors import EngineError
from kvmpy.translate import System
from kvmpy.x86 import entry
from kvmpy.x86.entry import EntryState

ORIGIN = 0x1000
SIZE = 4 << 20
STACK = 0x8000
IDT, GDT, TSS, HANDLERS = 0x20000, 0x21000, 0x22000, 0x23000
IO, HYPERCALL, DEBUG, HLT, MMIO, IRQ_WINDOW, SHUTDOWN, INTERNAL_ERROR, RDMSR, WRMSR = (
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    17,
    29,
    30,
)
REGISTERS = [name for name, _ in ffi.typeof("struct kvm_regs").fields or []]
SEGMENT = ("base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable")


def system() -> System:
    """The engine, or a skip that says why there is none."""
    try:
        return System()
    except EngineError as error:
        pytest.skip(f"engine translate: {error}")


def assemble(source: str, bits: int = 64, origin: int = ORIGIN) -> bytes:
    """Intel syntax, as flat code for an address."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "a.s").write_text(f".intel_syntax noprefix\n.code{bits}\n{source}\n")
        subprocess.run(["as", "--64", "a.s", "-o", "a.o"], cwd=base, check=True)
        command = ["ld", f"-Ttext={origin:#x}", "--oformat=binary", "-e", "0", "-o", "a", "a.o"]
        subprocess.run(command, cwd=base, check=True, stderr=subprocess.DEVNULL)
        return (base / "a").read_bytes()


class Seen(NamedTuple):
    """An exit, as far as tests look at it."""

    reason: int
    rip: int
    is_write: bool = False
    address: int = 0
    size: int = 0
    elements: int = 1
    data: bytes = b""


class Guest:
    """One vCPU with 4 MiB of memory at 0, at the start of its code in real, protected or long mode."""

    def __init__(self, code: str | bytes, bits: int = 64, *, state: EntryState | None = None) -> None:
        self.vm = system().create_vm()
        self.vcpu = self.vm.create_vcpu(0)
        self.memory = mmap.mmap(-1, SIZE)
        self.address = int(ffi.cast("uintptr_t", ffi.from_buffer(self.memory)))
        self.vm.set_user_memory_region(0, 0, SIZE, self.address)
        self.bits = bits
        self.write(ORIGIN, assemble(code, bits) if isinstance(code, str) else code)
        self.load(state or entry_state(bits))

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.vm.close()

    @property
    def run(self) -> Any:
        return self.vcpu.run

    def write(self, gpa: int, data: bytes) -> None:
        self.memory[gpa : gpa + len(data)] = data

    def read(self, gpa: int, length: int) -> bytes:
        return self.memory[gpa : gpa + length]

    def load(self, state: EntryState) -> None:
        for gpa, data in state.memory:
            self.write(gpa, data)
        sregs = self.vcpu.get_sregs()
        for name, segment in state.segments.items():
            for field in SEGMENT:
                setattr(getattr(sregs, name), field, getattr(segment, field))
        for name in ("gdt", "idt"):
            table = getattr(state, name)
            getattr(sregs, name).base, getattr(sregs, name).limit = table.base, table.limit
        for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
            setattr(sregs, name, getattr(state, name))
        self.vcpu.set_sregs(sregs)
        regs = ffi.new("struct kvm_regs *")
        for name in REGISTERS:
            setattr(regs, name, state.reg(name))
        self.vcpu.set_regs(regs)

    def __getattr__(self, name: str) -> int:
        if name not in REGISTERS:
            raise AttributeError(name)
        return int(getattr(self.vcpu.get_regs(), name))

    def set(self, **values: int) -> None:
        """General registers; sregs by ``set_sregs``."""
        regs = self.vcpu.get_regs()
        for name, value in values.items():
            setattr(regs, name, value)
        self.vcpu.set_regs(regs)

    def set_sregs(self, **values: int) -> None:
        sregs = self.vcpu.get_sregs()
        for name, value in values.items():
            target, _, field = name.rpartition("__")
            setattr(getattr(sregs, target) if target else sregs, field, value)
        self.vcpu.set_sregs(sregs)

    @property
    def port_data(self) -> Any:
        io = self.run.io
        return ffi.buffer(ffi.cast("char *", self.run) + io.data_offset, io.size * io.count)

    def enter(self) -> Seen:
        """To the next exit."""
        error = self.vcpu.enter()
        assert error == 0, error
        run = self.run
        if run.exit_reason == IO:
            io = run.io
            data = bytes(self.port_data) if io.direction else b""
            return Seen(IO, self.rip, bool(io.direction), io.port, io.size, io.count, data)
        if run.exit_reason == MMIO:
            io = run.mmio
            data = bytes(ffi.buffer(io.data, io.len)) if io.is_write else b""
            return Seen(MMIO, self.rip, bool(io.is_write), io.phys_addr, io.len, 1, data)
        return Seen(run.exit_reason, self.rip)

    def answer(self, data: bytes) -> None:
        """For the read of the last exit."""
        if self.run.exit_reason == IO:
            self.port_data[:] = data
        else:
            ffi.buffer(self.run.mmio.data, len(data))[:] = data

    def kick_after(self, seconds: float) -> threading.Timer:
        """Has another thread kick the vCPU: join it before the guest is closed."""
        timer = threading.Timer(seconds, lib.kvmpy_kick, (self.vcpu.state, 1))
        timer.start()
        return timer

    def take_kick(self) -> None:
        """The vCPU may be entered again."""
        lib.kvmpy_take_kick(self.vcpu.state)

    def to_halt(self, limit: int = 100) -> list[Seen]:
        """All exits before HLT; reads get zeros."""
        exits: list[Seen] = []
        for _ in range(limit):
            seen = self.enter()
            if seen.reason == HLT:
                return exits
            exits.append(seen)
            if seen.reason in (IO, MMIO) and not seen.is_write:
                self.answer(bytes(seen.size * seen.elements))
        raise AssertionError(f"no HLT: {exits[-3:]}")


def entry_state(bits: int) -> EntryState:
    """Where a guest starts: 16 real, 32 protected without paging, 64 long mode, ring 0."""
    if bits == 16:
        return entry.real_mode(0, ORIGIN, sp=STACK)
    if bits == 32:
        return entry.protected_mode(ORIGIN, stack=STACK)
    return entry.long_mode(ORIGIN, memory_size=SIZE, stack=STACK)
