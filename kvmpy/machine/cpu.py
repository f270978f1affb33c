"""One vCPU of a machine: registers as attributes, whatever engine is underneath.

Registers live in the vCPU's shared page (KVM_CAP_SYNC_REGS) where the engine has one: after the first look at them the
kernel leaves them there at every exit, and a changed one goes back with the next entry, so neither costs an ioctl.
"""

from __future__ import annotations

import errno

from kvmpy._native import ffi, lib
from kvmpy.errors import KvmError, KvmpyError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from kvmpy.machine.machine import Machine
    from kvmpy.x86.cpuid import CpuidTable
    from kvmpy.x86.entry import EntryState
    from kvmpy.x86.segments import DescriptorTable, Segment

MP_UNINITIALIZED, MP_INIT_RECEIVED, MP_HALTED = 1, 2, 3  # KVM_MP_STATE_*
RFLAGS_IF = 1 << 9
SYNC_REGS = 1  # KVM_SYNC_X86_REGS
SYNC_SREGS = 2  # KVM_SYNC_X86_SREGS


class RegisterSet:
    """A struct of registers as attributes: ``cpu.regs.rip``, ``cpu.sregs.cs.base``.

    Reading fetches the registers if the guest has run since; writing reaches the guest at its next entry. Values are
    integers of the register's width; OverflowError beyond it.
    """

    __slots__ = ("_bank", "_data")

    def __init__(self, bank: _Bank, data: Any = None) -> None:
        object.__setattr__(self, "_bank", bank)
        object.__setattr__(self, "_data", bank.data if data is None else data)

    def __getattr__(self, name: str) -> Any:
        self._bank.fetch()
        value = getattr(self._data, name)
        if isinstance(value, ffi.CData) and ffi.typeof(value).kind == "struct":
            return RegisterSet(self._bank, value)
        return value

    def __setattr__(self, name: str, value: int) -> None:
        self._bank.fetch()
        if not isinstance(value, int):
            raise TypeError(f"{name} is a register: it holds an integer, not {type(value).__name__}")
        setattr(self._data, name, value)
        self._bank.changed()

    def __dir__(self) -> list[str]:
        return [name for name, _ in self._fields()]

    def _fields(self) -> Any:
        kind = ffi.typeof(self._data)
        return (kind.item if kind.kind == "pointer" else kind).fields

    def __repr__(self) -> str:
        return " ".join(
            f"{name}={value:#x}" if isinstance(value, int) else f"{name}=({value!r})"
            for name, value in ((name, getattr(self, name)) for name in dir(self))
            if isinstance(value, (int, RegisterSet))
        )

    def items(self) -> Iterator[tuple[str, int]]:
        """(name, value) of the plain registers, in the order of the kernel's struct."""
        for name in dir(self):
            value = getattr(self, name)
            if isinstance(value, int):
                yield name, value

    def update(self, values: Mapping[str, int]) -> None:
        """Sets several registers at once: what is in between, which a CPU might forbid, nobody sees."""
        with self._bank:
            for name, value in values.items():
                setattr(self, name, value)


def fresh(registers: RegisterSet) -> Any:
    """The kernel's struct behind a register set, with the vCPU's values in it: quicker to read many from."""
    registers._bank.fetch()
    return registers._data


class _Bank:
    """Where a register set's values are, and whether they are the vCPU's."""

    __slots__ = ("_cpu", "_get", "_held", "_set", "_shared", "_sync", "data")

    def __init__(self, cpu: Cpu, sync: int, shared: Any, get: Any, set_: Any) -> None:
        self._cpu = cpu
        self._sync = sync
        self._shared = cpu.synced & sync != 0
        self.data = shared
        self._get = get
        self._set = set_
        self._held = False

    def fetch(self) -> None:
        native = self._cpu.native
        if native is None:
            raise UsageError(f"vCPU {self._cpu.index}: its machine is closed, it has no registers any more")
        if not native.fresh & self._sync:
            self._get(self.data)
            native.fresh |= self._sync
            if self._shared:
                native.run.kvm_valid_regs |= self._sync

    def __enter__(self) -> None:
        """Changes inside the block reach the vCPU together at its end."""
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
        self.changed()

    def changed(self) -> None:
        if self._held:
            return
        if self._sync == SYNC_SREGS:
            # Without a local APIC in the kernel, its own word for CR8 is what counts at the next entry.
            self._cpu.native.run.cr8 = self.data.cr8
        if self._shared:
            self._cpu.native.run.kvm_dirty_regs |= self._sync
        else:
            self._set(self.data)


class Msrs:
    """``cpu.msrs[0xc0000080]`` or ``cpu.msrs["EFER"]``: a vCPU's model-specific registers, 64 bits each.

    KvmError for an MSR the host's KVM doesn't have or a value it refuses; KeyError for a name nobody knows.
    """

    __slots__ = ("_vcpu",)

    def __init__(self, vcpu: Any) -> None:
        self._vcpu = vcpu

    @staticmethod
    def _index(key: int | str) -> int:
        if isinstance(key, int):
            return key
        from kvmpy.x86.msrs import number

        return number(key)

    def __getitem__(self, key: int | str) -> int:
        index = self._index(key)
        found: dict[int, int] = self._vcpu.get_msrs([index])
        if index not in found:
            raise KvmError(
                f"MSR {key if isinstance(key, str) else hex(key)} can't be read on this host", errno.EINVAL
            )
        return found[index]

    def __setitem__(self, key: int | str, value: int) -> None:
        if self._vcpu.set_msrs({self._index(key): value}):
            raise KvmError(
                f"MSR {key if isinstance(key, str) else hex(key)}: this host refuses the value {value:#x}",
                errno.EINVAL,
            )


