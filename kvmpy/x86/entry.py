"""Entry states: what a vCPU and memory hold when a guest starts, so that no guest has to bring itself up.

The builders are pure: they compute tables as bytes and leave writing them to the machine. Where things go
by default is in `kvmpy.x86.layout`.
"""

# ruff: noqa: RUF023  (fields are declared in the order they are given, not by name)

from __future__ import annotations

from kvmpy.errors import UsageError
from kvmpy.x86 import descriptors, layout, paging, segments
from kvmpy.x86 import registers as bits
from kvmpy.x86.record import Values
from kvmpy.x86.segments import DescriptorTable, Segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

U64 = (1 << 64) - 1
RESET_SIGNATURE = 0x600
"""What EDX holds after a reset unless told otherwise: family 6, as KVM itself does without CPUID."""


class EntryState(Values):
    """What a vCPU and memory hold when the guest starts.

    ``mode`` is "real", "protected" or "long". ``regs`` has the names of ``struct kvm_regs`` (rax … r15,
    rip, rflags); a missing one is 0, a missing rflags 2. ``segments`` has cs, ds, es, fs, gs, ss, tr and
    ldt. ``memory`` are (guest physical address, bytes) to write before the start: descriptor and page
    tables.
    """

    __slots__ = (
        "mode", "regs", "segments", "gdt", "idt", "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "memory",
    )  # fmt: skip

    def __init__(
        self,
        mode: str,
        regs: dict[str, int],
        segments: dict[str, Segment],
        gdt: DescriptorTable,
        idt: DescriptorTable,
        cr0: int,
        cr2: int = 0,
        cr3: int = 0,
        cr4: int = 0,
        cr8: int = 0,
        efer: int = 0,
        memory: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        self.mode = mode
        self.regs = regs
        self.segments = segments
        self.gdt = gdt
        self.idt = idt
        self.cr0 = cr0
        self.cr2 = cr2
        self.cr3 = cr3
        self.cr4 = cr4
        self.cr8 = cr8
        self.efer = efer
        self.memory = list(memory)

    def reg(self, name: str) -> int:
        """A general register, ``rip`` or ``rflags`` as the vCPU will have it."""
        return self.regs.get(name, 2 if name == "rflags" else 0)

    def collides(self, address: int, length: int) -> tuple[int, int] | None:
        """The first table, as (address, length), that lies in ``length`` bytes from ``address``."""
        for start, data in self.memory:
            if start < address + length and address < start + len(data):
                return start, len(data)
        return None


def real_mode(
    cs: int,
    ip: int,
    *,
    sp: int = 0,
    dl: int = 0,
    ds: int = 0,
    es: int = 0,
    ss: int = 0,
    interrupts: bool = False,
    regs: Mapping[str, int] | None = None,
) -> EntryState:
    """Real mode at ``cs``:``ip``, as a BIOS leaves it: A20 open, caches on, the vector table at 0.

    Segments, ``ip`` and ``sp`` 0-0xffff, ``dl`` 0-0xff (the BIOS drive number for boot sectors).
    ``interrupts`` sets IF. ``regs`` sets further registers. UsageError for a value out of range. SDM vol. 3
    ch. 21.1.
    """
    _in_range("ip", ip, 0xFFFF)
    _in_range("sp", sp, 0xFFFF)
    _in_range("dl", dl, 0xFF)
    selectors = {"ds": ds, "es": es, "fs": 0, "gs": 0, "ss": ss}
    data = {name: segments.real(number) for name, number in selectors.items()}
    return EntryState(
        mode="real",
        regs=_registers({"rip": ip, "rsp": sp, "rdx": dl}, regs, interrupts),
        segments={"cs": segments.real(cs, code=True), **data, **_system_after_reset()},
        gdt=DescriptorTable(0, 0xFFFF),
        idt=DescriptorTable(0, 0x3FF),
        cr0=bits.CR0_ET,
    )


def reset_vector(*, signature: int = RESET_SIGNATURE) -> EntryState:
    """The state after power-on or RESET#: F000:FFF0 with CS based at 0xffff0000, so 16 bytes below 4 GiB.

    ``signature`` is what EDX holds (CPUID leaf 1 EAX). SDM vol. 3 ch. 10.1.1 and table 10-1.
    """
    _in_range("signature", signature, 0xFFFFFFFF)
    state = real_mode(0xF000, 0xFFF0, regs={"rdx": signature})
    state.segments["cs"] = state.segments["cs"].replace(base=0xFFFF0000)
    state.idt = DescriptorTable(0, 0xFFFF)
    state.cr0 = bits.CR0_CD | bits.CR0_NW | bits.CR0_ET
    return state


def startup_ipi(vector: int) -> EntryState:
    """Where an application processor starts after INIT, SIPI: ``vector`` * 0x1000. SDM vol. 3 ch. 9.4.3."""
    _in_range("SIPI vector", vector, 0xFF)
    return real_mode(vector << 8, 0, regs={"rdx": RESET_SIGNATURE})


def protected_mode(
    entry: int,
    *,
    paging: bool = False,
    pae: bool = False,
    page_size: int | None = None,
    map: Iterable[paging.Mapping] | None = None,
    ring: int = 0,
    memory_size: int = layout.LEGACY_START,
    stack: int | None = None,
    tables_at: int | None = None,
    avoid: Iterable[tuple[int, int]] = (),
    ports: bool | Iterable[range] = False,
    idt: Mapping[int, int] | None = None,
    interrupts: bool = False,
    regs: Mapping[str, int] | None = None,
) -> EntryState:
    """32-bit protected mode at ``entry``, flat 4 GiB segments.

    ``paging`` switches paging on: two levels with pages of ``page_size`` 4 KiB or 4 MiB (default), or with
    ``pae`` three levels and 4 KiB or 2 MiB (default). The other parameters are those of `long_mode`.
    """
    _in_range("entry", entry, 0xFFFFFFFF)
    scheme = "pae" if pae else "32-bit"
    plan = _Plan(32, ring, memory_size, avoid, stack, tables_at, ports, idt)
    cr0 = bits.CR0_PE | bits.CR0_MP | bits.CR0_ET | bits.CR0_NE
    cr4 = bits.CR4_OSFXSR | bits.CR4_OSXMMEXCPT
    efer = 0
    if paging:
        plan.paging(scheme, page_size or SCHEMES[scheme].leaves[0], map, entry)
        cr0 |= bits.CR0_PG | bits.CR0_WP
        cr4 |= bits.CR4_PAE if pae else bits.CR4_PSE
        efer = bits.EFER_NXE if pae else 0
    elif map is not None or page_size is not None or pae:
        raise UsageError("map, page_size and pae describe page tables: they need paging=True")
    return plan.state("protected", entry, cr0, cr4, efer, interrupts, regs)


def long_mode(
    entry: int,
    *,
    memory_size: int,
    ring: int = 0,
    page_size: int = paging.MIB2,
    map: Iterable[paging.Mapping] | None = None,
    levels: int = 4,
    stack: int | None = None,
    tables_at: int | None = None,
    avoid: Iterable[tuple[int, int]] = (),
    ports: bool | Iterable[range] = False,
    idt: Mapping[int, int] | None = None,
    interrupts: bool = False,
    regs: Mapping[str, int] | None = None,
) -> EntryState:
    """64-bit mode at ``entry``, in ``ring`` 0 or 3, with page tables built here.

    ``memory_size`` is the RAM from 0 without a hole, in bytes: tables and stack have to fit there. ``map``
    None is the identity map of RAM and of everything else below 4 GiB (`paging.identity`) in pages of
    ``page_size`` (4 KiB, 2 MiB or 1 GiB), user pages when ``ring`` is 3. A ``map`` replaces it; only the
    pages with GDT and TSS are added, where it doesn't show them. ``stack`` is the initial stack pointer.
    ``tables_at`` says where GDT, TSS and page tables go (page-aligned); without it a place that keeps clear
    of ``avoid``, (address, length) pairs, is found. ``ports``: True or ranges of I/O ports that ring 3 may
    use, through the I/O bitmap of the TSS. ``idt``: vector to handler address, for interrupt gates into
    ring 0; without it the IDT is empty and any exception ends in shutdown.

    UsageError for an entry that is not canonical or not mapped, a bad mapping, ring or alignment;
    GuestMemoryError where the tables don't fit. SDM vol. 3 ch. 10.8.5.
    """
    if levels not in (4, 5):
        raise UsageError(f"long mode has 4 or 5 levels of page tables, not {levels}")
    plan = _Plan(64, ring, memory_size, avoid, stack, tables_at, ports, idt)
    plan.paging(f"{levels}-level", page_size, map, entry)
    cr0 = bits.CR0_PE | bits.CR0_MP | bits.CR0_ET | bits.CR0_NE | bits.CR0_WP | bits.CR0_PG
    cr4 = bits.CR4_PAE | bits.CR4_OSFXSR | bits.CR4_OSXMMEXCPT | (bits.CR4_LA57 if levels == 5 else 0)
    efer = bits.EFER_SCE | bits.EFER_LME | bits.EFER_LMA | bits.EFER_NXE
    return plan.state("long", entry, cr0, cr4, efer, interrupts, regs)


SCHEMES = paging.SCHEMES


class _Plan:
    """One start in protected or long mode: decides what tables it needs, then where, then what they hold."""

    def __init__(
        self,
        width: int,
        ring: int,
        memory_size: int,
        avoid: Iterable[tuple[int, int]],
        stack: int | None,
        tables_at: int | None,
        ports: bool | Iterable[range],
        idt: Mapping[int, int] | None,
    ) -> None:
        if ring not in (0, 3):
            raise UsageError(f"ring {ring}: an entry state is for ring 0 or 3")
        if memory_size <= 0:
            raise UsageError(f"memory size {memory_size} must be positive")
        self.width, self.ring, self.memory_size, self.avoid = width, ring, memory_size, list(avoid)
        self.stack, self.tables_at = stack, tables_at
        allowed = (range(descriptors.PORTS),) if ports is True else tuple(ports or ())
        self.bitmap = descriptors.io_bitmap(allowed) if allowed else b""
        self.handlers = idt
        self.tables: paging.PageTables | None = None
        self.own_map = False
        tss_size = descriptors.Tss64.SIZE + len(self.bitmap)
        self.idt_at = layout.page_up(layout.TSS_OFFSET + tss_size)
        self.stack_at = self.idt_at + (layout.PAGE if idt else 0)
        self.pages_at = self.stack_at + (layout.PAGE if ring else 0)

    def paging(self, scheme: str, page_size: int, maps: Iterable[paging.Mapping] | None, entry: int) -> None:
        self.tables = paging.PageTables(scheme, page_size=page_size)
        self.own_map = maps is not None
        if maps is None:
            maps = paging.identity(self.memory_size, page_size=page_size, user=self.ring == 3, scheme=scheme)
        for mapping in maps:
            self.tables.map(mapping)
        paging.check_range(entry, 1, self.tables.scheme)
        found = self.tables.find(entry)
        if found is None:
            raise UsageError(
                f"entry {entry:#x} isn't in any mapping: add one, or leave out map for an identity map"
            )
        if not found.executable or (self.ring and not found.user):
            lacking = "a user page" if found.executable else "executable"
            raise UsageError(f"entry {entry:#x} for ring {self.ring} isn't {lacking}: {found}")

    def place(self) -> int:
        """Decide the address of the block; page tables may grow by what it takes to show the descriptors."""
        extra = 3 * layout.PAGE if self.own_map else 0
        size = self.pages_at + (self.tables.size + extra if self.tables else 0)
        at = self.tables_at
        if at is None:
            at = layout.place_tables(size, self.memory_size, self.avoid)
        if self.tables and self.tables.virtual_of(at, self.pages_at) is None:
            self.tables.map(paging.Mapping(at, at, self.pages_at))
        size = self.pages_at + (self.tables.size if self.tables else 0)
        layout.check_tables(at, size, self.memory_size)
        self.size = size
        return at

    def state(
        self,
        mode: str,
        entry: int,
        cr0: int,
        cr4: int,
        efer: int,
        interrupts: bool,
        regs: Mapping[str, int] | None,
    ) -> EntryState:
        at = self.place()
        linear = at
        if self.tables:
            linear = self.tables.virtual_of(at, self.pages_at) or 0
            cr4 |= bits.CR4_PGE if any(m.global_page for m in self.tables.mappings) else 0
        stack = self.stack
        if stack is None:
            stack = layout.default_stack(self.memory_size, [*self.avoid, (at, self.size)])
        self._check_stack(stack)
        tss = self._tss(linear + self.pages_at if self.ring else stack)
        task = segments.task(layout.TSS, linear + layout.TSS_OFFSET, len(tss) - 1)
        gdt = build_gdt(self.width, task)
        memory = [(at + layout.GDT_OFFSET, gdt), (at + layout.TSS_OFFSET, tss)]
        vectors = DescriptorTable(0, 0)
        if self.handlers:
            table = self._idt(self.handlers)
            memory.append((at + self.idt_at, table))
            vectors = DescriptorTable(linear + self.idt_at, len(table) - 1)
        if self.tables:
            memory.append((at + self.pages_at, self.tables.encode(at + self.pages_at)))
        return EntryState(
            mode=mode,
            regs=_registers({"rip": entry, "rsp": stack}, regs, interrupts),
            segments=self._segments(task),
            gdt=DescriptorTable(linear + layout.GDT_OFFSET, len(gdt) - 1),
            idt=vectors,
            cr0=cr0,
            cr3=at + self.pages_at if self.tables else 0,
            cr4=cr4,
            efer=efer,
            memory=memory,
        )

    def _check_stack(self, stack: int) -> None:
        if self.tables:
            # the first push goes below the stack pointer, so the top of the address space is fine
            paging.check_range(stack - 1 if stack else 0, 1, self.tables.scheme)
        else:
            _in_range("stack", stack, 0xFFFFFFFF)

    def _tss(self, kernel_stack: int) -> bytes:
        if self.width == 64:
            return bytes(descriptors.Tss64([kernel_stack], bitmap=self.bitmap))
        return bytes(descriptors.Tss32([(layout.DATA, kernel_stack)], self.bitmap))

    def _idt(self, handlers: Mapping[int, int]) -> bytes:
        gates = {
            vector: descriptors.Gate(handler, layout.CODE, self.width, dpl=3 if vector in (3, 4) else 0)
            for vector, handler in handlers.items()
        }
        return descriptors.encode_idt(gates)

    def _segments(self, task: Segment) -> dict[str, Segment]:
        code, data = (layout.USER_CODE, layout.USER_DATA) if self.ring else (layout.CODE, layout.DATA)
        flat = segments.flat_data(data | self.ring, dpl=self.ring)
        return {
            "cs": segments.flat_code(code | self.ring, bits=self.width, dpl=self.ring),
            **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), flat),
            "tr": task,
            "ldt": segments.unusable(),
        }


