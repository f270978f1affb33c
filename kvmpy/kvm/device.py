"""A device that lives in the kernel (KVM_CREATE_DEVICE); on x86 that is VFIO."""

from __future__ import annotations

from kvmpy.kvm.descriptor import Descriptor


class Device(Descriptor):
    """The file descriptor of an in-kernel device; made by :meth:`kvmpy.kvm.Vm.create_device`.

    It has attributes only: ``has_device_attr``, ``get_device_attr``, ``set_device_attr``.
    Source: ``Documentation/virt/kvm/devices``.
    """

    __slots__ = ("type",)

    def __init__(self, fd: int, type: int, vm_label: str) -> None:
        super().__init__(fd, f"device of type {type} of {vm_label}")
        self.type = type
