"""Page tables read the way the processor reads them (SDM vol. 3 ch. 4.3-4.7, APM vol. 2 ch. 5.3-5.6).

Nothing is written: accessed and dirty bits stay as they are. Protection keys aren't applied.
"""

# ruff: noqa: RUF023  (fields are declared in the order they are given, not by name)

from __future__ import annotations

from kvmpy.errors import KvmpyError, UsageError
from kvmpy.x86 import paging
from kvmpy.x86 import registers as bits
from kvmpy.x86.modes import paging_mode
from kvmpy.x86.paging import SCHEMES, Mapping, Scheme
from kvmpy.x86.record import Record, fill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[int, int], bytes]

PF_PRESENT = 1 << 0
PF_WRITE = 1 << 1
PF_USER = 1 << 2
PF_RESERVED = 1 << 3
PF_FETCH = 1 << 4


class TranslationFault(KvmpyError):
    """The exception an access would raise: ``vector`` 14 (#PF) or 13 (#GP, not canonical).

    ``error_code`` as it would be pushed, ``address`` the linear address, ``level`` 1 for the table whose
    entries are 4 KiB pages up to 5, or 0 where no table was to blame.
    """

    def __init__(self, address: int, vector: int, error_code: int, level: int, why: str) -> None:
        name = "#PF" if vector == 14 else "#GP"
        super().__init__(f"{name}({error_code:#x}) at {address:#x}: {why}")
        self.address = address
        self.vector = vector
        self.error_code = error_code
        self.level = level


class Translation(Record):
    """Where a linear address leads: guest physical address, size of its page, rights, and the entries passed.

    ``entries`` are (guest physical address, value) pairs, root first; empty with paging off.
    """

    __slots__ = ("physical", "page_size", "writable", "user", "executable", "global_page", "entries")
    physical: int
    page_size: int
    writable: bool
    user: bool
    executable: bool
    global_page: bool
    entries: tuple[tuple[int, int], ...]

    def __init__(
        self,
        physical: int,
        page_size: int,
        writable: bool = True,
        user: bool = True,
        executable: bool = True,
        global_page: bool = False,
        entries: tuple[tuple[int, int], ...] = (),
    ) -> None:
        fill(self, "physical", physical)
        fill(self, "page_size", page_size)
        fill(self, "writable", writable)
        fill(self, "user", user)
        fill(self, "executable", executable)
        fill(self, "global_page", global_page)
        fill(self, "entries", entries)


def translate(
    read: Read,
    virtual: int,
    *,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    write: bool = False,
    execute: bool = False,
    user: bool = False,
    rflags: int = bits.RFLAGS_FIXED,
    physical_bits: int = 52,
) -> Translation:
    """Translate a linear address for an access of the given kind.

    ``read(gpa, length)`` gives guest physical memory; what it raises for an address outside memory comes
    through. ``user`` is an access from ring 3. ``rflags`` matters for AC under SMAP. TranslationFault if
    the access isn't allowed; UsageError for an address that isn't a 64-bit number.
    """
    walk = _Walk(read, cr0, cr3, cr4, efer, physical_bits)
    access = (PF_WRITE if write else 0) | (PF_USER if user else 0) | (PF_FETCH if execute else 0)
    found = walk.find(virtual, access)
    if walk.scheme:
        walk.check_rights(virtual, found, access, bool(rflags & bits.RFLAGS_AC))
    return found


def mapped(
    read: Read, *, cr0: int, cr3: int, cr4: int, efer: int, physical_bits: int = 52
) -> Iterator[Mapping]:
    """Everything the tables map, by rising virtual address; neighbours of the same kind are joined.

    Entries with reserved bits set are left out. Nothing with paging off.
    """
    walk = _Walk(read, cr0, cr3, cr4, efer, physical_bits)
    if not walk.scheme:
        return
    pending: Mapping | None = None
    for piece in walk.leaves(0, walk.root, 0, paging.WRITABLE | paging.USER):
        if pending and _continues(pending, piece):
            pending = pending.replace(length=pending.length + piece.length)
            continue
        if pending:
            yield pending
        pending = piece
    if pending:
        yield pending


def _continues(first: Mapping, second: Mapping) -> bool:
    moved = second.replace(virtual=first.virtual, physical=first.physical, length=first.length)
    return moved == first and second.virtual == first.end and second.physical == first.physical + first.length


