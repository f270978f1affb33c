"""Every ioctl that KVM knows on x86, by the kind of file descriptor that takes it.

A number is put together by ioctl-opt out of direction, low byte and the size of the structure, which cffi has
from the compiler; that happens when it is first asked for, since a machine uses a tenth of them. The same low
byte serves several ioctls (0x67, 0x9f, 0xa0, 0xa2, …): look one up by its whole number only.

Source: Linux, ``Documentation/virt/kvm/api.rst`` and ``include/uapi/linux/kvm.h`` up to 6.12. Not here: what no
kernel of the last ten years answers (tracing, assigned PCI devices, ``KVM_SET_MEMORY_REGION``,
``KVM_SET_MEMORY_ALIAS``).
"""

from __future__ import annotations

from kvmpy._native import ffi

KVMIO = 0xAE

SYSTEM = "system"
VM = "VM"
VCPU = "vCPU"
DEVICE = "device"

# asm-generic/ioctl.h, from the program's point of view; ioctl-opt has the same.
NONE = 0
WRITE = 1
READ = 2
BOTH = READ | WRITE

_all: list[Ioctl] = []


class Ioctl:
    """One ioctl: its ``name``; its ``number``; the C type it takes a pointer to (``argument``; ``""``: it takes
    an integer or nothing); the ``kinds`` of file descriptor that answer it."""

    __slots__ = ("argument", "direction", "kinds", "name", "nr", "number")

    name: str
    direction: int
    nr: int
    argument: str
    kinds: tuple[str, ...]
    number: int

    def __init__(self, name: str, direction: int, nr: int, argument: str, *kinds: str) -> None:
        self.name = name
        self.direction = direction
        self.nr = nr
        self.argument = argument
        self.kinds = kinds
        _all.append(self)

    def __getattr__(self, attribute: str) -> int:
        """Called for what isn't set yet: the number, once."""
        if attribute != "number":
            raise AttributeError(attribute)
        from ioctl_opt import IOC  # brings in ctypes: two milliseconds

        size = ffi.sizeof(self.argument) if self.direction != NONE else 0
        self.number = number = int(IOC(self.direction, KVMIO, self.nr, size))
        return number

    def __index__(self) -> int:
        return self.number

    def __repr__(self) -> str:
        return f"<{self.name} {self.number:#x}>"


def of_kind(kind: str) -> list[Ioctl]:
    """All ioctls of one kind of file descriptor: `SYSTEM`, `VM`, `VCPU` or `DEVICE`."""
    return [request for request in _all if kind in request.kinds]


def find(number: int) -> Ioctl | None:
    """The ioctl with this whole number (as strace prints it), or None."""
    return next((request for request in _all if request.number == number), None)


# /dev/kvm
KVM_GET_API_VERSION = Ioctl("KVM_GET_API_VERSION", NONE, 0x00, "", SYSTEM)
KVM_CREATE_VM = Ioctl("KVM_CREATE_VM", NONE, 0x01, "", SYSTEM)
KVM_GET_MSR_INDEX_LIST = Ioctl("KVM_GET_MSR_INDEX_LIST", BOTH, 0x02, "struct kvm_msr_list", SYSTEM)
KVM_CHECK_EXTENSION = Ioctl("KVM_CHECK_EXTENSION", NONE, 0x03, "", SYSTEM, VM)
KVM_GET_VCPU_MMAP_SIZE = Ioctl("KVM_GET_VCPU_MMAP_SIZE", NONE, 0x04, "", SYSTEM)
KVM_GET_SUPPORTED_CPUID = Ioctl("KVM_GET_SUPPORTED_CPUID", BOTH, 0x05, "struct kvm_cpuid2", SYSTEM)
KVM_GET_EMULATED_CPUID = Ioctl("KVM_GET_EMULATED_CPUID", BOTH, 0x09, "struct kvm_cpuid2", SYSTEM)
KVM_GET_MSR_FEATURE_INDEX_LIST = Ioctl(
    "KVM_GET_MSR_FEATURE_INDEX_LIST", BOTH, 0x0A, "struct kvm_msr_list", SYSTEM
)
KVM_X86_GET_MCE_CAP_SUPPORTED = Ioctl("KVM_X86_GET_MCE_CAP_SUPPORTED", READ, 0x9D, "__u64", SYSTEM)

