"""Every kind of exit the laboratory measures: which loop, in which machine, over which floor.

Names are those of kvm-unit-tests' vmexit where the same thing is measured, so that numbers compare. A kind is data and
a few lines of set-up; how it is run is :mod:`kvmpy.lab.trial`'s business.
"""

from __future__ import annotations

from typing import NamedTuple

from kvmpy.errors import UsageError
from kvmpy.lab import guest_setup, guests, host_kinds
from kvmpy.lab.trial import CHUNK, FloorTrial, GuestTrial, LoopTrial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from kvmpy.lab.trial import Bench

MISC_ENABLE = 0x1A0
PAUSES = 4096
"""In one sample of ple: the window after which VT-x and AMD-V leave the guest, as Linux sets it."""
AHEAD = 50_000
"""TSC cycles to a deadline of the kind tscdeadline."""


FEW = 8
"""Samples in a chunk of slow kinds."""


class Floor(NamedTuple):
    """What the bare C loop does for a kind: its loop in the guest and what that needs, or its own ``method``."""

    entry: str
    r14: int = 0
    r15: int = 0
    irqchip: bool = False
    msr: int = 0
    method: str = "run"


class Guest(NamedTuple):
    """A machine for a guest's loop ``entry``; ``setup(trial)`` gives addresses their owners and the like."""

    entry: str
    setup: Callable[[GuestTrial], object] | None = None
    r14: int = 0
    r15: int = 0
    irqchip: str = "none"
    memory: str = "4M"
    cpus: int = 1
    handler: str = ""
    others: tuple[str, ...] = ()
    other_handler: str = ""
    backing: Callable[[int, int], Any] | None = None
    chunk: int = CHUNK


class Loop(NamedTuple):
    """Something the host does: ``start(trial)`` gives a function that measures one chunk."""

    start: Callable[[LoopTrial], Callable[[], None]]


class Kind:
    """``name``, ``group``, ``summary`` (what a sample is); ``what`` to run; ``floor`` under it, or None.

    ``needs(bench)`` gives a reason not even to try, or "".
    """

    __slots__ = ("floor", "group", "name", "needs", "summary", "what")

    def __init__(
        self,
        group: str,
        name: str,
        summary: str,
        what: Guest | Loop,
        floor: Floor | None = None,
        needs: Callable[[Bench], str] | None = None,
    ) -> None:
        self.group = group
        self.name = name
        self.summary = summary
        self.what = what
        self.floor = floor
        self.needs = needs

    def __repr__(self) -> str:
        return f"<Kind {self.name}>"

    @property
    def pinned(self) -> bool:
        """Whether one CPU is all it needs."""
        return not (isinstance(self.what, Guest) and self.what.cpus > 1)

    def open(self, bench: Bench) -> GuestTrial | LoopTrial:
        """Ready to be measured. Raises Unavailable."""
        if isinstance(self.what, Loop):
            return LoopTrial(bench, self.what)
        what = self.what
        if what.entry == "vmcall" and _is_amd():
            what = what._replace(entry="vmmcall")
        return GuestTrial(bench, what)

    def open_floor(self, bench: Bench) -> FloorTrial:
        """The floor, ready. Raises Unavailable."""
        assert self.floor is not None
        floor = self.floor
        if floor.entry == "vmcall" and _is_amd():
            floor = floor._replace(entry="vmmcall")
        return FloorTrial(bench, floor)


def _is_amd() -> bool:
    from kvmpy.kvm.processor import processor

    return processor().vendor in ("AMD", "Hygon")


def _no_hypercalls(bench: Bench) -> str:
    if bench.engine == "translate":
        return "the translate engine has no hypercall that returns to the guest by itself"
    return "VMCALL in ring 0 never comes back on PVM hosts" if bench.technique == "PVM" else ""


def _no_ple(bench: Bench) -> str:
    if bench.engine == "translate":
        return "the translate engine doesn't watch PAUSE"
    if bench.technique == "PVM":
        return "PVM doesn't watch PAUSE"
    from kvmpy.kvm.processor import parameters

    which = {"VT-x": ("kvm_intel", "ple_gap"), "AMD-V": ("kvm_amd", "pause_filter_count")}
    module, name = which.get(bench.technique, ("", ""))
    if module and (parameters(module) or {}).get(name) == "0":
        return f"{module}.{name}=0: pause-loop exiting is off, or the CPU has none"
    return ""