class _Walk:
    """The processor's view of one set of control registers."""

    def __init__(self, read: Read, cr0: int, cr3: int, cr4: int, efer: int, physical_bits: int) -> None:
        self.read, self.cr0, self.cr4 = read, cr0, cr4
        self.physical_bits = physical_bits
        name = paging_mode(cr0, cr4, efer)
        self.scheme: Scheme | None = None if name == "none" else SCHEMES[name]
        self.nxe = bool(efer & bits.EFER_NXE) and name != "32-bit"
        self.root = cr3 & (
            0xFFFFFFE0 if name == "pae" else 0xFFFFF000 if name == "32-bit" else 0xF_FFFF_FFFF_F000
        )

    def find(self, virtual: int, access: int) -> Translation:
        if not 0 <= virtual < 1 << 64:
            raise UsageError(f"linear address {virtual:#x} isn't a 64-bit number")
        scheme = self.scheme
        if not scheme:
            return Translation(virtual & 0xFFFFFFFF, paging.KIB4)
        self._check_address(virtual, scheme)
        error = access & ~(0 if self._fetch_reported else PF_FETCH)
        table, rights, fetch = self.root, paging.WRITABLE | paging.USER, True
        entries: list[tuple[int, int]] = []
        for depth, shift in enumerate(scheme.shifts):
            level = len(scheme.shifts) - depth
            slot = table + (virtual >> shift & self._slots(depth) - 1) * scheme.entry_bytes
            entry = int.from_bytes(self.read(slot, scheme.entry_bytes), "little")
            entries.append((slot, entry))
            if not entry & paging.PRESENT:
                raise TranslationFault(
                    virtual, 14, error, level, f"level {level} entry {entry:#x} isn't present"
                )
            reserved = entry & self._reserved(depth, entry)
            if reserved:
                why = f"level {level} entry {entry:#x} has reserved bits {reserved:#x} set"
                raise TranslationFault(virtual, 14, error | PF_PRESENT | PF_RESERVED, level, why)
            if not (scheme.name == "pae" and depth == 0):
                rights &= entry
            fetch = fetch and not entry & paging.NO_EXECUTE
            if self._is_leaf(depth, entry):
                break
            table = entry & self._address_mask
        page = 1 << shift
        return Translation(
            physical=self._frame(entry, page) | virtual & page - 1,
            page_size=page,
            writable=bool(rights & paging.WRITABLE),
            user=bool(rights & paging.USER),
            executable=fetch,
            global_page=bool(entry & paging.GLOBAL and self.cr4 & bits.CR4_PGE),
            entries=tuple(entries),
        )

    def check_rights(self, virtual: int, found: Translation, access: int, ac: bool) -> None:
        why = self._denied(found, access, ac)
        if why:
            error = PF_PRESENT | access & ~(0 if self._fetch_reported else PF_FETCH)
            raise TranslationFault(virtual, 14, error, 0, why)

    def _denied(self, found: Translation, access: int, ac: bool) -> str:
        if access & PF_USER:
            if not found.user:
                return "a supervisor page, accessed from ring 3"
            if access & PF_WRITE and not found.writable:
                return "a read-only page, written from ring 3"
        elif access & PF_WRITE and not found.writable and self.cr0 & bits.CR0_WP:
            return "a read-only page, written with CR0.WP set"
        if access & PF_FETCH and not found.executable:
            return "a no-execute page, executed"
        if found.user and not access & PF_USER:
            if access & PF_FETCH and self.cr4 & bits.CR4_SMEP:
                return "a user page, executed by the supervisor with CR4.SMEP set"
            if not access & PF_FETCH and self.cr4 & bits.CR4_SMAP and not ac:
                return "a user page, accessed by the supervisor with CR4.SMAP set and RFLAGS.AC clear"
        return ""

    def leaves(self, depth: int, table: int, virtual: int, rights: int) -> Iterator[Mapping]:
        scheme = self.scheme
        assert scheme is not None
        shift = scheme.shifts[depth]
        count, width = self._slots(depth), scheme.entry_bytes
        data = self.read(table, count * width)
        for index in range(count):
            entry = int.from_bytes(data[index * width : index * width + width], "little")
            if not entry & paging.PRESENT or entry & self._reserved(depth, entry):
                continue
            place = virtual | index << shift
            if depth == 0 and scheme.canonical_bits and index >= count // 2:
                place |= (1 << 64) - (1 << scheme.virtual_bits)
            own = entry & (paging.WRITABLE | paging.USER)
            below = rights & paging.NO_EXECUTE | entry & paging.NO_EXECUTE
            below |= rights & (paging.WRITABLE | paging.USER) & (own if not self._is_pdpte(depth) else rights)
            if self._is_leaf(depth, entry):
                yield self._mapping(place, entry, 1 << shift, below)
            else:
                yield from self.leaves(depth + 1, entry & self._address_mask, place, below)

    def _mapping(self, virtual: int, entry: int, page: int, rights: int) -> Mapping:
        cache = entry & (paging.CACHE_DISABLE | paging.WRITE_THROUGH)
        kind = "uncached" if cache & paging.CACHE_DISABLE else "write-through" if cache else "write-back"
        return Mapping(
            virtual,
            self._frame(entry, page),
            page,
            writable=bool(rights & paging.WRITABLE),
            user=bool(rights & paging.USER),
            executable=not rights & paging.NO_EXECUTE,
            page_size=page,
            global_page=bool(entry & paging.GLOBAL),
            cache=kind,
        )

    @property
    def _fetch_reported(self) -> bool:
        return self.nxe or bool(self.cr4 & bits.CR4_SMEP)

    @property
    def _address_mask(self) -> int:
        return 0xFFFFF000 if self.scheme and self.scheme.entry_bytes == 4 else 0xF_FFFF_FFFF_F000

    def _is_pdpte(self, depth: int) -> bool:
        return bool(self.scheme and self.scheme.name == "pae" and depth == 0)

    def _slots(self, depth: int) -> int:
        assert self.scheme is not None
        return 4 if self._is_pdpte(depth) else paging.KIB4 // self.scheme.entry_bytes

    def _is_leaf(self, depth: int, entry: int) -> bool:
        assert self.scheme is not None
        if depth == len(self.scheme.shifts) - 1:
            return True
        if self.scheme.name == "32-bit" and not self.cr4 & bits.CR4_PSE:
            return False
        return bool(entry & paging.LARGE) and 1 << self.scheme.shifts[depth] in self.scheme.leaves

    def _frame(self, entry: int, page: int) -> int:
        if page == paging.MIB4:
            return entry & 0xFFC00000 | (entry >> 13 & 0xFF) << 32
        return entry & self._address_mask & ~(page - 1)

    def _reserved(self, depth: int, entry: int) -> int:
        """The bits that must be 0 in an entry of this level."""
        scheme = self.scheme
        assert scheme is not None
        if scheme.name == "32-bit":
            # PSE-36: bits 20-13 are address bits 39-32, of which the processor may have fewer
            if not self._is_leaf(depth, entry) or depth:
                return 0
            high = max(0, min(self.physical_bits, 40) - 32)
            return 1 << 21 | (0xFF & ~((1 << high) - 1)) << 13
        wide = (1 << 52) - 1 & ~((1 << self.physical_bits) - 1)
        wide |= 0 if self.nxe else paging.NO_EXECUTE
        if scheme.name == "pae":
            wide |= 0x7FF << 52
            if depth == 0:
                return wide | paging.NO_EXECUTE | 0x1E6
        if depth < len(scheme.shifts) - 1 and entry & paging.LARGE:
            page = 1 << scheme.shifts[depth]
            # bit 12 is the PAT bit of a large page; where there are no large pages PS itself is reserved
            wide |= (page - 1) & ~0x1FFF if page in scheme.leaves else paging.LARGE
        return wide

    @staticmethod
    def _check_address(virtual: int, scheme: Scheme) -> None:
        if not scheme.canonical_bits:
            if virtual >> 32:
                raise UsageError(f"linear address {virtual:#x} is outside the 4 GiB of {scheme.name} paging")
        elif virtual >> scheme.virtual_bits - 1 not in (0, (1 << 65 - scheme.virtual_bits) - 1):
            raise TranslationFault(virtual, 13, 0, 0, f"not canonical with {scheme.name} paging")