# VM: vCPUs and memory
KVM_CREATE_VCPU = Ioctl("KVM_CREATE_VCPU", NONE, 0x41, "", VM)
KVM_GET_DIRTY_LOG = Ioctl("KVM_GET_DIRTY_LOG", WRITE, 0x42, "struct kvm_dirty_log", VM)
KVM_SET_NR_MMU_PAGES = Ioctl("KVM_SET_NR_MMU_PAGES", NONE, 0x44, "", VM)
KVM_GET_NR_MMU_PAGES = Ioctl("KVM_GET_NR_MMU_PAGES", NONE, 0x45, "", VM)
KVM_SET_USER_MEMORY_REGION = Ioctl(
    "KVM_SET_USER_MEMORY_REGION", WRITE, 0x46, "struct kvm_userspace_memory_region", VM
)
KVM_SET_TSS_ADDR = Ioctl("KVM_SET_TSS_ADDR", NONE, 0x47, "", VM)
KVM_SET_IDENTITY_MAP_ADDR = Ioctl("KVM_SET_IDENTITY_MAP_ADDR", WRITE, 0x48, "__u64", VM)
KVM_SET_USER_MEMORY_REGION2 = Ioctl(
    "KVM_SET_USER_MEMORY_REGION2", WRITE, 0x49, "struct kvm_userspace_memory_region2", VM
)
KVM_SET_BOOT_CPU_ID = Ioctl("KVM_SET_BOOT_CPU_ID", NONE, 0x78, "", VM)
KVM_CLEAR_DIRTY_LOG = Ioctl("KVM_CLEAR_DIRTY_LOG", BOTH, 0xC0, "struct kvm_clear_dirty_log", VM)
KVM_RESET_DIRTY_RINGS = Ioctl("KVM_RESET_DIRTY_RINGS", NONE, 0xC7, "", VM)
KVM_SET_MEMORY_ATTRIBUTES = Ioctl(
    "KVM_SET_MEMORY_ATTRIBUTES", WRITE, 0xD2, "struct kvm_memory_attributes", VM
)
KVM_CREATE_GUEST_MEMFD = Ioctl("KVM_CREATE_GUEST_MEMFD", BOTH, 0xD4, "struct kvm_create_guest_memfd", VM)
KVM_REGISTER_COALESCED_MMIO = Ioctl(
    "KVM_REGISTER_COALESCED_MMIO", WRITE, 0x67, "struct kvm_coalesced_mmio_zone", VM
)
KVM_UNREGISTER_COALESCED_MMIO = Ioctl(
    "KVM_UNREGISTER_COALESCED_MMIO", WRITE, 0x68, "struct kvm_coalesced_mmio_zone", VM
)
KVM_MEMORY_ENCRYPT_OP = Ioctl("KVM_MEMORY_ENCRYPT_OP", BOTH, 0xBA, "unsigned long", VM, VCPU)
KVM_MEMORY_ENCRYPT_REG_REGION = Ioctl(
    "KVM_MEMORY_ENCRYPT_REG_REGION", READ, 0xBB, "struct kvm_enc_region", VM
)
KVM_MEMORY_ENCRYPT_UNREG_REGION = Ioctl(
    "KVM_MEMORY_ENCRYPT_UNREG_REGION", READ, 0xBC, "struct kvm_enc_region", VM
)

