"""What an errno means for a KVM ioctl, in a few words.

Source: ``Documentation/virt/kvm/api.rst``, the "Errors" and the text of each ioctl; where that is silent, what the
x86 code of KVM refuses.
"""

from __future__ import annotations

from errno import errorcode

# By ioctl and errno's name.
REMARKS: dict[str, dict[str, str]] = {
    "KVM_CREATE_VM": {
        "EINVAL": "this kernel has no VMs of that type; type 0 always works",
        "EBUSY": "another hypervisor uses the CPU's virtualization extension: stop it (VirtualBox, VMware)",
        "EIO": "virtualization couldn't be switched on: look at the firmware's settings",
    },
    "KVM_CREATE_VCPU": {
        "EEXIST": "the VM has a vCPU with this number",
        "EINVAL": "the number is beyond KVM_CAP_MAX_VCPU_ID, or the VM has KVM_CAP_MAX_VCPUS vCPUs",
        "ENOMEM": "no memory for one more vCPU",
    },
    "KVM_SET_USER_MEMORY_REGION": {
        "EEXIST": "the range overlaps another slot's",
        "EINVAL": "GPA, size and host address must be whole pages, flags known, the slot below"
        " KVM_CAP_NR_MEMSLOTS; of a slot in use only the GPA and KVM_MEM_LOG_DIRTY_PAGES can change",
        "EFAULT": "the host address isn't memory of this process",
        "ENOMEM": "no memory to keep track of a slot of this size",
    },
    "KVM_GET_DIRTY_LOG": {
        "ENOENT": "the slot doesn't exist or wasn't given KVM_MEM_LOG_DIRTY_PAGES",
        "ENXIO": "the VM uses dirty rings: the log isn't available beside them",
        "EINVAL": "no slot can have this number",
    },
    "KVM_CLEAR_DIRTY_LOG": {
        "ENOENT": "the slot doesn't exist or wasn't given KVM_MEM_LOG_DIRTY_PAGES",
        "EINVAL": "first_page must be a multiple of 64, num_pages too unless it reaches the end of the slot",
        "ENXIO": "the VM uses dirty rings: the log isn't available beside them",
    },
    "KVM_RESET_DIRTY_RINGS": {"EINVAL": "dirty rings weren't enabled before the first vCPU was created"},
    "KVM_RUN": {
        "EINTR": "a signal is pending, or immediate_exit is set",
        "EAGAIN": "the vCPU waits for INIT or SIPI: run it again",
        "EFAULT": "the guest touched memory the host can't provide (look for KVM_EXIT_MEMORY_FAULT)",
        "EINVAL": "kvm_valid_regs or kvm_dirty_regs name a group KVM_CAP_SYNC_REGS doesn't, or a synced register"
        " has a value that can't be",
        "EIO": "the VM is dead (KVM_BUG in the kernel's log) or belongs to another process",
        "ENOEXEC": "the vCPU hasn't been initialized",
    },
    "KVM_SET_SREGS": {"EINVAL": "a combination of CR0, CR4, EFER, CS or CR3 that the CPU forbids"},
    "KVM_SET_SREGS2": {"EINVAL": "a combination of CR0, CR4, EFER, CS or CR3 that the CPU forbids"},
    "KVM_INTERRUPT": {
        "EEXIST": "an interrupt is already queued",
        "EINVAL": "a vector is a number from 0 to 255",
        "ENXIO": "an interrupt controller in the kernel exists: raise a line of it instead",
        "EFAULT": "the address of the argument is bad",
    },
    "KVM_GET_MSRS": {"E2BIG": "255 MSRs at a time is the most"},
    "KVM_SET_MSRS": {"E2BIG": "255 MSRs at a time is the most"},
    "KVM_GET_MSR_INDEX_LIST": {"E2BIG": "the array is too small for the list"},
    "KVM_GET_MSR_FEATURE_INDEX_LIST": {"E2BIG": "the array is too small for the list"},
    "KVM_GET_SUPPORTED_CPUID": {"E2BIG": "more entries than the array holds", "ENOMEM": "too many entries"},
    "KVM_SET_CPUID2": {
        "E2BIG": "256 entries is the most",
        "EINVAL": "an entry has a value this host can't honour (vaddr bits, XSAVE features), or the vCPU has run"
        " and the table differs from the one it ran with",
    },
    "KVM_GET_CPUID2": {"E2BIG": "more entries than the array holds"},
    "KVM_CREATE_IRQCHIP": {
        "EEXIST": "the VM has interrupt controllers",
        "EINVAL": "vCPUs exist already: create the interrupt controllers before the first one",
    },
    "KVM_CREATE_PIT": {"EEXIST": "the VM has a PIT", "ENOENT": "the PIT needs KVM_CREATE_IRQCHIP first"},
    "KVM_CREATE_PIT2": {
        "EEXIST": "the VM has a PIT",
        "ENOENT": "the PIT needs KVM_CREATE_IRQCHIP first (a split irqchip has none)",
        "EINVAL": "the PIT needs KVM_CREATE_IRQCHIP first (a split irqchip has none)",
    },
    "KVM_GET_IRQCHIP": {
        "ENXIO": "the VM has no interrupt controllers in the kernel (a split irqchip has none)"
    },
    "KVM_SET_IRQCHIP": {
        "ENXIO": "the VM has no interrupt controllers in the kernel (a split irqchip has none)"
    },
    "KVM_GET_PIT2": {"ENXIO": "the VM has no PIT in the kernel"},
    "KVM_SET_PIT2": {"ENXIO": "the VM has no PIT in the kernel"},
    "KVM_REINJECT_CONTROL": {"ENXIO": "the VM has no PIT in the kernel"},
    "KVM_IRQ_LINE": {"ENXIO": "the VM has no interrupt controllers in the kernel"},
    "KVM_IRQ_LINE_STATUS": {"ENXIO": "the VM has no interrupt controllers in the kernel"},
    "KVM_SIGNAL_MSI": {"EINVAL": "the VM has no interrupt controllers in the kernel, or no vCPU matches"},
    "KVM_SET_GSI_ROUTING": {
        "EINVAL": "a GSI, chip, pin, type or flag is out of range, or a pin has two routes of the same type,"
        " or the VM has no interrupt controllers in the kernel",
    },
    "KVM_IRQFD": {
        "EBUSY": "the eventfd already drives an interrupt line",
        "EINVAL": "the VM has no interrupt controllers in the kernel, the fd is no eventfd or the GSI is too high",
        "ENOENT": "no such pair of eventfd and GSI is assigned",
        "EBADF": "the file descriptor isn't open",
    },
    "KVM_IOEVENTFD": {
        "EEXIST": "an ioeventfd already covers this address, length and value",
        "ENOENT": "no such ioeventfd is assigned",
        "EINVAL": "the length is 1, 2, 4 or 8, or 0 for any; the range mustn't wrap; the fd must be an eventfd",
        "ENOSPC": "the bus is full: a VM has at most 1000 devices on each of its buses",
        "EBADF": "the file descriptor isn't open",
    },
    "KVM_SET_TSS_ADDR": {"EINVAL": "the three pages must lie below 4 GiB"},
    "KVM_SET_IDENTITY_MAP_ADDR": {"EINVAL": "vCPUs exist already: set it before the first one"},
    "KVM_SET_BOOT_CPU_ID": {"EBUSY": "vCPUs exist already: set it before the first one"},
    "KVM_ENABLE_CAP": {
        "EINVAL": "this kernel can't enable that capability, or not with these arguments, or not at this point"
        " (many must be enabled before the first vCPU exists)",
        "EEXIST": "it has been enabled",
        "EBUSY": "vCPUs exist already: enable it before the first one",
        "E2BIG": "the size is beyond the limit",
    },
    "KVM_SET_LAPIC": {"EINVAL": "the vCPU has no local APIC: the VM needs an irqchip (full or split)"},
    "KVM_GET_LAPIC": {"EINVAL": "the vCPU has no local APIC: the VM needs an irqchip (full or split)"},
    "KVM_SET_MP_STATE": {
        "EINVAL": "without a local APIC in the kernel only KVM_MP_STATE_RUNNABLE is possible; a vCPU with a pending"
        " INIT or SIPI can't be in that state",
    },
    "KVM_GET_NESTED_STATE": {
        "E2BIG": "the buffer is smaller than the state",
        "EINVAL": "this host has no nested virtualization (KVM_CAP_NESTED_STATE)",
    },
    "KVM_SET_NESTED_STATE": {
        "EINVAL": "the state has the wrong format for this host's CPU, or contradicts itself"
    },
    "KVM_SET_TSC_KHZ": {"EINVAL": "the CPU can't scale its TSC to that frequency (KVM_CAP_TSC_CONTROL)"},
    "KVM_GET_TSC_KHZ": {"EIO": "the host's TSC isn't stable"},
    "KVM_KVMCLOCK_CTRL": {"EINVAL": "the guest doesn't use the paravirtual clock"},
    "KVM_SET_CLOCK": {"EINVAL": "a flag this kernel doesn't know"},
    "KVM_SET_XCRS": {"EINVAL": "the CPU has no XSAVE, or XCR0 has bits the guest's CPUID doesn't"},
    "KVM_SET_XSAVE": {
        "EINVAL": "the header names features or has bits this host or the guest's CPUID doesn't"
    },
    "KVM_SET_FPU": {"EINVAL": "the vCPU's state is protected"},
    "KVM_SET_DEBUGREGS": {"EINVAL": "DR6 and DR7 have no bits above 31, flags is 0"},
    "KVM_SET_GUEST_DEBUG": {"EBUSY": "an exception to be injected would replace one that is pending"},
    "KVM_SET_VCPU_EVENTS": {"EINVAL": "a flag this kernel doesn't know, or a field out of range"},
    "KVM_X86_SET_MSR_FILTER": {
        "EINVAL": "a bitmap is empty or over 0x600 bytes, or read or write isn't given for its range",
    },
    "KVM_SET_PMU_EVENT_FILTER": {
        "E2BIG": "300 events is the most",
        "EINVAL": "an action, flag or event the kernel doesn't know",
    },
    "KVM_CREATE_DEVICE": {
        "ENODEV": "this kernel has no device of that type",
        "EEXIST": "the VM has that device, and can have but one",
    },
    "KVM_SET_DEVICE_ATTR": {
        "ENXIO": "no such group or attribute",
        "EPERM": "the attribute can't be written, or not now",
    },
    "KVM_GET_DEVICE_ATTR": {
        "ENXIO": "no such group or attribute",
        "EPERM": "the attribute can't be read, or not now",
    },
    "KVM_HAS_DEVICE_ATTR": {"ENXIO": "no such group or attribute"},
    "KVM_GET_STATS_FD": {"EMFILE": "this process has as many files open as it may (ulimit -n)"},
    "KVM_X86_SETUP_MCE": {"EINVAL": "more banks, or other features, than the host supports"},
    "KVM_X86_SET_MCE": {"EINVAL": "no such bank, or the status isn't valid"},
    "KVM_REGISTER_COALESCED_MMIO": {"ENOSPC": "the bus is full", "EINVAL": "pio is 0 or 1"},
    "KVM_SET_MEMORY_ATTRIBUTES": {
        "EINVAL": "whole pages only, and only attributes KVM_CAP_MEMORY_ATTRIBUTES names"
    },
    "KVM_CREATE_GUEST_MEMFD": {"EINVAL": "the size must be whole pages, above 0, and the flags known"},
    "KVM_GET_SUPPORTED_HV_CPUID": {
        "EINVAL": "this kernel has no Hyper-V emulation (KVM_CAP_HYPERV_CPUID, KVM_CAP_SYS_HYPERV_CPUID)",
    },
    "KVM_PRE_FAULT_MEMORY": {
        "EOPNOTSUPP": "not with shadow paging",
        "ENOENT": "no memory slot there",
        "EINVAL": "whole pages only, and no flags",
    },
}
REMARKS["KVM_SET_USER_MEMORY_REGION2"] = REMARKS["KVM_SET_USER_MEMORY_REGION"]