class Cpu:
    """A vCPU: ``regs``, ``sregs``, ``msrs``, ``cpuid``, and its place in the machine.

    While the machine runs, only handlers of this vCPU's own exits may look at its registers: the kernel makes everybody
    else wait until the vCPU leaves the guest.
    """

    def __init__(self, machine: Machine, index: int, vcpu: Any) -> None:
        self.machine = machine
        self.index = index
        self.vcpu = vcpu
        self.native: Any = vcpu.native(machine.bus)
        self.access = memoryview(ffi.buffer(ffi.addressof(self.native, "access"))).cast("B").cast("Q")
        self.unfinished = 0
        self.answer: Any = None
        self.idle = False
        self.halted = False  # sleeps outside the engine, until an interrupt in user space wakes it
        self.parked: bool = index > 0 and machine.irqchip == "none"
        self.synced: int = vcpu.sync_regs
        run = self.native.run
        shared = run.s.regs
        regs, sregs = ffi.addressof(shared, "regs"), ffi.addressof(shared, "sregs")
        self.regs: Any = RegisterSet(_Bank(self, SYNC_REGS, regs, vcpu.get_regs, vcpu.set_regs))
        self.sregs: Any = RegisterSet(_Bank(self, SYNC_SREGS, sregs, vcpu.get_sregs, vcpu.set_sregs))
        self.msrs = Msrs(vcpu)
        self._cpuid: CpuidTable | None = None
        self._cpuid_set = False

    def __repr__(self) -> str:
        return f"<vCPU {self.index}>"

    @property
    def cpuid(self) -> CpuidTable:
        """What the CPUID instruction will say, an editable table; what is set when the vCPU first runs counts."""
        if self._cpuid is None:
            if self._cpuid_set:
                raise UsageError(f"vCPU {self.index} has run: CPUID can't be edited any more")
            self._cpuid = self.machine.default_cpuid(self.index)
        return self._cpuid

    @property
    def has_run(self) -> bool:
        """Whether it has been entered: what can be set up only before that is settled."""
        return self._cpuid_set

    def set_up(self) -> None:
        """Before the first entry: what can't be changed after it."""
        if self._cpuid_set:
            return
        if self._cpuid is not None:
            self.vcpu.set_cpuid2(self._cpuid.entries())
        else:
            self.machine.set_default_cpuid(self)
        self._cpuid_set = True

    def load(self, entry: EntryState) -> None:
        """Puts the vCPU at an entry state. The state's tables are the machine's to write to memory.

        Without interrupt controllers nobody sends INIT and SIPI: a vCPU other than the first only runs after this.
        """
        self.parked = self.halted = False
        sregs, regs = self.sregs, self.regs
        with sregs._bank:
            for name, segment in entry.segments.items():
                _put_segment(getattr(sregs, name), segment)
            _put_table(sregs.gdt, entry.gdt)
            _put_table(sregs.idt, entry.idt)
            for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
                setattr(sregs, name, getattr(entry, name))
        regs.update({name: entry.reg(name) for name in dir(regs)})
        # Nobody has looked at registers yet: until then the kernel needn't leave them in the shared page at every exit.
        self.native.run.kvm_valid_regs = 0

    @property
    def exits(self) -> list[int]:
        """Exits so far by KVM's number of the exit reason; numbers from 63 on share the last place."""
        if self.native is None:
            raise UsageError(f"vCPU {self.index}: its machine is closed, its counters are gone")
        return list(self.native.exits)

    def translate(self, linear: int) -> int | None:
        """The guest physical address of a linear one by the vCPU's page tables; None where nothing is mapped."""
        from kvmpy.x86.walker import translate

        sregs = self.sregs
        try:
            return translate(
                self.machine.memory.read, linear, cr0=sregs.cr0, cr3=sregs.cr3, cr4=sregs.cr4, efer=sregs.efer
            ).physical
        except KvmpyError:
            return None

    def asleep_for_good(self) -> bool:
        """Halted with interrupts off, or an AP nobody has started: another vCPU may wake it, no device can."""
        state = self.vcpu.get_mp_state()
        if state in (MP_UNINITIALIZED, MP_INIT_RECEIVED):
            return True
        return state == MP_HALTED and not self.regs.rflags & RFLAGS_IF

    def close(self) -> None:
        """Gives back the vCPU; the machine does this."""
        if self.native is not None:
            self.access.release()
            self.native = None
            self.vcpu.close()


def _put_segment(target: Any, segment: Segment) -> None:
    for name in (
        "base",
        "limit",
        "selector",
        "type",
        "present",
        "dpl",
        "db",
        "s",
        "l",
        "g",
        "avl",
        "unusable",
    ):
        setattr(target, name, getattr(segment, name))


def _put_table(target: Any, table: DescriptorTable) -> None:
    target.base = table.base
    target.limit = table.limit


def kick(cpu: Cpu, why: int) -> None:
    """Gets the vCPU out of its guest, from any thread."""
    if cpu.native is not None:
        lib.kvmpy_kick(cpu.native, why)