def _only_kvm(bench: Bench) -> str:
    return (
        "" if bench.engine == "kvm" else f"an interface of KVM: the {bench.engine} engine has no such thing"
    )


def _device_in_kernel(bench: Bench) -> str:
    return "" if bench.engine == "kvm" else f"the {bench.engine} engine has no devices in the kernel"


def _apic_in_kernel(bench: Bench) -> str:
    if bench.engine == "kvm":
        return ""
    return "the local APIC in user space is neither an x2APIC nor has it a TSC deadline"


def _mapped_by_hardware(bench: Bench) -> str:
    if bench.engine == "kvm" and bench.technique == "PVM":
        return (
            "PVM emulates ring 0: its accesses go to the host's memory and meet no page table of the guest's"
        )
    return _only_kvm(bench)


def _two_cpus(bench: Bench) -> str:
    if bench.engine != "kvm":
        return f"vCPUs of the {bench.engine} engine don't run at the same time"
    if bench.other_cpu is None:
        return "two vCPUs that wait for each other need two CPUs, one is allowed"
    return ""


def _instructions() -> list[Kind]:
    group = "instructions"
    irqchip: dict[str, Any] = {"irqchip": "kernel"}
    return [
        Kind(group, "clock", "nothing: two time stamps and what lies between them", Guest("clock"), Floor("clock")),
        Kind(group, "cpuid", "CPUID, answered by the kernel", Guest("cpuid"), Floor("cpuid")),
        Kind(group, "rdtsc", "RDTSC: no exit where the hardware offsets it", Guest("rdtsc"), Floor("rdtsc")),
        Kind(group, "vmcall", "VMCALL or VMMCALL with a number the kernel refuses at once", Guest("vmcall"),
             Floor("vmcall"), _no_hypercalls),
        Kind(group, "mov_from_cr8", "read CR8", Guest("mov_from_cr8", **irqchip), Floor("mov_from_cr8", irqchip=True)),
        Kind(group, "mov_to_cr8", "write CR8", Guest("mov_to_cr8", **irqchip), Floor("mov_to_cr8", irqchip=True)),
        Kind(group, "hlt", "HLT to user space and back, through Python", Guest("hlt", guest_setup.ignore_hlt),
             Floor("hlt")),
        Kind(group, "ple", f"a loop of {PAUSES} PAUSEs", Guest("ple", r14=PAUSES), None, _no_ple),
    ]  # fmt: skip


def _ports() -> list[Kind]:
    group = "ports"
    s = guest_setup
    inl, outl = Floor("inl_from_user"), Floor("outl_to_user")
    return [
        Kind(group, "inl_from_kernel", "read the PICs' ELCR, a device in the kernel",
             Guest("inl_from_kernel", irqchip="kernel"), Floor("inl_from_kernel", irqchip=True), _device_in_kernel),
        Kind(group, "outl_to_kernel", "write to it", Guest("outl_to_kernel", irqchip="kernel"),
             Floor("outl_to_kernel", irqchip=True), _device_in_kernel),
        Kind(group, "inl_from_user", "read a port that C answers in user space", Guest("inl_from_user", s.port_c), inl),
        Kind(group, "outl_to_user", "write to it", Guest("outl_to_user", s.port_c), outl),
        Kind(group, "inl_from_python", "read a port that a Python device answers",
             Guest("inl_from_user", s.port_python), inl),
        Kind(group, "outl_to_python", "write to it", Guest("outl_to_user", s.port_python), outl),
        Kind(group, "outl_to_ring", "write to a port that C logs in a ring", Guest("outl_to_user", s.port_ring), outl),
        Kind(group, "outl_coalesced", "write to a port whose writes the kernel keeps for later",
             Guest("outl_to_user", s.port_coalesced), None, _only_kvm),
        Kind(group, "outl_ioeventfd", "write to a port that signals an eventfd", Guest("outl_to_user", s.port_eventfd),
             None, _only_kvm),
    ]  # fmt: skip