# VM: interrupts, timers, events
KVM_CREATE_IRQCHIP = Ioctl("KVM_CREATE_IRQCHIP", NONE, 0x60, "", VM)
KVM_IRQ_LINE = Ioctl("KVM_IRQ_LINE", WRITE, 0x61, "struct kvm_irq_level", VM)
KVM_GET_IRQCHIP = Ioctl("KVM_GET_IRQCHIP", BOTH, 0x62, "struct kvm_irqchip", VM)
KVM_SET_IRQCHIP = Ioctl("KVM_SET_IRQCHIP", READ, 0x63, "struct kvm_irqchip", VM)
KVM_CREATE_PIT = Ioctl("KVM_CREATE_PIT", NONE, 0x64, "", VM)
KVM_GET_PIT = Ioctl("KVM_GET_PIT", BOTH, 0x65, "struct kvm_pit_state", VM)
KVM_SET_PIT = Ioctl("KVM_SET_PIT", READ, 0x66, "struct kvm_pit_state", VM)
KVM_IRQ_LINE_STATUS = Ioctl("KVM_IRQ_LINE_STATUS", BOTH, 0x67, "struct kvm_irq_level", VM)
KVM_SET_GSI_ROUTING = Ioctl("KVM_SET_GSI_ROUTING", WRITE, 0x6A, "struct kvm_irq_routing", VM)
KVM_REINJECT_CONTROL = Ioctl("KVM_REINJECT_CONTROL", NONE, 0x71, "struct kvm_reinject_control", VM)
KVM_IRQFD = Ioctl("KVM_IRQFD", WRITE, 0x76, "struct kvm_irqfd", VM)
KVM_CREATE_PIT2 = Ioctl("KVM_CREATE_PIT2", WRITE, 0x77, "struct kvm_pit_config", VM)
KVM_IOEVENTFD = Ioctl("KVM_IOEVENTFD", WRITE, 0x79, "struct kvm_ioeventfd", VM)
KVM_GET_PIT2 = Ioctl("KVM_GET_PIT2", READ, 0x9F, "struct kvm_pit_state2", VM)
KVM_SET_PIT2 = Ioctl("KVM_SET_PIT2", WRITE, 0xA0, "struct kvm_pit_state2", VM)
KVM_SIGNAL_MSI = Ioctl("KVM_SIGNAL_MSI", WRITE, 0xA5, "struct kvm_msi", VM)
KVM_SET_CLOCK = Ioctl("KVM_SET_CLOCK", WRITE, 0x7B, "struct kvm_clock_data", VM)
KVM_GET_CLOCK = Ioctl("KVM_GET_CLOCK", READ, 0x7C, "struct kvm_clock_data", VM)
KVM_HYPERV_EVENTFD = Ioctl("KVM_HYPERV_EVENTFD", WRITE, 0xBD, "struct kvm_hyperv_eventfd", VM)

# VM: filters, Xen
KVM_SET_PMU_EVENT_FILTER = Ioctl("KVM_SET_PMU_EVENT_FILTER", WRITE, 0xB2, "struct kvm_pmu_event_filter", VM)
KVM_X86_SET_MSR_FILTER = Ioctl("KVM_X86_SET_MSR_FILTER", WRITE, 0xC6, "struct kvm_msr_filter", VM)
KVM_XEN_HVM_CONFIG = Ioctl("KVM_XEN_HVM_CONFIG", WRITE, 0x7A, "struct kvm_xen_hvm_config", VM)
KVM_XEN_HVM_GET_ATTR = Ioctl("KVM_XEN_HVM_GET_ATTR", BOTH, 0xC8, "struct kvm_xen_hvm_attr", VM)
KVM_XEN_HVM_SET_ATTR = Ioctl("KVM_XEN_HVM_SET_ATTR", WRITE, 0xC9, "struct kvm_xen_hvm_attr", VM)
KVM_XEN_HVM_EVTCHN_SEND = Ioctl(
    "KVM_XEN_HVM_EVTCHN_SEND", WRITE, 0xD0, "struct kvm_irq_routing_xen_evtchn", VM
)

