"""The binding to ``/dev/kvm``: one thin class per kind of file descriptor, one method per ioctl, no policy.

::

    with System() as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_region(0, gpa=0, size=0x1000, address=host_address)
        with vm.create_vcpu(0) as vcpu:
            regs = vcpu.get_regs()          # cffi: struct kvm_regs *
            regs.rip, regs.rflags = 0, 2
            vcpu.set_regs(regs)
            vcpu.enter()                    # KVM_RUN; look at vcpu.run.exit_reason

Structures are cffi's, of the C type that the ioctl takes; a ``get_…`` fills the one given as ``into``, or a new one.
All failures are :class:`kvmpy.errors.KvmError`; ``/dev/kvm`` that can't be used is :class:`kvmpy.errors.EngineError`.
"""

from __future__ import annotations

from kvmpy.kvm.device import Device
from kvmpy.kvm.system import System
from kvmpy.kvm.vcpu import Vcpu
from kvmpy.kvm.vm import Vm

__all__ = ["Device", "System", "Vcpu", "Vm"]
