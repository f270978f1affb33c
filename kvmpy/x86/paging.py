"""Page tables built by the host: 32-bit, PAE, 4- and 5-level (SDM vol. 3 ch. 4, APM vol. 2 ch. 5).

`PageTables` collects mappings and encodes them for any guest physical address; `kvmpy.x86.walker.translate`
reads them back the way the processor would.
"""

# ruff: noqa: RUF023  (fields are declared in the order they are given, not by name)

from __future__ import annotations

from struct import pack_into

from kvmpy.errors import UsageError
from kvmpy.x86.layout import DEVICES_END, PAGE
from kvmpy.x86.record import Record, fill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
WRITE_THROUGH = 1 << 3
CACHE_DISABLE = 1 << 4
ACCESSED = 1 << 5
DIRTY = 1 << 6
LARGE = 1 << 7
GLOBAL = 1 << 8
NO_EXECUTE = 1 << 63

KIB4 = 1 << 12
MIB2 = 1 << 21
MIB4 = 1 << 22
GIB1 = 1 << 30


class Scheme(Record):
    """One way of paging: ``shifts`` of its levels from the root down, sizes of its leaves, entry width."""

    __slots__ = ("name", "shifts", "leaves", "entry_bytes", "virtual_bits", "physical_bits", "nx")
    name: str
    shifts: tuple[int, ...]
    leaves: tuple[int, ...]
    entry_bytes: int
    virtual_bits: int
    physical_bits: int
    nx: bool

    def __init__(
        self,
        name: str,
        shifts: tuple[int, ...],
        leaves: tuple[int, ...],
        entry_bytes: int,
        virtual_bits: int,
        physical_bits: int,
        nx: bool,
    ) -> None:
        fill(self, "name", name)
        fill(self, "shifts", shifts)
        fill(self, "leaves", leaves)
        fill(self, "entry_bytes", entry_bytes)
        fill(self, "virtual_bits", virtual_bits)
        fill(self, "physical_bits", physical_bits)
        fill(self, "nx", nx)

    @property
    def canonical_bits(self) -> int:
        """Width of the sign-extended address, 0 where addresses are plain 32-bit numbers."""
        return self.virtual_bits if self.virtual_bits > 32 else 0


SCHEMES = {
    "32-bit": Scheme("32-bit", (22, 12), (MIB4, KIB4), 4, 32, 40, False),
    "pae": Scheme("pae", (30, 21, 12), (MIB2, KIB4), 8, 32, 52, True),
    "4-level": Scheme("4-level", (39, 30, 21, 12), (GIB1, MIB2, KIB4), 8, 48, 52, True),
    "5-level": Scheme("5-level", (48, 39, 30, 21, 12), (GIB1, MIB2, KIB4), 8, 57, 52, True),
}


class Mapping(Record):
    """``length`` bytes from ``virtual`` shown at ``physical``; all three multiples of the page size.

    ``page_size`` None takes the largest pages that alignment and the builder's ``page_size`` allow; a
    number insists on pages of exactly that size. ``cache`` is "write-back", "write-through" or "uncached"
    (PWT, PCD).
    """

    __slots__ = (
        "virtual", "physical", "length", "writable", "user", "executable",
        "page_size", "global_page", "cache",
    )  # fmt: skip
    virtual: int
    physical: int
    length: int
    writable: bool
    user: bool
    executable: bool
    page_size: int | None
    global_page: bool
    cache: str

    def __init__(
        self,
        virtual: int,
        physical: int,
        length: int,
        writable: bool = True,
        user: bool = False,
        executable: bool = True,
        page_size: int | None = None,
        global_page: bool = False,
        cache: str = "write-back",
    ) -> None:
        fill(self, "virtual", virtual)
        fill(self, "physical", physical)
        fill(self, "length", length)
        fill(self, "writable", writable)
        fill(self, "user", user)
        fill(self, "executable", executable)
        fill(self, "page_size", page_size)
        fill(self, "global_page", global_page)
        fill(self, "cache", cache)

    @property
    def end(self) -> int:
        """First virtual address behind the mapping."""
        return self.virtual + self.length

    def __str__(self) -> str:
        return f"{self.virtual:#x}-{self.end - 1:#x} -> {self.physical:#x}"


_CACHE_BITS = {"write-back": 0, "write-through": WRITE_THROUGH, "uncached": WRITE_THROUGH | CACHE_DISABLE}


