"""The KVM capabilities that kvmpy uses, by the name that tests ask for them with, and what each is good for.

Names are the kernel's in lower case without ``KVM_CAP_``. What a capability means: KVM API document, "Capabilities
that can be enabled" and each ioctl's "Capability:" line.
"""

from __future__ import annotations

USED = {
    "user_memory": "guest memory in this process",
    "sync_mmu": "guest memory may be paged, shared and remapped",
    "nr_memslots": "how many memory slots a VM can have",
    "readonly_mem": "read-only slots: ROMs",
    "user_memory2": "KVM_SET_USER_MEMORY_REGION2",
    "guest_memfd": "memory that only the guest can see",
    "memory_fault_info": "accesses that no slot can serve come as an exit",
    "max_vcpus": "how many vCPUs a VM can have",
    "mp_state": "vCPUs started by INIT and SIPI",
    "set_tss_addr": "real mode on VT-x without unrestricted guest",
    "set_identity_map_addr": "real mode on VT-x without unrestricted guest",
    "ext_cpuid": "CPUID as a table",
    "sync_regs": "registers in the shared page instead of ioctls",
    "immediate_exit": "leaving a guest from another thread without a race",
    "irqchip": "PIC, I/O APIC and local APICs in the kernel",
    "split_irqchip": "local APICs in the kernel, the rest here",
    "pit2": "the timer in the kernel",
    "irq_routing": "which line goes to which pin or message",
    "irqfd": "interrupts by eventfd",
    "signal_msi": "message-signalled interrupts",
    "x2apic_api": "APIC ids above 255",
    "ioeventfd": "port and MMIO writes to an eventfd, without an exit",
    "ioeventfd_any_length": "the same for writes of any size",
    "coalesced_mmio": "MMIO writes kept in a ring, without an exit",
    "coalesced_pio": "port writes kept in a ring, without an exit",
    "user_nmi": "NMIs",
    "x86_smm": "system management mode",
    "x86_user_space_msr": "MSR accesses as exits",
    "x86_msr_filter": "which MSR accesses",
    "exit_hypercall": "hypercalls as exits",
    "x86_disable_exits": "HLT, PAUSE and MWAIT without an exit",
    "exit_on_emulation_failure": "the bytes of an instruction that KVM can't emulate",
    "x86_bus_lock_exit": "split locks as exits",
    "x86_notify_vmexit": "a guest that blocks interrupts for ever comes as an exit",
    "set_guest_debug": "breakpoints and single steps",
    "set_guest_debug2": "which of them work",
    "vcpu_events": "pending exceptions and interrupts as state",
    "debugregs": "debug registers as state",
    "xsave": "FPU and vector registers as state",
    "xsave2": "the same, of any size (AMX)",
    "xcrs": "XCR0 as state",
    "sregs2": "PAE page-directory pointers as state",
    "nested_state": "guests that run guests, as state",
    "adjust_clock": "the guest's clock as state",
    "get_tsc_khz": "the frequency of the TSC",
    "tsc_control": "another frequency than the host's",
    "vm_tsc_control": "one frequency for a whole VM",
    "tsc_deadline_timer": "the local APIC's TSC-deadline timer",
    "manual_dirty_log_protect2": "dirty bitmaps read and cleared separately",
    "dirty_log_ring": "dirty pages in a ring",
    "binary_stats_fd": "KVM's statistics",
}  # fmt: skip
"""Name -> what kvmpy does with it."""


def number(name: str) -> int | None:
    """The ``KVM_CAP_*`` of a name in lower case or the kernel's own; None if there is none of that name."""
    from kvmpy.abi import capabilities

    upper = name.upper()
    found = getattr(capabilities, upper if upper.startswith("KVM_CAP_") else f"KVM_CAP_{upper}", None)
    return found if isinstance(found, int) else None