# Several kinds
KVM_ENABLE_CAP = Ioctl("KVM_ENABLE_CAP", WRITE, 0xA3, "struct kvm_enable_cap", VM, VCPU)
KVM_GET_STATS_FD = Ioctl("KVM_GET_STATS_FD", NONE, 0xCE, "", VM, VCPU)
KVM_SET_TSC_KHZ = Ioctl("KVM_SET_TSC_KHZ", NONE, 0xA2, "", VM, VCPU)
KVM_GET_TSC_KHZ = Ioctl("KVM_GET_TSC_KHZ", NONE, 0xA3, "", VM, VCPU)
KVM_GET_MSRS = Ioctl("KVM_GET_MSRS", BOTH, 0x88, "struct kvm_msrs", SYSTEM, VCPU)
KVM_GET_SUPPORTED_HV_CPUID = Ioctl(
    "KVM_GET_SUPPORTED_HV_CPUID", BOTH, 0xC1, "struct kvm_cpuid2", SYSTEM, VCPU
)
KVM_CREATE_DEVICE = Ioctl("KVM_CREATE_DEVICE", BOTH, 0xE0, "struct kvm_create_device", VM)
KVM_SET_DEVICE_ATTR = Ioctl("KVM_SET_DEVICE_ATTR", WRITE, 0xE1, "struct kvm_device_attr", VM, VCPU, DEVICE)
KVM_GET_DEVICE_ATTR = Ioctl(
    "KVM_GET_DEVICE_ATTR", WRITE, 0xE2, "struct kvm_device_attr", SYSTEM, VM, VCPU, DEVICE
)
KVM_HAS_DEVICE_ATTR = Ioctl(
    "KVM_HAS_DEVICE_ATTR", WRITE, 0xE3, "struct kvm_device_attr", SYSTEM, VM, VCPU, DEVICE
)

# vCPU: running, registers
KVM_RUN = Ioctl("KVM_RUN", NONE, 0x80, "", VCPU)
KVM_GET_REGS = Ioctl("KVM_GET_REGS", READ, 0x81, "struct kvm_regs", VCPU)
KVM_SET_REGS = Ioctl("KVM_SET_REGS", WRITE, 0x82, "struct kvm_regs", VCPU)
KVM_GET_SREGS = Ioctl("KVM_GET_SREGS", READ, 0x83, "struct kvm_sregs", VCPU)
KVM_SET_SREGS = Ioctl("KVM_SET_SREGS", WRITE, 0x84, "struct kvm_sregs", VCPU)
KVM_GET_SREGS2 = Ioctl("KVM_GET_SREGS2", READ, 0xCC, "struct kvm_sregs2", VCPU)
KVM_SET_SREGS2 = Ioctl("KVM_SET_SREGS2", WRITE, 0xCD, "struct kvm_sregs2", VCPU)
KVM_SET_MSRS = Ioctl("KVM_SET_MSRS", WRITE, 0x89, "struct kvm_msrs", VCPU)
KVM_SET_CPUID = Ioctl("KVM_SET_CPUID", WRITE, 0x8A, "struct kvm_cpuid", VCPU)
KVM_SET_CPUID2 = Ioctl("KVM_SET_CPUID2", WRITE, 0x90, "struct kvm_cpuid2", VCPU)
KVM_GET_CPUID2 = Ioctl("KVM_GET_CPUID2", BOTH, 0x91, "struct kvm_cpuid2", VCPU)
KVM_GET_FPU = Ioctl("KVM_GET_FPU", READ, 0x8C, "struct kvm_fpu", VCPU)
KVM_SET_FPU = Ioctl("KVM_SET_FPU", WRITE, 0x8D, "struct kvm_fpu", VCPU)
KVM_GET_XSAVE = Ioctl("KVM_GET_XSAVE", READ, 0xA4, "struct kvm_xsave", VCPU)
KVM_SET_XSAVE = Ioctl("KVM_SET_XSAVE", WRITE, 0xA5, "struct kvm_xsave", VCPU)
KVM_GET_XSAVE2 = Ioctl("KVM_GET_XSAVE2", READ, 0xCF, "struct kvm_xsave", VCPU)
KVM_GET_XCRS = Ioctl("KVM_GET_XCRS", READ, 0xA6, "struct kvm_xcrs", VCPU)
KVM_SET_XCRS = Ioctl("KVM_SET_XCRS", WRITE, 0xA7, "struct kvm_xcrs", VCPU)
KVM_GET_DEBUGREGS = Ioctl("KVM_GET_DEBUGREGS", READ, 0xA1, "struct kvm_debugregs", VCPU)
KVM_SET_DEBUGREGS = Ioctl("KVM_SET_DEBUGREGS", WRITE, 0xA2, "struct kvm_debugregs", VCPU)
KVM_GET_NESTED_STATE = Ioctl("KVM_GET_NESTED_STATE", BOTH, 0xBE, "struct kvm_nested_state", VCPU)
KVM_SET_NESTED_STATE = Ioctl("KVM_SET_NESTED_STATE", WRITE, 0xBF, "struct kvm_nested_state", VCPU)

