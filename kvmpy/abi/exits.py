"""Why KVM_RUN came back: exit reasons, sub-codes and flags of ``struct kvm_run``, by name.

Source: Linux, ``include/uapi/linux/kvm.h`` up to 6.18, and ``Documentation/virt/kvm/api.rst`` chapter 5.
"""

from __future__ import annotations

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_EXCEPTION = 1
KVM_EXIT_IO = 2
KVM_EXIT_HYPERCALL = 3
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_SET_TPR = 11
KVM_EXIT_TPR_ACCESS = 12
KVM_EXIT_S390_SIEIC = 13
KVM_EXIT_S390_RESET = 14
KVM_EXIT_DCR = 15
KVM_EXIT_NMI = 16
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_OSI = 18
KVM_EXIT_PAPR_HCALL = 19
KVM_EXIT_S390_UCONTROL = 20
KVM_EXIT_WATCHDOG = 21
KVM_EXIT_S390_TSCH = 22
KVM_EXIT_EPR = 23
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_S390_STSI = 25
KVM_EXIT_IOAPIC_EOI = 26
KVM_EXIT_HYPERV = 27
KVM_EXIT_ARM_NISV = 28
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30
KVM_EXIT_DIRTY_RING_FULL = 31
KVM_EXIT_AP_RESET_HOLD = 32
KVM_EXIT_X86_BUS_LOCK = 33
KVM_EXIT_XEN = 34
KVM_EXIT_RISCV_SBI = 35
KVM_EXIT_RISCV_CSR = 36
KVM_EXIT_NOTIFY = 37
KVM_EXIT_LOONGARCH_IOCSR = 38
KVM_EXIT_MEMORY_FAULT = 39
KVM_EXIT_TDX = 40
KVM_EXIT_ARM_SEA = 41

# run.io.direction
KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

# run.internal.suberror, run.emulation_failure.flags
KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1

# run.system_event.type
KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
KVM_SYSTEM_EVENT_CRASH = 3
KVM_SYSTEM_EVENT_WAKEUP = 4
KVM_SYSTEM_EVENT_SUSPEND = 5
KVM_SYSTEM_EVENT_SEV_TERM = 6
KVM_SYSTEM_EVENT_TDX_FATAL = 7

# run.msr.reason: why an MSR access came to user space; also the argument of KVM_CAP_X86_USER_SPACE_MSR
KVM_MSR_EXIT_REASON_INVAL = 1
KVM_MSR_EXIT_REASON_UNKNOWN = 2
KVM_MSR_EXIT_REASON_FILTER = 4

# run.memory_fault.flags, run.notify.flags, run.hypercall.flags, run.flags
KVM_MEMORY_EXIT_FLAG_PRIVATE = 8
KVM_NOTIFY_CONTEXT_INVALID = 1
KVM_EXIT_HYPERCALL_LONG_MODE = 1
KVM_RUN_X86_SMM = 1
KVM_RUN_X86_BUS_LOCK = 2
KVM_RUN_X86_GUEST_MODE = 4

# run.hyperv.type, run.xen.type
KVM_EXIT_HYPERV_SYNIC = 1
KVM_EXIT_HYPERV_HCALL = 2
KVM_EXIT_HYPERV_SYNDBG = 3
KVM_EXIT_XEN_HCALL = 1

_SUB_CODES = ("IO_IN", "IO_OUT", "HYPERV_", "XEN_", "HYPERCALL_")
_INTERNAL_ERRORS = {
    KVM_INTERNAL_ERROR_EMULATION: "emulation failure",
    KVM_INTERNAL_ERROR_SIMUL_EX: "simultaneous exceptions",
    KVM_INTERNAL_ERROR_DELIVERY_EV: "exit while an event was delivered",
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "unexpected hardware exit reason",
}


def reasons() -> dict[int, str]:
    """``{0: "UNKNOWN", …}``: every exit reason without its ``KVM_EXIT_``."""
    return {
        value: name.removeprefix("KVM_EXIT_")
        for name, value in globals().items()
        if name.startswith("KVM_EXIT_") and not name[9:].startswith(_SUB_CODES)
    }


def reason(number: int) -> str:
    """The name of an exit reason without its ``KVM_EXIT_``.

    >>> reason(6), reason(4711)
    ('MMIO', 'reason 4711')
    """
    return reasons().get(number, f"reason {number}")


def internal_error(suberror: int) -> str:
    """What an internal error of KVM is about (``run.internal.suberror``), in words."""
    return _INTERNAL_ERRORS.get(suberror, f"sub-error {suberror}")
