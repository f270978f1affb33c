"""``/dev/kvm`` itself: what KVM can do here, and making VMs."""

from __future__ import annotations

import errno
import os

from kvmpy._native import ffi
from kvmpy.abi import constants, ioctls
from kvmpy.errors import EngineError, KvmError
from kvmpy.kvm import cpuid, msrs
from kvmpy.kvm.descriptor import Descriptor, new
from kvmpy.kvm.vm import Vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmpy.abi.ioctls import Ioctl
    from kvmpy.kvm.cpuid import Entry

PATH = "/dev/kvm"


class System(Descriptor):
    """``/dev/kvm``. One is enough for a process; VMs go on working when it is closed.

    Raises EngineError, with the remedy, when the file can't be opened or speaks another version of the API.
    Source: KVM API document, "system ioctls".
    """

    __slots__ = ("_extensions", "_mmap_size")

    def __init__(self, path: str = PATH) -> None:
        super().__init__(-1, path)
        self._mmap_size = 0
        self._extensions: dict[int, int] = {}
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            from kvmpy.kvm.access import why_not

            raise EngineError(why_not(path, error)) from None
        self._check_version()

    def _check_version(self) -> None:
        try:
            version = self.get_api_version()
        except KvmError as error:
            self.close()
            raise EngineError(f"{self.label} isn't KVM: {error}") from None
        if version != constants.KVM_API_VERSION:
            self.close()
            wanted = constants.KVM_API_VERSION
            raise EngineError(f"{self.label} speaks version {version} of the KVM API, kvmpy needs {wanted}")

    def get_api_version(self) -> int:
        """12, since Linux 2.6.22 (KVM_GET_API_VERSION)."""
        return self.call_value(ioctls.KVM_GET_API_VERSION)

    def create_vm(self, type: int = constants.KVM_X86_DEFAULT_VM) -> Vm:
        """A VM without memory, vCPUs and devices (KVM_CREATE_VM). ``type``: one of ``KVM_X86_*_VM``."""
        size = self.get_vcpu_mmap_size()
        fd = self.call_value(ioctls.KVM_CREATE_VM, type, f"type {type}" if type else "")
        return Vm(fd, self, size)

    def check_extension(self, capability: int) -> int:
        """What this kernel says of a ``KVM_CAP_*``: 0 is no, above it depends (KVM_CHECK_EXTENSION).

        Asked once: the answer can't change while the kernel runs. A VM may answer differently: ``Vm`` has it too.
        """
        try:
            return self._extensions[capability]
        except KeyError:
            answer = self.call_value(ioctls.KVM_CHECK_EXTENSION, capability, f"capability {capability}")
            self._extensions[capability] = answer
            return answer

    def get_vcpu_mmap_size(self) -> int:
        """Bytes to be mapped for each vCPU: struct kvm_run and the pages behind it (KVM_GET_VCPU_MMAP_SIZE)."""
        if not self._mmap_size:
            self._mmap_size = self.call_value(ioctls.KVM_GET_VCPU_MMAP_SIZE)
        return self._mmap_size

    def get_supported_cpuid(self) -> list[Entry]:
        """What KVM and this CPU can offer a guest (KVM_GET_SUPPORTED_CPUID).

        Entries are ``(function, index, flags, eax, ebx, ecx, edx)``.
        """
        return cpuid.fetch(self, ioctls.KVM_GET_SUPPORTED_CPUID)

    def get_emulated_cpuid(self) -> list[Entry]:
        """Features the CPU lacks and KVM emulates, slowly (KVM_GET_EMULATED_CPUID)."""
        return cpuid.fetch(self, ioctls.KVM_GET_EMULATED_CPUID)

    def get_supported_hv_cpuid(self) -> list[Entry]:
        """Hyper-V's CPUID leaves (KVM_GET_SUPPORTED_HV_CPUID; needs KVM_CAP_SYS_HYPERV_CPUID)."""
        return cpuid.fetch(self, ioctls.KVM_GET_SUPPORTED_HV_CPUID)

    def get_msr_index_list(self) -> list[int]:
        """The MSRs that are part of a guest's state: save and restore these (KVM_GET_MSR_INDEX_LIST)."""
        return self._index_list(ioctls.KVM_GET_MSR_INDEX_LIST)

    def get_msr_feature_index_list(self) -> list[int]:
        """The MSRs that say what the host can do; ``get_msrs`` reads them (KVM_GET_MSR_FEATURE_INDEX_LIST)."""
        return self._index_list(ioctls.KVM_GET_MSR_FEATURE_INDEX_LIST)

    def _index_list(self, request: Ioctl) -> list[int]:
        count = 512
        while True:
            array = new("struct kvm_msr_list *", {"nmsrs": count, "indices": count})
            try:
                self.call(request, array)
            except KvmError as error:
                if error.errno != errno.E2BIG or array.nmsrs <= count:
                    raise
                count = array.nmsrs
                continue
            return list(ffi.unpack(array.indices, array.nmsrs))

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The values of feature MSRs; those that can't be read are missing (KVM_GET_MSRS)."""
        return msrs.read(self, indices)

    def get_mce_cap_supported(self) -> int:
        """The MCG_CAP of the most capable machine-check architecture possible (KVM_X86_GET_MCE_CAP_SUPPORTED)."""
        value = new("__u64 *")
        self.call(ioctls.KVM_X86_GET_MCE_CAP_SUPPORTED, value)
        return int(value[0])
