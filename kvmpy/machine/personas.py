"""Which hypervisor a machine's guest sees: :mod:`kvmpy.x86.persona` for all vCPUs, with what the engine really has."""

from __future__ import annotations

from kvmpy.errors import KvmpyError, UsageError
from kvmpy.x86 import persona

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.machine import Machine


def choose(machine: Machine, name: str) -> None:
    """Makes ``name``, one of :data:`kvmpy.x86.persona.PERSONAS`, the first hypervisor that the guest finds.

    Before the first run. "hyperv" offers what KVM emulates of it: nothing where it has no Hyper-V emulation, or on
    another engine. UsageError for an unknown name, or a vCPU that has run.
    """
    for cpu in machine.cpus:
        if cpu.has_run:
            raise UsageError(f"vCPU {cpu.index} has run: CPUID can't be edited any more")
        persona.apply(cpu.cpuid, name, _hyperv(machine, cpu) if name == "hyperv" else ())


def _hyperv(machine: Machine, cpu: Cpu) -> Any:
    """KVM_GET_SUPPORTED_HV_CPUID of this vCPU."""
    if not machine.engine.in_kernel:
        return ()
    try:
        return cpu.vcpu.get_supported_hv_cpuid()
    except KvmpyError:
        return ()