def identity(
    memory_size: int,
    *,
    page_size: int = MIB2,
    user: bool = False,
    scheme: str = "4-level",
    end: int = DEVICES_END,
) -> list[Mapping]:
    """The default map: virtual is physical, for RAM and everything else up to ``end`` (APIC, devices, ROM).

    RAM, ``memory_size`` bytes from 0, gets pages of ``page_size``. What follows gets large ones (2 MiB, 4
    MiB without PAE) even where RAM has 4 KiB ones: else the windows of devices alone would cost 8 MiB of
    tables.
    """
    chosen = SCHEMES[scheme]
    check_page_size(page_size, chosen)
    top = 1 << (32 if chosen.virtual_bits == 32 else chosen.virtual_bits - 1)
    large = max(page_size, chosen.leaves[-2])
    edges = [
        0,
        min(_round_up(memory_size, page_size), top),
        min(_round_up(memory_size, large), top),
        min(_round_up(max(memory_size, end), large), top),
    ]
    return [
        Mapping(first, first, last - first, user=user, page_size=size)
        for first, last, size in zip(edges, edges[1:], (page_size, page_size, large), strict=False)
        if first < last
    ]


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class _Table:
    __slots__ = ("entries", "children")

    def __init__(self, entries: int) -> None:
        self.entries = [0] * entries
        self.children: dict[int, _Table] = {}