# For any ioctl that has no remark of its own.
GENERAL: dict[str, str] = {
    "ENOTTY": "this kernel doesn't know the ioctl, or not for this kind of object",
    "EBADF": "it is closed",
    "EMFILE": "this process has as many files open as it may (ulimit -n)",
    "ENFILE": "the host has as many files open as it may",
    "ENOMEM": "the host has no memory left for it",
    "EFAULT": "a pointer in the argument leads nowhere",
    "EINVAL": "the kernel refuses an argument",
    "EPERM": "this process may not",
    "EIO": "the VM is dead (see the kernel's log) or belongs to another process",
    "EINTR": "a signal came",
    "EAGAIN": "not now: try again",
    "ENXIO": "the VM lacks what it acts on",
}

# Two names, one number: the one that the kernel uses.
_SAME = {95: "EOPNOTSUPP", 35: "EDEADLK", 11: "EAGAIN"}


def name(errno: int) -> str:
    """``"EINVAL"`` for 22; ``"errno 4711"`` for one without a name."""
    return _SAME.get(errno) or errorcode.get(errno, f"errno {errno}")


def remark(ioctl: str, errno: int) -> str:
    """Why the ioctl of that name gives ``errno``; the system's own words where nothing better is known."""
    short = name(errno)
    text = REMARKS.get(ioctl, {}).get(short) or GENERAL.get(short)
    if text is None:
        from os import strerror

        text = strerror(errno)
    return text
