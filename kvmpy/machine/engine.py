"""What a machine wants of an engine, and choosing one.

An engine is made once per process and shared by all machines: it holds what doesn't change while the host runs.
"""

from __future__ import annotations

import atexit

from kvmpy.errors import EngineError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from kvmpy.machine.bus import Bus
    from kvmpy.machine.memory import GuestMemory
    from kvmpy.x86.cpuid import CpuidTable

    class EngineVcpu(Protocol):
        """A vCPU of an engine; register structures are KVM's, as cffi pointers."""

        sync_regs: int
        """KVM_SYNC_X86_*: register sets that travel in ``run.s.regs``."""

        def native(self, bus: Bus) -> Any:
            """A new ``struct kvmpy_vcpu *`` on that bus; freed by close()."""

        def get_regs(self, into: Any = None) -> Any: ...
        def set_regs(self, regs: Any) -> None: ...
        def get_sregs(self, into: Any = None) -> Any: ...
        def set_sregs(self, sregs: Any) -> None: ...
        def get_msrs(self, indices: Any) -> dict[int, int]: ...
        def set_msrs(self, values: Any) -> list[int]: ...
        def get_mp_state(self) -> int: ...
        def set_mp_state(self, state: int) -> None: ...
        def set_cpuid2(self, table: Any) -> None: ...
        def close(self) -> None: ...

    class EngineVm(Protocol):
        """A virtual machine of an engine."""

        def map_memory(self, slot: int, flags: int, gpa: int, size: int, address: int) -> None: ...
        def create_vcpu(self, index: int) -> EngineVcpu: ...
        def set_irq(self, line: int, level: bool) -> None: ...
        def follow(self, memory: GuestMemory) -> None: ...
        def before_run(self) -> None: ...
        def close(self) -> None: ...

    class Engine(Protocol):
        """A way to run guests on this host."""

        name: str
        max_vcpus: int
        in_kernel: bool
        """Whether ranges can have the place "kernel"."""
        rescuable: bool
        """Whether it can leave instructions to the translate engine: :mod:`kvmpy.machine.rescue`."""

        def create_vm(self, irqchip: str) -> EngineVm: ...
        def cpuid(self, index: int, count: int) -> CpuidTable: ...
        def set_default_cpuid(self, vcpu: EngineVcpu, index: int, count: int) -> None: ...
        def close(self) -> None: ...


NAMES = ("auto", "kvm", "translate")
_engines: dict[str, Engine] = {}


def open_engine(name: str | Engine = "auto") -> Engine:
    """The engine of that name; "auto": kvm where it works, else translate. An engine is given back as it is.

    Raises EngineError with the reason and the remedy; UsageError for a name there is none of.
    """
    if not isinstance(name, str):
        return name
    if name not in NAMES:
        raise UsageError(f"engine {name!r}: one of {', '.join(NAMES)}")
    if name != "auto":
        return _open(name)
    reasons = []
    for candidate in NAMES[1:]:
        try:
            return _open(candidate)
        except EngineError as error:
            reasons.append(f"{candidate}: {error}")
    raise EngineError("no engine works here: " + "; ".join(reasons))


def _open(name: str) -> Engine:
    if name not in _engines:
        if name == "kvm":
            from kvmpy.machine.engine_kvm import KvmEngine

            _engines[name] = KvmEngine()
        else:
            from kvmpy.machine.engine_translate import TranslateEngine

            _engines[name] = TranslateEngine()
        atexit.register(_engines[name].close)
    return _engines[name]