class PageTables:
    """Page tables under construction.

    ``scheme`` is a key of `SCHEMES`; ``page_size`` the largest page for mappings that don't insist on one.
    Accessed and dirty bits are set beforehand (``touched``), so a guest's first accesses don't write to its
    tables. Permissions live in the leaves: every table entry above them is writable and user.

    >>> tables = PageTables(page_size=MIB2)
    >>> tables.map(Mapping(0xffffffff80000000, 0x200000, 0x400000))
    >>> hex(tables.size)
    '0x3000'
    """

    def __init__(self, scheme: str = "4-level", *, page_size: int = MIB2, touched: bool = True) -> None:
        if scheme not in SCHEMES:
            raise UsageError(f"no paging scheme {scheme!r}: one of {', '.join(SCHEMES)}")
        self.scheme = SCHEMES[scheme]
        check_page_size(page_size, self.scheme)
        self.page_size = page_size
        self.mappings: list[Mapping] = []
        self._touched = touched
        per_root = 4 if scheme == "pae" else PAGE // self.scheme.entry_bytes
        self._root = _Table(per_root)
        self._tables = 1

    def map(self, mapping: Mapping) -> None:
        """Add a mapping; UsageError if it is misaligned, not canonical, too wide or overlaps another."""
        self._check(mapping)
        size = mapping.page_size or self.page_size
        flags = self._flags(mapping)
        mask = (1 << self.scheme.virtual_bits) - 1
        self._fill(self._root, 0, mapping.virtual & mask, mapping.physical, mapping.length, size, flags)
        self.mappings.append(mapping)

    def find(self, virtual: int) -> Mapping | None:
        """The mapping that covers this virtual address."""
        return next((m for m in self.mappings if m.virtual <= virtual < m.end), None)

    def virtual_of(self, physical: int, length: int) -> int | None:
        """Where ``length`` bytes at a physical address can be seen: at the same address if possible."""
        seen = [
            m.virtual + physical - m.physical
            for m in self.mappings
            if m.physical <= physical and physical + length <= m.physical + m.length
        ]
        return physical if physical in seen else min(seen, default=None)

    @property
    def size(self) -> int:
        """Bytes the encoded tables take: a whole page each, the four PAE root entries as well."""
        return self._tables * PAGE

    def encode(self, address: int) -> bytes:
        """The tables as they go to guest physical ``address`` (page-aligned), the root first: CR3 is that."""
        limit = 1 << (32 if self.scheme.virtual_bits == 32 else self.scheme.physical_bits)
        if address % PAGE or not 0 <= address <= limit - self.size:
            raise UsageError(f"page tables at {address:#x} must be page-aligned and end below {limit:#x}")
        data = bytearray(self.size)
        queue = [self._root]  # grows while it is walked: a table's place in it is its place in memory
        link = PRESENT | WRITABLE | USER | (ACCESSED if self._touched else 0)
        letter = "Q" if self.scheme.entry_bytes == 8 else "I"
        for number, table in enumerate(queue):
            # a PAE root entry has reserved bits where the others have permissions
            flags = PRESENT if self.scheme.name == "pae" and number == 0 else link
            entries = table.entries.copy() if table.children else table.entries
            for index, child in table.children.items():
                entries[index] = address + len(queue) * PAGE | flags
                queue.append(child)
            pack_into(f"<{len(entries)}{letter}", data, number * PAGE, *entries)
        return bytes(data)

    def _flags(self, mapping: Mapping) -> int:
        flags = PRESENT | _CACHE_BITS[mapping.cache]
        flags |= WRITABLE if mapping.writable else 0
        flags |= USER if mapping.user else 0
        flags |= GLOBAL if mapping.global_page else 0
        flags |= 0 if mapping.executable else NO_EXECUTE
        return flags | (ACCESSED | DIRTY if self._touched else 0)

    def _fill(
        self, table: _Table, level: int, virtual: int, physical: int, length: int, size: int, flags: int
    ) -> None:
        shifts = self.scheme.shifts
        step = 1 << shifts[level]
        slots = len(table.entries)
        while length:
            index = virtual // step % slots
            aligned = not (virtual | physical) % step
            if aligned and step <= size and length >= step and step in self.scheme.leaves:
                count = length // step  # never past this table: the level above has cut the length
                large = LARGE if level < len(shifts) - 1 else 0
                table.entries[index : index + count] = self._leaves(physical, step, count, flags | large)
                done = count * step
            else:
                done = min(step - virtual % step, length)
                child = table.children.get(index)
                if child is None:
                    child = table.children[index] = _Table(PAGE // self.scheme.entry_bytes)
                    self._tables += 1
                self._fill(child, level + 1, virtual, physical, done, size, flags)
            virtual += done
            physical += done
            length -= done

    def _leaves(self, physical: int, step: int, count: int, flags: int) -> Iterable[int]:
        if step == MIB4 and physical + count * step > 1 << 32:
            # PSE-36: address bits 39-32 live in entry bits 20-13
            pages = range(physical, physical + count * step, step)
            return [page & 0xFFFFFFFF | page >> 32 << 13 | flags for page in pages]
        return range(physical | flags, (physical | flags) + count * step, step)

    def _check(self, mapping: Mapping) -> None:
        scheme = self.scheme
        if mapping.cache not in _CACHE_BITS:
            kinds = ", ".join(_CACHE_BITS)
            raise UsageError(f"mapping {mapping}: cache {mapping.cache!r} isn't one of {kinds}")
        if not mapping.executable and not scheme.nx:
            raise UsageError(f"mapping {mapping}: {scheme.name} paging can't make pages non-executable")
        if mapping.page_size is not None:
            check_page_size(mapping.page_size, scheme)
        unit = mapping.page_size or KIB4
        if mapping.length <= 0 or (mapping.virtual | mapping.physical | mapping.length) % unit:
            raise UsageError(
                f"mapping {mapping}: virtual, physical and length {mapping.length:#x}"
                f" must be multiples of {unit:#x}"
            )
        check_range(mapping.virtual, mapping.length, scheme)
        # without PAE only 4 MiB pages reach beyond 4 GiB (PSE-36)
        step = mapping.page_size or self.page_size
        small = step == KIB4 or (mapping.virtual | mapping.physical | mapping.length) % MIB4
        top = 32 if scheme.name == "32-bit" and small else scheme.physical_bits
        if not 0 <= mapping.physical <= (1 << top) - mapping.length:
            raise UsageError(
                f"mapping {mapping}: physical addresses end at {1 << top:#x} with {scheme.name} paging"
            )
        for other in self.mappings:
            if mapping.virtual < other.end and other.virtual < mapping.end:
                raise UsageError(f"mapping {mapping} overlaps {other}")


def check_page_size(page_size: int, scheme: Scheme) -> None:
    """Raise UsageError unless ``scheme`` has pages of ``page_size`` bytes."""
    if page_size not in scheme.leaves:
        sizes = ", ".join(f"{leaf:#x}" for leaf in reversed(scheme.leaves))
        raise UsageError(f"{scheme.name} paging has no pages of {page_size:#x} bytes: one of {sizes}")


def check_range(virtual: int, length: int, scheme: Scheme) -> None:
    """Raise UsageError unless paging of this kind can translate ``length`` bytes from ``virtual``."""
    last = virtual + length - 1
    half = 1 << scheme.virtual_bits - 1
    if not scheme.canonical_bits:
        if virtual < 0 or last >> 32:
            raise UsageError(f"virtual {virtual:#x}-{last:#x} is outside 0-0xffffffff")
    elif virtual < 0 or (half <= last and virtual < (1 << 64) - half) or last >> 64:
        raise UsageError(
            f"virtual {virtual:#x}-{last:#x} isn't canonical: {scheme.name} paging has 0-{half - 1:#x}"
            f" and {(1 << 64) - half:#x}-0xffffffffffffffff"
        )