def _mmio() -> list[Kind]:
    group, at = "mmio", guests.OUTSIDE
    s = guest_setup
    read, write = Floor("mmio_read", at), Floor("mmio_write", at)
    return [
        Kind(group, "mmio_read_user", "read an address that C answers in user space",
             Guest("mmio_read", s.mmio_c, at), read),
        Kind(group, "mmio_write_user", "write to it", Guest("mmio_write", s.mmio_c, at), write),
        Kind(group, "mmio_read_python", "read an address that a Python device answers",
             Guest("mmio_read", s.mmio_python, at), read),
        Kind(group, "mmio_write_python", "write to it", Guest("mmio_write", s.mmio_python, at), write),
        Kind(group, "mmio_write_coalesced", "write to an address whose writes the kernel keeps for later",
             Guest("mmio_write", s.mmio_coalesced, at), None, _only_kvm),
        Kind(group, "mmio_write_ioeventfd", "write to an address that signals an eventfd",
             Guest("mmio_write", s.mmio_eventfd, at), None, _only_kvm),
    ]  # fmt: skip


def _msrs() -> list[Kind]:
    group, user = "msrs", guests.USER_MSR
    s = guest_setup
    floor: dict[str, Any] = {"r14": user, "msr": user}
    return [
        Kind(group, "rdmsr_from_kernel", "read IA32_MISC_ENABLE", Guest("rdmsr", r14=MISC_ENABLE),
             Floor("rdmsr", MISC_ENABLE)),
        Kind(group, "wrmsr_to_kernel", "write back to it what it holds", Guest("wrmsr", s.keep_msr, MISC_ENABLE)),
        Kind(group, "rdmsr_from_user", "read an MSR that C answers in user space", Guest("rdmsr", s.msr_c, user),
             Floor("rdmsr", **floor)),
        Kind(group, "wrmsr_to_user", "write to it", Guest("wrmsr", s.msr_c, user), Floor("wrmsr", **floor)),
        Kind(group, "rdmsr_from_python", "read an MSR that a Python device answers",
             Guest("rdmsr", s.msr_python, user), Floor("rdmsr", **floor)),
        Kind(group, "wrmsr_to_python", "write to it", Guest("wrmsr", s.msr_python, user), Floor("wrmsr", **floor)),
        Kind(group, "wr_tsc_adjust", "write 0 to IA32_TSC_ADJUST", Guest("wr_tsc_adjust"), Floor("wr_tsc_adjust")),
    ]  # fmt: skip


def _interrupts() -> list[Kind]:
    group = "interrupts"
    s = guest_setup
    chip: dict[str, Any] = {"irqchip": "kernel"}
    pair: dict[str, Any] = {
        **chip,
        "cpus": 2,
        "r14": guests.SHARED_AT,
        "chunk": FEW,
        "other_handler": "answers_ipi",
    }
    found = [
        Kind(group, "irq_line", "KVM_IRQ_LINE of a line that is an MSI, to the handler's first instruction",
             Guest("irq", s.irq_line, handler="stamps", **chip), None, _only_kvm),
        Kind(group, "irq_irqfd", "write to an irqfd, to the handler's first instruction",
             Guest("irq", s.irq_irqfd, handler="stamps", **chip), None, _only_kvm),
        Kind(group, "ipi", "interrupt a vCPU that spins, until its handler has answered",
             Guest("ipi", others=("ipi_target",), **pair), None, _two_cpus),
        Kind(group, "ipi_halted", "the same to a vCPU that sleeps in HLT",
             Guest("ipi", others=("ipi_sleeper",), **pair), None, _two_cpus),
        Kind(group, "tscdeadline_immed", "arm a deadline that is over, to the handler's first instruction",
             Guest("tscdeadline_immed", s.deadline_timer, handler="stamps", chunk=FEW, **chip), None, _apic_in_kernel),
        Kind(group, "tscdeadline", f"how late a deadline {AHEAD} cycles ahead is: to the handler's first instruction",
             Guest("tscdeadline", s.deadline_timer, AHEAD, handler="stamps", chunk=FEW, **chip), None, _apic_in_kernel),
    ]  # fmt: skip
    how = {
        "self_ipi_sti_nop": "STI, NOP", "self_ipi_sti_hlt": "STI, HLT", "self_ipi_tpr": "held back by CR8",
        "self_ipi_tpr_sti_nop": "held back by CR8, then STI, NOP",
        "self_ipi_tpr_sti_hlt": "held back by CR8, then STI, HLT",
    }  # fmt: skip
    for name, words in how.items():
        guest = Guest(name, handler="answers", **chip)
        found.append(Kind(group, name, f"interrupt oneself and take it: {words}", guest))
    for name in ("sti_nop", "sti_hlt"):
        entry = f"x2apic_self_ipi_{name}"
        guest = Guest(entry, handler="answers_x2apic", **chip)
        summary = f"the same through x2APIC's own MSR: {how['self_ipi_' + name]}"
        found.append(Kind(group, entry, summary, guest, None, _apic_in_kernel))
    return found


