"""A VM: its memory slots, vCPUs, interrupt controllers, clocks and filters."""

from __future__ import annotations

from kvmpy._native import ffi
from kvmpy.abi import constants as c
from kvmpy.abi import ioctls
from kvmpy.abi.capabilities import (
    KVM_CAP_DIRTY_LOG_RING,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_X86_USER_SPACE_MSR,
    KVM_CAP_XSAVE2,
)
from kvmpy.kvm.descriptor import Descriptor, new
from kvmpy.kvm.errors import refused
from kvmpy.kvm.vcpu import Vcpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvmpy._native import CData
    from kvmpy.abi.ioctls import Ioctl
    from kvmpy.kvm.device import Device
    from kvmpy.kvm.msrs import FilterRange
    from kvmpy.kvm.routing import Route
    from kvmpy.kvm.stats import Stats
    from kvmpy.kvm.system import System

_PAGE_SHIFT = 12
_DIRTY_ENTRY = 16  # bytes of struct kvm_dirty_gfn


class Vm(Descriptor):
    """The file descriptor of a VM; made by :meth:`kvmpy.kvm.System.create_vm`.

    Close the vCPUs first: each keeps the VM alive. Source: KVM API document, "VM ioctls".
    """

    __slots__ = ("_slots", "_xsave_size", "dirty_ring_entries", "mmap_size", "system")

    def __init__(self, fd: int, system: System, mmap_size: int) -> None:
        super().__init__(fd, "the VM")
        self.system = system
        self.mmap_size = mmap_size
        self.dirty_ring_entries = 0
        self._slots: dict[int, int] = {}
        self._xsave_size = 0

    def check_extension(self, capability: int) -> int:
        """What this VM says of a ``KVM_CAP_*``: 0 is no, above it depends (KVM_CHECK_EXTENSION)."""
        return self.call_value(ioctls.KVM_CHECK_EXTENSION, capability, f"capability {capability}")

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> int:
        """Switch a capability of the whole VM on, with up to four arguments (KVM_ENABLE_CAP).

        Its value is 0 for most. Raises KvmError.
        """
        argument = new("struct kvm_enable_cap *", (capability, flags, args))
        return self.call(ioctls.KVM_ENABLE_CAP, argument, f"capability {capability}")

    # vCPUs, devices, counters

    def create_vcpu(self, index: int) -> Vcpu:
        """A vCPU with its mapping of struct kvm_run (KVM_CREATE_VCPU). ``index`` from 0 is its APIC id."""
        fd = self.call_value(ioctls.KVM_CREATE_VCPU, index, f"vCPU {index}")
        return Vcpu(fd, index, self)

    def set_boot_cpu_id(self, index: int) -> None:
        """Which vCPU is the bootstrap processor, if not 0 (KVM_SET_BOOT_CPU_ID). Before the first vCPU."""
        self.call_value(ioctls.KVM_SET_BOOT_CPU_ID, index, f"vCPU {index}")

    def create_device(self, type: int, *, test: bool = False) -> Device | None:
        """An in-kernel device, ``KVM_DEV_TYPE_*`` (KVM_CREATE_DEVICE). ``test``: only ask whether it could be."""
        from kvmpy.kvm.device import Device

        flags = c.KVM_CREATE_DEVICE_TEST if test else 0
        argument = new("struct kvm_create_device *", (type, 0, flags))
        self.call(ioctls.KVM_CREATE_DEVICE, argument, f"type {type}")
        return None if test else Device(argument.fd, type, self.label)

    def get_stats(self) -> Stats:
        """The kernel's counters of the VM (KVM_GET_STATS_FD); to be closed."""
        from kvmpy.kvm.stats import Stats

        return Stats(self.call_value(ioctls.KVM_GET_STATS_FD), self.label)

    # Memory

    def set_user_memory_region(self, slot: int, gpa: int, size: int, address: int, flags: int = 0) -> None:
        """Make, move, change or (size 0) delete a memory slot (KVM_SET_USER_MEMORY_REGION).

        ``gpa``, ``size`` and ``address`` (of the host's memory) in bytes, whole pages; ``flags``:
        ``KVM_MEM_LOG_DIRTY_PAGES``, ``KVM_MEM_READONLY``. The memory must stay where it is until the slot or the
        VM is gone. Raises KvmError.
        """
        region = new("struct kvm_userspace_memory_region *", (slot, flags, gpa, size, address))
        self.call(ioctls.KVM_SET_USER_MEMORY_REGION, region, _span(slot, gpa, size))
        self._slots[slot] = size >> _PAGE_SHIFT

    def set_user_memory_region2(
        self,
        slot: int,
        gpa: int,
        size: int,
        address: int,
        flags: int = 0,
        *,
        guest_memfd: int = 0,
        guest_memfd_offset: int = 0,
    ) -> None:
        """The same with private memory from a guest_memfd (``KVM_MEM_GUEST_MEMFD`` in ``flags``).

        KVM_SET_USER_MEMORY_REGION2 needs KVM_CAP_USER_MEMORY2, Linux 6.8.
        """
        region = new(
            "struct kvm_userspace_memory_region2 *",
            (slot, flags, gpa, size, address, guest_memfd_offset, guest_memfd),
        )
        self.call(ioctls.KVM_SET_USER_MEMORY_REGION2, region, _span(slot, gpa, size))
        self._slots[slot] = size >> _PAGE_SHIFT

    def create_guest_memfd(self, size: int, flags: int = 0) -> Descriptor:
        """Memory, ``size`` bytes, that only this VM can reach (KVM_CREATE_GUEST_MEMFD, Linux 6.8); to be closed."""
        argument = new("struct kvm_create_guest_memfd *", (size, flags))
        fd = self.call(ioctls.KVM_CREATE_GUEST_MEMFD, argument, f"{size:#x} bytes")
        return Descriptor(fd, f"guest memory of {size:#x} bytes")

    def set_memory_attributes(self, gpa: int, size: int, attributes: int) -> None:
        """``KVM_MEMORY_ATTRIBUTE_PRIVATE`` or 0 for whole pages (KVM_SET_MEMORY_ATTRIBUTES, Linux 6.8)."""
        argument = new("struct kvm_memory_attributes *", (gpa, size, attributes))
        self.call(ioctls.KVM_SET_MEMORY_ATTRIBUTES, argument, f"{size:#x} bytes at {gpa:#x}")

    def get_nr_mmu_pages(self) -> int:
        """The most shadow page tables KVM keeps for the VM (KVM_GET_NR_MMU_PAGES)."""
        return self.call_value(ioctls.KVM_GET_NR_MMU_PAGES)

    def set_nr_mmu_pages(self, pages: int) -> None:
        """Set that number, at least 64 (KVM_SET_NR_MMU_PAGES)."""
        self.call_value(ioctls.KVM_SET_NR_MMU_PAGES, pages, f"{pages} pages")

    def memory_encrypt_op(self, command: CData | int = 0) -> None:
        """A command of SEV or TDX: a pointer to its structure; 0 asks if there is any (KVM_MEMORY_ENCRYPT_OP)."""
        pointer = ffi.cast("void *", command)
        self.call(ioctls.KVM_MEMORY_ENCRYPT_OP, pointer)

    def register_encrypted_region(self, address: int, size: int) -> None:
        """Pin host memory that may hold encrypted guest memory (KVM_MEMORY_ENCRYPT_REG_REGION)."""
        self.call(ioctls.KVM_MEMORY_ENCRYPT_REG_REGION, new("struct kvm_enc_region *", (address, size)))

    def unregister_encrypted_region(self, address: int, size: int) -> None:
        """Undo that (KVM_MEMORY_ENCRYPT_UNREG_REGION)."""
        self.call(ioctls.KVM_MEMORY_ENCRYPT_UNREG_REGION, new("struct kvm_enc_region *", (address, size)))

    @property
    def xsave_size(self) -> int:
        """Bytes of a vCPU's XSAVE area, 4096 or more (KVM_CAP_XSAVE2); asked once."""
        if not self._xsave_size:
            self._xsave_size = max(self.check_extension(KVM_CAP_XSAVE2), 4096)
        return self._xsave_size

    # Dirty pages

    def enable_manual_dirty_log_protect(self, *, initially_set: bool = False) -> None:
        """``get_dirty_log`` no longer clears; ``clear_dirty_log`` does (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2).

        ``initially_set``: the log of a slot starts with every page dirty, and write-protects by and by.
        """
        flags = c.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
        flags |= c.KVM_DIRTY_LOG_INITIALLY_SET if initially_set else 0
        self.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, flags)

    def get_dirty_log(self, slot: int, into: bytearray | None = None) -> bytearray:
        """The slot's pages written to since the log was last cleared, a bit each, lowest bit of byte 0 first.

        ``into`` must have room for a whole number of 8 bytes. Clears the log unless that is manual
        (KVM_GET_DIRTY_LOG). Raises KvmError.
        """
        length = (self._slots.get(slot, 0) + 63) // 64 * 8
        if into is None:
            into = bytearray(length)
        elif len(into) < length:
            raise refused(
                ioctls.KVM_GET_DIRTY_LOG, self.label, f"slot {slot} takes {length} bytes, not {len(into)}"
            )
        with ffi.from_buffer("char[]", into, require_writable=True) as bitmap:
            argument = new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": bitmap})
            self.call(ioctls.KVM_GET_DIRTY_LOG, argument, f"slot {slot}")
        return into

    def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: bytes | bytearray) -> None:
        """Clear the log of the pages whose bits are set; bit 0 is ``first_page`` (KVM_CLEAR_DIRTY_LOG).

        ``first_page`` and ``num_pages`` are multiples of 64 (the last may end with the slot). Raises KvmError.
        """
        if len(bitmap) * 8 < num_pages or len(bitmap) % 8:
            needs = (num_pages + 63) // 64 * 8
            why = f"{num_pages} pages take a bitmap of {needs} bytes, not {len(bitmap)}"
            raise refused(ioctls.KVM_CLEAR_DIRTY_LOG, self.label, why)
        with ffi.from_buffer("char[]", bitmap) as bits:
            fields = {"slot": slot, "num_pages": num_pages, "first_page": first_page, "dirty_bitmap": bits}
            argument = new("struct kvm_clear_dirty_log *", fields)
            self.call(
                ioctls.KVM_CLEAR_DIRTY_LOG, argument, f"slot {slot}, {num_pages} pages from {first_page}"
            )

    def enable_dirty_ring(self, entries: int) -> None:
        """Every vCPU to come logs dirty pages into a ring of its own (KVM_CAP_DIRTY_LOG_RING).

        ``entries``: a power of two, from 256 (and what the CPU's own buffer needs) to 65536. Before the first vCPU.
        """
        self.enable_cap(KVM_CAP_DIRTY_LOG_RING, entries * _DIRTY_ENTRY)
        self.dirty_ring_entries = entries

    def reset_dirty_rings(self) -> int:
        """Write-protect the pages that were taken from the rings; how many (KVM_RESET_DIRTY_RINGS)."""
        return self.call_value(ioctls.KVM_RESET_DIRTY_RINGS)

    # Writes that nobody waits for

    def register_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """Writes to this range go into a ring, without an exit, until it is full or any other exit comes
        (KVM_REGISTER_COALESCED_MMIO). Every vCPU shows the same ring."""
        self._coalesced(ioctls.KVM_REGISTER_COALESCED_MMIO, address, size, pio)

    def unregister_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """Undo that for all zones inside the range (KVM_UNREGISTER_COALESCED_MMIO)."""
        self._coalesced(ioctls.KVM_UNREGISTER_COALESCED_MMIO, address, size, pio)

    def _coalesced(self, request: Ioctl, address: int, size: int, pio: bool) -> None:
        zone = new("struct kvm_coalesced_mmio_zone *", {"addr": address, "size": size, "pio": pio})
        self.call(request, zone, f"{size} at {'port ' if pio else ''}{address:#x}")

    # Interrupt controllers and timers

    def create_irqchip(self) -> None:
        """Two PICs and an I/O APIC in the kernel, a local APIC for each vCPU to come (KVM_CREATE_IRQCHIP)."""
        self.call_value(ioctls.KVM_CREATE_IRQCHIP)

    def enable_split_irqchip(self, pins: int = 24) -> None:
        """Local APICs in the kernel; PICs and the I/O APIC, with ``pins`` routes reserved for it, are left to
        user space (KVM_CAP_SPLIT_IRQCHIP). Before the first vCPU."""
        self.enable_cap(KVM_CAP_SPLIT_IRQCHIP, pins)

    def get_irqchip(self, chip: int, into: CData | None = None) -> CData:
        """``struct kvm_irqchip *``: ``KVM_IRQCHIP_PIC_MASTER``, ``_PIC_SLAVE`` or ``_IOAPIC`` (KVM_GET_IRQCHIP)."""
        if into is None:
            into = new("struct kvm_irqchip *")
        into.chip_id = chip
        return self.get(ioctls.KVM_GET_IRQCHIP, into)

    def set_irqchip(self, state: CData) -> None:
        """From ``struct kvm_irqchip *``, its ``chip_id`` says which (KVM_SET_IRQCHIP)."""
        self.put(ioctls.KVM_SET_IRQCHIP, state, f"chip {state.chip_id}")

    def create_pit2(self, flags: int = 0) -> None:
        """An i8254 in the kernel (KVM_CREATE_PIT2); the irqchip must exist.

        ``flags``: ``KVM_PIT_SPEAKER_DUMMY`` lets the kernel answer port 0x61 too.
        """
        self.call(ioctls.KVM_CREATE_PIT2, new("struct kvm_pit_config *", (flags,)))

    def get_pit2(self, into: CData | None = None) -> CData:
        """``struct kvm_pit_state2 *`` (KVM_GET_PIT2)."""
        return self.get(ioctls.KVM_GET_PIT2, into)

    def set_pit2(self, state: CData) -> None:
        """From ``struct kvm_pit_state2 *`` (KVM_SET_PIT2)."""
        self.put(ioctls.KVM_SET_PIT2, state)

    def reinject_control(self, reinject: bool) -> None:
        """Does the PIT deliver late the ticks a guest missed? At first it does (KVM_REINJECT_CONTROL)."""
        self.call(ioctls.KVM_REINJECT_CONTROL, new("struct kvm_reinject_control *", (reinject,)))

    def irq_line(self, gsi: int, level: int) -> None:
        """Set the level (0 or 1) of an interrupt line (KVM_IRQ_LINE). From any thread."""
        argument = new("struct kvm_irq_level *", {"irq": gsi, "level": level})
        self.call(ioctls.KVM_IRQ_LINE, argument, f"GSI {gsi}")

    def irq_line_status(self, gsi: int, level: int) -> int:
        """The same; above 0: to that many vCPUs; 0: merged with one pending; below: masked (KVM_IRQ_LINE_STATUS)."""
        argument = new("struct kvm_irq_level *", {"irq": gsi, "level": level})
        self.call(ioctls.KVM_IRQ_LINE_STATUS, argument, f"GSI {gsi}")
        return int(argument.status)

    def set_gsi_routing(self, routes: Iterable[Route]) -> None:
        """Where interrupt lines lead, all of them: :mod:`kvmpy.kvm.routing` (KVM_SET_GSI_ROUTING)."""
        from kvmpy.kvm.routing import pack

        table = pack(routes)
        self.call(ioctls.KVM_SET_GSI_ROUTING, table, f"{table.nr} routes")

    def signal_msi(self, address: int, data: int, *, device: int | None = None) -> int:
        """Deliver a message-signalled interrupt (KVM_SIGNAL_MSI): above 0, delivered; 0, the guest blocked it."""
        flags = 0 if device is None else c.KVM_MSI_VALID_DEVID
        message = new("struct kvm_msi *", (address & 0xFFFFFFFF, address >> 32, data, flags, device or 0))
        return self.call(ioctls.KVM_SIGNAL_MSI, message, f"{data:#x} to {address:#x}")

    def irqfd(self, eventfd: int, gsi: int, *, resample: int | None = None, deassign: bool = False) -> None:
        """Let an eventfd pulse an interrupt line (KVM_IRQFD).

        ``resample``: an eventfd that KVM signals when the guest ends the interrupt; the line is then level-triggered.
        """
        flags = c.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        flags |= 0 if resample is None else c.KVM_IRQFD_FLAG_RESAMPLE
        argument = new("struct kvm_irqfd *", (eventfd & 0xFFFFFFFF, gsi, flags, (resample or 0) & 0xFFFFFFFF))
        self.call(ioctls.KVM_IRQFD, argument, f"eventfd {eventfd}, GSI {gsi}")

    def ioeventfd(
        self,
        eventfd: int,
        address: int,
        length: int = 0,
        *,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        """A guest's write signals an eventfd instead of being an exit (KVM_IOEVENTFD).

        ``length`` of the write: 1, 2, 4, 8, or 0 for any (KVM_CAP_IOEVENTFD_ANY_LENGTH). ``datamatch``: only that
        value counts, which takes a length. ``deassign`` with the same arguments undoes it.
        """
        flags = c.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        flags |= c.KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0
        flags |= 0 if datamatch is None else c.KVM_IOEVENTFD_FLAG_DATAMATCH
        argument = new("struct kvm_ioeventfd *", (datamatch or 0, address, length, eventfd, flags))
        where = f"{'port ' if pio else ''}{address:#x}, length {length}"
        self.call(ioctls.KVM_IOEVENTFD, argument, where)

    # Clocks

    def get_clock(self, into: CData | None = None) -> CData:
        """``struct kvm_clock_data *``: the guest's paravirtual clock, nanoseconds (KVM_GET_CLOCK)."""
        return self.get(ioctls.KVM_GET_CLOCK, into)

    def set_clock(self, clock: CData) -> None:
        """From ``struct kvm_clock_data *`` (KVM_SET_CLOCK); of the flags only ``KVM_CLOCK_REALTIME`` may be set."""
        self.put(ioctls.KVM_SET_CLOCK, clock)

    def get_tsc_khz(self) -> int:
        """TSC frequency of vCPUs to come, kHz (KVM_GET_TSC_KHZ; KVM_CAP_VM_TSC_CONTROL, Linux 5.18)."""
        return self.call_value(ioctls.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """Set that (KVM_SET_TSC_KHZ)."""
        self.call_value(ioctls.KVM_SET_TSC_KHZ, khz, f"{khz} kHz")

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

    # Filters

    def enable_user_space_msrs(self, reasons: int = 7) -> None:
        """RDMSR and WRMSR that KVM would answer with #GP exit to user space (KVM_CAP_X86_USER_SPACE_MSR).

        ``reasons``: bits ``KVM_MSR_EXIT_REASON_*``; 0 switches it off.
        """
        self.enable_cap(KVM_CAP_X86_USER_SPACE_MSR, reasons)

    def set_msr_filter(self, ranges: Sequence[FilterRange], *, default_deny: bool = False) -> None:
        """Which MSRs the guest may touch (KVM_X86_SET_MSR_FILTER); denied ones are #GP, or exits for
        ``KVM_MSR_EXIT_REASON_FILTER``. No ranges and no ``default_deny``: no filter.

        A range is ``(flags, first, count, bitmap)``: ``KVM_MSR_FILTER_READ`` and ``_WRITE``, the first MSR, how many,
        and bytes with a bit each, 1 allows. At most 16 ranges of 12288 MSRs.
        """
        from kvmpy.kvm.msrs import pack_filter

        flags = c.KVM_MSR_FILTER_DEFAULT_DENY if default_deny else c.KVM_MSR_FILTER_DEFAULT_ALLOW
        argument, _bitmaps = pack_filter(ranges, flags, self.label)
        self.call(ioctls.KVM_X86_SET_MSR_FILTER, argument, f"{len(ranges)} ranges")

    def set_pmu_event_filter(
        self, action: int, events: Sequence[int], *, fixed_counter_bitmap: int = 0, flags: int = 0
    ) -> None:
        """``KVM_PMU_EVENT_ALLOW`` only these events, or ``_DENY`` them (KVM_SET_PMU_EVENT_FILTER)."""
        argument = new(
            "struct kvm_pmu_event_filter *",
            (action, len(events), fixed_counter_bitmap, flags, (), list(events)),
        )
        self.call(ioctls.KVM_SET_PMU_EVENT_FILTER, argument, f"{len(events)} events")

    # Hyper-V and Xen

    def hyperv_eventfd(self, connection: int, eventfd: int, *, deassign: bool = False) -> None:
        """Signal an eventfd when the guest makes the hypercall "signal event" (KVM_HYPERV_EVENTFD)."""
        flags = c.KVM_HYPERV_EVENTFD_DEASSIGN if deassign else 0
        argument = new("struct kvm_hyperv_eventfd *", (connection, eventfd, flags))
        self.call(ioctls.KVM_HYPERV_EVENTFD, argument, f"connection {connection}")

    def xen_hvm_config(self, config: CData) -> None:
        """From ``struct kvm_xen_hvm_config *``: the hypercall page's MSR, or interception (KVM_XEN_HVM_CONFIG)."""
        self.put(ioctls.KVM_XEN_HVM_CONFIG, config)

    def xen_get_attr(self, attribute: CData) -> CData:
        """Fill ``struct kvm_xen_hvm_attr *``, whose ``type`` says what is asked (KVM_XEN_HVM_GET_ATTR)."""
        return self.get(ioctls.KVM_XEN_HVM_GET_ATTR, attribute)

    def xen_set_attr(self, attribute: CData) -> None:
        """From ``struct kvm_xen_hvm_attr *`` (KVM_XEN_HVM_SET_ATTR)."""
        self.put(ioctls.KVM_XEN_HVM_SET_ATTR, attribute)

    def xen_send_event(self, port: int, vcpu: int) -> int:
        """Raise a Xen event channel (KVM_XEN_HVM_EVTCHN_SEND)."""
        event = new("struct kvm_irq_routing_xen_evtchn *", (port, vcpu, 0xFFFFFFFF))
        return self.call(ioctls.KVM_XEN_HVM_EVTCHN_SEND, event, f"port {port}")


def _span(slot: int, gpa: int, size: int) -> str:
    return f"slot {slot}, {size:#x} bytes at {gpa:#x}"