# vCPU: interrupts and state
KVM_INTERRUPT = Ioctl("KVM_INTERRUPT", WRITE, 0x86, "struct kvm_interrupt", VCPU)
KVM_NMI = Ioctl("KVM_NMI", NONE, 0x9A, "", VCPU)
KVM_SMI = Ioctl("KVM_SMI", NONE, 0xB7, "", VCPU)
KVM_GET_LAPIC = Ioctl("KVM_GET_LAPIC", READ, 0x8E, "struct kvm_lapic_state", VCPU)
KVM_SET_LAPIC = Ioctl("KVM_SET_LAPIC", WRITE, 0x8F, "struct kvm_lapic_state", VCPU)
KVM_GET_MP_STATE = Ioctl("KVM_GET_MP_STATE", READ, 0x98, "struct kvm_mp_state", VCPU)
KVM_SET_MP_STATE = Ioctl("KVM_SET_MP_STATE", WRITE, 0x99, "struct kvm_mp_state", VCPU)
KVM_GET_VCPU_EVENTS = Ioctl("KVM_GET_VCPU_EVENTS", READ, 0x9F, "struct kvm_vcpu_events", VCPU)
KVM_SET_VCPU_EVENTS = Ioctl("KVM_SET_VCPU_EVENTS", WRITE, 0xA0, "struct kvm_vcpu_events", VCPU)
KVM_SET_SIGNAL_MASK = Ioctl("KVM_SET_SIGNAL_MASK", WRITE, 0x8B, "struct kvm_signal_mask", VCPU)
KVM_SET_GUEST_DEBUG = Ioctl("KVM_SET_GUEST_DEBUG", WRITE, 0x9B, "struct kvm_guest_debug", VCPU)
KVM_TRANSLATE = Ioctl("KVM_TRANSLATE", BOTH, 0x85, "struct kvm_translation", VCPU)
KVM_TPR_ACCESS_REPORTING = Ioctl("KVM_TPR_ACCESS_REPORTING", BOTH, 0x92, "struct kvm_tpr_access_ctl", VCPU)
KVM_SET_VAPIC_ADDR = Ioctl("KVM_SET_VAPIC_ADDR", WRITE, 0x93, "struct kvm_vapic_addr", VCPU)
KVM_X86_SETUP_MCE = Ioctl("KVM_X86_SETUP_MCE", WRITE, 0x9C, "__u64", VCPU)
KVM_X86_SET_MCE = Ioctl("KVM_X86_SET_MCE", WRITE, 0x9E, "struct kvm_x86_mce", VCPU)
KVM_KVMCLOCK_CTRL = Ioctl("KVM_KVMCLOCK_CTRL", NONE, 0xAD, "", VCPU)
KVM_PRE_FAULT_MEMORY = Ioctl("KVM_PRE_FAULT_MEMORY", BOTH, 0xD5, "struct kvm_pre_fault_memory", VCPU)
KVM_XEN_VCPU_GET_ATTR = Ioctl("KVM_XEN_VCPU_GET_ATTR", BOTH, 0xCA, "struct kvm_xen_vcpu_attr", VCPU)
KVM_XEN_VCPU_SET_ATTR = Ioctl("KVM_XEN_VCPU_SET_ATTR", WRITE, 0xCB, "struct kvm_xen_vcpu_attr", VCPU)