def _memory() -> list[Kind]:
    group, at = "memory", guests.REGION_AT
    s = guest_setup
    small: dict[str, Any] = {"r14": at, "r15": 4096}
    return [
        Kind(group, "ept_violation_4k", "first write to a 4 KiB page that the host has",
             Guest("touch", s.remap_4k, memory="8M", **small), None, _mapped_by_hardware),
        Kind(group, "ept_violation_2m", "first write to a 2 MiB page that the host has",
             Guest("touch", s.remap_2m, at, s.HUGE, memory="20M", backing=s.huge_backing, chunk=s.HUGE_PAGES), None,
             _mapped_by_hardware),
        Kind(group, "dirty_log_write", "first write to a page after its dirty log was fetched",
             Guest("touch", s.dirty_log, **small), None, _mapped_by_hardware),
        Kind(group, "write_protect", "write to a read-only slot: an MMIO exit that C answers",
             Guest("touch", s.write_protect, **small), None, _only_kvm),
        Kind(group, "uffd_fault", "first write to a page that a thread brings through userfaultfd",
             Guest("touch", s.userfault, **small), None, _only_kvm),
        Kind(group, "memslot_change", "delete a memory slot of 2 MiB and make it again", Loop(host_kinds.memslot)),
    ]  # fmt: skip


def _host() -> list[Kind]:
    group, halt = "host", "halt"
    h = host_kinds
    return [
        Kind(group, "kvm_run_immediate_exit", "KVM_RUN with immediate_exit: into the kernel and back, no guest",
             Loop(h.immediate_exit), Floor(halt, method="immediate")),
        Kind(group, "kick", "kick from another thread, to the return of run()", Loop(h.kick)),
        Kind(group, "get_regs", "fetch the general registers, from Python", Loop(h.get_regs),
             Floor(halt, method="get_regs")),
        Kind(group, "set_regs", "set them, from Python", Loop(h.set_regs), Floor(halt, method="set_regs")),
        Kind(group, "sync_regs", "general and system registers out and in through the shared page, with such an entry",
             Loop(h.sync_regs), Floor(halt, method="immediate")),
        Kind("life cycle", "vm_create", "an empty VM", Loop(h.vm_create)),
        Kind("life cycle", "vcpu_create", "a vCPU in it", Loop(h.vcpu_create)),
        Kind("life cycle", "first_run", "the first entry of a new vCPU, to HLT", Loop(h.first_run)),
        Kind("life cycle", "vm_destroy", "vCPU and VM closed", Loop(h.vm_destroy)),
    ]  # fmt: skip


KINDS: tuple[Kind, ...] = (
    *_instructions(), *_ports(), *_mmio(), *_msrs(), *_interrupts(), *_memory(), *_host(),
)  # fmt: skip
ALIASES = {"inl_from_qemu": "inl_from_user", "wr_tsc_adjust_msr": "wr_tsc_adjust"}
"""Names of kvm-unit-tests for kinds that are called otherwise here."""


def choose(patterns: Iterable[str]) -> list[Kind]:
    """The kinds whose name or group one of the patterns ("mmio*") matches, in the order of KINDS; all for none.

    Raises UsageError, with the nearest names, for a pattern that matches nothing.
    """
    from fnmatch import fnmatchcase

    wanted = [ALIASES.get(pattern, pattern) for pattern in patterns]
    if not wanted:
        return list(KINDS)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for kind in KINDS for name in (kind.name, kind.group)):
            raise UsageError(f"no kind of exit is called {pattern!r}: {_nearest(pattern)}")
    return [
        kind
        for kind in KINDS
        if any(fnmatchcase(name, pattern) for pattern in wanted for name in (kind.name, kind.group))
    ]


def _nearest(pattern: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(pattern, [kind.name for kind in KINDS] + list(ALIASES), n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "`kvmpy bench exits --list` shows them"
