"""An engine without a guest: it plays back exits. For tests of everything above an engine, and as the floor that
benchmarks of the run loop compare with.

    engine = StubEngine([OutExit(0x80, b"\\x01"), InExit(0x60, size=1)])
    with Machine(engine=engine) as machine: ...

After the script comes HLT. What the "guest" got for its reads is in ``engine.answers(vcpu)``.
"""

from __future__ import annotations

from kvmpy._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from kvmpy.machine.bus import Bus
    from kvmpy.x86.cpuid import CpuidTable

KVM_EXIT_IO, KVM_EXIT_MMIO = 2, 6
DATA_LIMIT = 4096


class StubExit:
    """One exit of a script: ``count`` elements of ``size`` bytes; ``data`` is what a write writes."""

    __slots__ = ("address", "count", "data", "is_write", "reason", "size")

    def __init__(
        self, reason: int, address: int = 0, size: int = 1, count: int = 1, data: bytes | None = None
    ) -> None:
        self.reason = reason
        self.address = address
        self.size = size
        self.count = count
        self.is_write = data is not None
        self.data = data or b""

    def __repr__(self) -> str:
        what = f"write {self.data.hex()}" if self.is_write else "read"
        return f"StubExit(reason {self.reason}, {self.address:#x}, {self.size} x {self.count}, {what})"


def port_write(port: int, data: bytes, size: int | None = None) -> StubExit:
    """OUT; with ``size`` smaller than the data, ``rep outs``."""
    size = size or len(data)
    return StubExit(KVM_EXIT_IO, port, size, len(data) // size, data)


def port_read(port: int, size: int = 1, count: int = 1) -> StubExit:
    """IN; with ``count``, ``rep ins``."""
    return StubExit(KVM_EXIT_IO, port, size, count)


def memory_write(gpa: int, data: bytes) -> StubExit:
    """An MMIO write of 1 to 8 bytes."""
    return StubExit(KVM_EXIT_MMIO, gpa, len(data), 1, data)


def memory_read(gpa: int, size: int = 4) -> StubExit:
    """An MMIO read of 1 to 8 bytes."""
    return StubExit(KVM_EXIT_MMIO, gpa, size)


class StubVcpu:
    """Plays a script, then halts. Registers are plain memory."""

    sync_regs = 0

    def __init__(self, engine: StubEngine, index: int) -> None:
        self.engine = engine
        self.index = index
        self.msrs: dict[int, int] = {}
        self._script = ffi.new("struct kvmpy_stub_exit[]", [_native(exit_) for exit_ in engine.script] or 1)
        self.stub = ffi.new("struct kvmpy_stub *")
        self.stub.script = self._script
        self.stub.length = len(engine.script)
        self.stub.repeat = engine.repeat
        self._native: Any = ffi.NULL

    def native(self, bus: Bus) -> Any:
        """A new ``struct kvmpy_vcpu *`` on that bus; freed by close()."""
        self._native = lib.kvmpy_stub_new(self.index, self.stub)
        if self._native == ffi.NULL:
            raise MemoryError("no memory for a vCPU")
        self._native.bus = bus.native
        if self.engine.fixed:
            lib.kvmpy_stub_fixed(self._native, self._script)
        return self._native

    def answers(self) -> list[bytes]:
        """What each exit of the script has in its data now: a read's answer, a write's data."""
        return [
            bytes(ffi.buffer(self._script[n].data, exit_.size * exit_.count))
            for n, exit_ in enumerate(self.engine.script)
        ]

    def get_regs(self, into: Any = None) -> Any:
        return into

    def set_regs(self, regs: Any) -> None:
        pass

    def get_sregs(self, into: Any = None) -> Any:
        return into

    def set_sregs(self, sregs: Any) -> None:
        pass

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        return {index: self.msrs.get(index, 0) for index in indices}

    def set_msrs(self, values: dict[int, int]) -> list[int]:
        self.msrs.update(values)
        return []

    def get_mp_state(self) -> int:
        return 0

    def set_mp_state(self, state: int) -> None:
        pass

    def set_cpuid2(self, table: Any) -> None:
        pass

    def close(self) -> None:
        """Frees the vCPU."""
        lib.kvmpy_stub_free(self._native)
        self._native = ffi.NULL


def _native(exit_: StubExit) -> dict[str, Any]:
    assert exit_.size * exit_.count <= DATA_LIMIT, exit_
    return {
        "reason": exit_.reason,
        "size": exit_.size,
        "count": exit_.count,
        "is_write": exit_.is_write,
        "address": exit_.address,
        "data": list(exit_.data),
    }


class StubVm:
    """Memory and interrupts go nowhere."""

    def __init__(self, engine: StubEngine) -> None:
        self.engine = engine
        self.vcpus: list[StubVcpu] = []

    def map_memory(self, slot: int, flags: int, gpa: int, size: int, address: int) -> None:
        pass

    def create_vcpu(self, index: int) -> StubVcpu:
        """A vCPU that plays the engine's script."""
        vcpu = StubVcpu(self.engine, index)
        self.vcpus.append(vcpu)
        self.engine.vcpus.append(vcpu)
        return vcpu

    def set_irq(self, line: int, level: bool) -> None:
        pass

    def follow(self, memory: Any) -> None:
        pass

    def before_run(self) -> None:
        pass

    def close(self) -> None:
        pass


class StubEngine:
    """Each vCPU of its machines plays ``script``, ``repeat`` times more than once; with ``fixed`` its first exit over
    and over, at the least cost there can be."""

    name = "stub"
    max_vcpus = 255
    in_kernel = False
    rescuable = False

    def __init__(self, script: Sequence[StubExit], repeat: int = 0, fixed: bool = False) -> None:
        self.script = list(script)
        self.repeat = repeat
        self.fixed = fixed
        self.vcpus: list[StubVcpu] = []

    def create_vm(self, irqchip: str) -> StubVm:
        """A machine's VM."""
        return StubVm(self)

    def answers(self, vcpu: int = 0) -> list[bytes]:
        """What each exit of the script has in its data, of the vCPU made as number ``vcpu``."""
        return self.vcpus[vcpu].answers()

    def cpuid(self, index: int, count: int) -> CpuidTable:
        """An empty table."""
        from kvmpy.x86.cpuid import CpuidTable

        return CpuidTable()

    def set_default_cpuid(self, vcpu: Any, index: int, count: int) -> None:
        pass

    def close(self) -> None:
        pass
