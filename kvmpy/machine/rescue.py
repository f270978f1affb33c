"""Rescue: instructions that KVM can't emulate are carried out by the translate engine, on the same memory.

KVM's instruction emulator doesn't know every instruction. Where the processor can't run the guest's code itself, such
a one ends in ``KVM_EXIT_INTERNAL_ERROR`` (emulation failure). With rescue the vCPU's state goes to a vCPU of the
translate engine, its helper, which executes that instruction, and those behind it that KVM is known to fail at too;
then the state goes back and KVM goes on. native/rescue.c does it; here is what it needs of Python: making helpers, and
the word on instructions that the translator doesn't know either. docs/rescue.md says what holds.

Nothing of this is imported before KVM gives up for the first time.
"""

from __future__ import annotations

import errno
import os

from kvmpy._native import ffi, lib
from kvmpy.errors import EngineError, KvmError
from kvmpy.machine.crash import code_at, linear_rip, mode_of
from kvmpy.machine.disassembly import mnemonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.machine import Machine
    from kvmpy.translate.system import System
    from kvmpy.translate.vcpu import Vcpu
    from kvmpy.translate.vm import Vm

READONLY = 2  # KVM_MEM_READONLY
CR4_OSXSAVE = 1 << 18
NEEDS_XCR0 = {"avx": 6, "xop": 6, "avx512f": 0xE6}


class Helper:
    """The vCPU of the translate engine that stands in for one of KVM's."""

    def __init__(self, machine: Machine, cpu: Cpu, system: System) -> None:
        self.index = cpu.index
        self.problem = ""
        """Why it can't be used any more."""
        self.native: Any = ffi.NULL
        self.vm: Vm = system.create_vm()
        engine: Any = machine.engine  # KvmEngine, or none of this would happen
        try:
            self.vcpu: Vcpu = self.vm.create_vcpu(0)
            for slot in machine.memory.slots:
                self.vm.set_user_memory_region(
                    slot.number, slot.gpa, slot.size, slot.address, slot.flags & READONLY
                )
            self.native = lib.kvmpy_rescue_new(
                cpu.native, self.vcpu.state, engine.sync_rescue, cpu.vcpu.vm.xsave_size
            )
            if self.native == ffi.NULL:
                raise MemoryError("no memory for a rescue")
            self.native.apic = machine.irqchip in ("kernel", "split")
            self.native.ioapic = machine.irqchip == "kernel"
        except BaseException:
            self.close()
            raise

    def map_memory(self, slot: int, flags: int, gpa: int, size: int, address: int) -> None:
        """A memory slot has come, changed or (size 0) gone."""
        readonly = bool(flags & READONLY)
        result = lib.kvmpy_rescue_map(self.native, slot, gpa, size, ffi.cast("void *", address), readonly)
        if result < 0:
            what = f"{size:#x} bytes of memory at {gpa:#x}: {os.strerror(-result)}"
            self.problem = f"the translate engine can't have {what}"

    def close(self) -> None:
        """Frees it; the vCPU doesn't run."""
        if self.native != ffi.NULL:
            lib.kvmpy_rescue_free(self.native)
            self.native = ffi.NULL
        self.vm.close()


class Rescue:
    """All of a machine's helpers. Made when KVM gives up for the first time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._helpers: dict[int, Helper] = {}
        self._problem = ""
        self._system: System | None = None
        machine.memory.add_listener(self._map_memory)

    def attend(self, cpu: Cpu) -> None:
        """What C couldn't do alone: on the vCPU's thread, with the machine's lock."""
        helper = self._helpers.get(cpu.index)
        if helper is None:
            self._make(cpu)
        elif helper.native.ask:
            helper.native.ask = False
            helper.native.undefined = not self._has(cpu)
            helper.native.ruled = True

    def _make(self, cpu: Cpu) -> None:
        try:
            if self._system is None:
                from kvmpy.translate.system import System

                self._system = System()
            self._helpers[cpu.index] = Helper(self._machine, cpu, self._system)
        except (EngineError, KvmError, MemoryError) as error:
            self._problem = str(error)
            cpu.native.rescue_off = True

    def _map_memory(self, slot: int, flags: int, gpa: int, size: int, address: int) -> None:
        for helper in self._helpers.values():
            helper.map_memory(slot, flags, gpa, size, address)
            if helper.problem:
                self._problem = helper.problem
                self._machine.cpus[helper.index].native.rescue_off = True

    def _has(self, cpu: Cpu) -> bool:
        """Whether the guest's processor has the instruction at RIP, which the translator hasn't."""
        from kvmpy.translate.lacks import feature_of
        from kvmpy.x86.cpuid import CpuidTable

        feature = feature_of(code_at(cpu, linear_rip(cpu)), mode_of(cpu))
        if feature in NEEDS_XCR0:
            # Enabled, they are there, whatever the table says; else they are #UD (SDM vol. 1, 14.1).
            needed = NEEDS_XCR0[feature]
            return bool(cpu.sregs.cr4 & CR4_OSXSAVE) and _xcr0(cpu) & needed == needed
        return feature is not None and CpuidTable(cpu.vcpu.get_cpuid2()).has(feature)

    def why_not(self, cpu: Cpu) -> str:
        """Why the instruction that KVM has just given up on wasn't rescued."""
        helper = self._helpers.get(cpu.index)
        if helper is None or cpu.native.rescue_off:
            return f"rescue can't be had: {self._problem}"
        native = helper.native
        if native.why == lib.KVMPY_RESCUE_ERROR:
            name = errno.errorcode.get(native.error, str(native.error))
            what = f"{_request(native.request)} on vCPU {cpu.index}"
            return f"rescue failed: {what}: {name} ({os.strerror(native.error)})"
        return "rescue failed: " + WHY[native.why]

    def counts(self) -> dict[str, int]:
        """Instructions rescued so far, by name."""
        found: dict[str, int] = {}
        for helper in self._helpers.values():
            for kind in helper.native.kinds[0 : helper.native.kind_count]:
                name = mnemonic(bytes(kind.bytes)[: kind.size], kind.bits) or bytes(kind.bytes)[
                    : kind.head
                ].hex(" ")
                found[name] = found.get(name, 0) + kind.count
        return found

    def close(self) -> None:
        """Frees the helpers; no vCPU runs. Twice is fine."""
        self._machine.memory.remove_listener(self._map_memory)
        for helper in self._helpers.values():
            helper.close()
        self._helpers.clear()


WHY = {
    lib.KVMPY_RESCUE_NOT_TRIED: "KVM gave up on something else than an instruction",
    lib.KVMPY_RESCUE_UNKNOWN: "the translate engine can't do this instruction either",
    lib.KVMPY_RESCUE_STUCK: "the instruction makes no progress: it doesn't end, or nothing is changed by it",
    lib.KVMPY_RESCUE_STATE: "the vCPU has state the translate engine can't have: XCR0 beyond x87 and SSE, or in CR4 or"
    " EFER what it doesn't know",
    lib.KVMPY_RESCUE_CODE: "there is no code at RIP",
    lib.KVMPY_RESCUE_DEVICE: "the instruction accesses an interrupt controller in the kernel, which only KVM's can",
}


def _xcr0(cpu: Cpu) -> int:
    xcrs = cpu.vcpu.get_xcrs()
    return next((int(xcrs.xcrs[n].value) for n in range(xcrs.nr_xcrs) if not xcrs.xcrs[n].xcr), 1)


def _request(number: int) -> str:
    from kvmpy.abi import ioctls

    if not number:
        return "entering the translate engine"
    known = ioctls.find(number)
    return known.name if known else f"ioctl {number:#x}"
