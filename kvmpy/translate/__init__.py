"""The translate engine: dynamic binary translation by Unicorn, behind the interface of :mod:`kvmpy.kvm`.

::

    system = System()                       # EngineError, with the remedy, where Unicorn isn't there
    with system.create_vm() as vm:
        vm.set_user_memory_region(0, gpa=0, size=0x1000, address=host_address)
        with vm.create_vcpu(0) as vcpu:
            vcpu.enter()                    # look at vcpu.run.exit_reason, as after KVM_RUN

It needs no ``/dev/kvm`` and no rights. Exits, registers and their structures are KVM's.
"""

from __future__ import annotations

from kvmpy.translate.system import System
from kvmpy.translate.vcpu import Vcpu
from kvmpy.translate.vm import Vm

__all__ = ["System", "Vcpu", "Vm"]
