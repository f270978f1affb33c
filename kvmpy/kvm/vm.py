"""A VM: its memory slots, vCPUs, interrupt controllers and clocks."""

from __future__ import annotations

from kvmpy.abi import ioctls
from kvmpy.abi.capabilities import KVM_CAP_SPLIT_IRQCHIP
from kvmpy.kvm.descriptor import Descriptor, new
from kvmpy.kvm.vcpu import Vcpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.kvm.system import System


class Vm(Descriptor):
    """The file descriptor of a VM; made by :meth:`kvmpy.kvm.System.create_vm`.

    Close the vCPUs first: each keeps the VM alive. Source: KVM API document, "VM ioctls".
    """

    __slots__ = ("_slots", "dirty_ring_bytes", "system")

    def __init__(self, fd: int, system: System) -> None:
        super().__init__(fd, "the VM")
        self.system = system
        self._slots: dict[int, int] = {}
        self.dirty_ring_bytes = 0

    def check_extension(self, capability: int) -> int:
        """What this VM says of a ``KVM_CAP_*``: 0 is no, above it depends (KVM_CHECK_EXTENSION)."""
        return self.call_value(ioctls.KVM_CHECK_EXTENSION, capability, f"capability {capability}")

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> int:
        """Switch a capability of the whole VM on, with up to four arguments (KVM_ENABLE_CAP).

        Its value is 0 for most. Raises KvmError.
        """
        argument = new("struct kvm_enable_cap *", (capability, flags, args))
        return self.call(ioctls.KVM_ENABLE_CAP, argument, f"capability {capability}")

    def create_vcpu(self, index: int) -> Vcpu:
        """A vCPU with its mapping of struct kvm_run (KVM_CREATE_VCPU). ``index`` from 0 is its APIC id."""
        fd = self.call_value(ioctls.KVM_CREATE_VCPU, index, f"vCPU {index}")
        return Vcpu(fd, index, self)

    # Memory

    def set_user_memory_region(self, slot: int, gpa: int, size: int, address: int, flags: int = 0) -> None:
        """Make, move, change or (size 0) delete a memory slot (KVM_SET_USER_MEMORY_REGION).

        ``gpa``, ``size`` and ``address`` (of the host's memory) in bytes, whole pages; ``flags``:
        ``KVM_MEM_LOG_DIRTY_PAGES``, ``KVM_MEM_READONLY``. The memory must stay where it is until the slot or the
        VM is gone.
        """
        region = new("struct kvm_userspace_memory_region *", (slot, flags, gpa, size, address))
        self.call(ioctls.KVM_SET_USER_MEMORY_REGION, region, _region(slot, gpa, size))
        self._slots[slot] = size >> 12

    # Interrupt controllers and timers

    def create_irqchip(self) -> None:
        """Two PICs and an I/O APIC in the kernel, a local APIC for each vCPU to come (KVM_CREATE_IRQCHIP)."""
        self.call_value(ioctls.KVM_CREATE_IRQCHIP)

    def enable_split_irqchip(self, pins: int = 24) -> None:
        """Local APICs in the kernel; PICs and the I/O APIC, with ``pins`` routes for it, are left to user space
        (KVM_CAP_SPLIT_IRQCHIP). Before the first vCPU."""
        self.enable_cap(KVM_CAP_SPLIT_IRQCHIP, pins)

    def create_pit2(self, flags: int = 0) -> None:
        """An i8254 in the kernel (KVM_CREATE_PIT2); the irqchip must exist.

        ``flags``: ``KVM_PIT_SPEAKER_DUMMY`` lets the kernel answer port 0x61 too.
        """
        self.call(ioctls.KVM_CREATE_PIT2, new("struct kvm_pit_config *", (flags,)))

    def irq_line(self, gsi: int, level: int) -> None:
        """Set the level (0 or 1) of an input of the irqchip (KVM_IRQ_LINE)."""
        self.call(
            ioctls.KVM_IRQ_LINE, new("struct kvm_irq_level *", {"irq": gsi, "level": level}), f"GSI {gsi}"
        )

    # What VT-x hosts need

    def set_tss_addr(self, gpa: int) -> None:
        """Three pages below 4 GiB, outside RAM, that KVM keeps for itself (KVM_SET_TSS_ADDR).

        VT-x without "unrestricted guest" can't run real mode without; harmless elsewhere.
        """
        self.call_value(ioctls.KVM_SET_TSS_ADDR, gpa, f"{gpa:#x}")

    def set_identity_map_addr(self, gpa: int) -> None:
        """One page, outside RAM, for a page table of KVM's (KVM_SET_IDENTITY_MAP_ADDR). Before the first vCPU.

        VT-x without "unrestricted guest" needs it; harmless elsewhere. 0: back to the default, 0xfffbc000.
        """
        self.call(ioctls.KVM_SET_IDENTITY_MAP_ADDR, new("__u64 *", gpa), f"{gpa:#x}")


def _region(slot: int, gpa: int, size: int) -> str:
    return f"slot {slot}, {size:#x} bytes at {gpa:#x}"