def build_gdt(width: int, task: Segment) -> bytes:
    """The GDT of every entry state (selectors in `kvmpy.x86.layout`); ``width`` 32 or 64, ``task`` the TSS.

    The TSS is entered as available, so that the guest itself can load it (``ltr``).
    """
    narrow = 32 if width == 64 else 16
    flat = (
        segments.flat_code(0, bits=width),
        segments.flat_data(0),
        segments.flat_code(0, bits=width, dpl=3),
        segments.flat_data(0, dpl=3),
        segments.flat_code(0, bits=width, dpl=3),
        segments.flat_data(0, dpl=3),
        segments.flat_code(0, bits=narrow),
    )
    parts = [bytes(8), *(segments.encode(segment) for segment in flat)]
    available = task.replace(type=segments.TSS_AVAILABLE)
    parts.append(segments.encode(available, wide=width == 64).ljust(16, b"\0"))
    parts.append(segments.encode(segments.flat_data(0, bits=16)))
    return b"".join(parts)


def _system_after_reset() -> dict[str, Segment]:
    # both usable, TR busy: what the processor has after reset, and what VM entry on VT-x asks for
    return {
        "tr": Segment(limit=0xFFFF, type=segments.TSS_BUSY, present=1),
        "ldt": Segment(limit=0xFFFF, type=segments.LDT, present=1),
    }


def _registers(base: dict[str, int], more: Mapping[str, int] | None, interrupts: bool) -> dict[str, int]:
    result = {"rflags": bits.RFLAGS_FIXED | (bits.RFLAGS_IF if interrupts else 0), **base}
    for name, number in (more or {}).items():
        if name not in bits.REGISTERS:
            raise UsageError(f"there is no register {name!r}: one of {', '.join(bits.REGISTERS)}")
        _in_range(name, number, U64)
        result[name] = number
    return result


def _in_range(name: str, number: int, top: int) -> None:
    if not 0 <= number <= top:
        raise UsageError(f"{name} {number:#x} is outside 0-{top:#x}")
