"""CPUID as a table that can be edited (SDM vol. 2A "CPUID", APM vol. 3 appendix D and E).

A table holds what ``KVM_SET_CPUID2`` takes and ``KVM_GET_SUPPORTED_CPUID`` gives: entries of (function,
index, flags, eax, ebx, ecx, edx). Nothing here asks the processor.
"""

from __future__ import annotations

from kvmpy.errors import UsageError
from kvmpy.x86.record import Record, fill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Entry = tuple[int, int, int, int, int, int, int]

SIGNIFICANT_INDEX = 1
"""KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the entry only answers for its subleaf."""

INDEXED = frozenset((
    0x4, 0x7, 0xB, 0xD, 0xF, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1B, 0x1D, 0x1E, 0x1F, 0x20, 0x24,
    0x8000001D, 0x80000020, 0x80000026,
))  # fmt: skip
"""Leaves whose answer depends on ECX."""

PRESETS = ("host", "minimal")
MINIMAL_FEATURES = (
    "fpu", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "mtrr", "pge", "mca", "cmov", "pat",
    "pse36", "clflush", "mmx", "fxsr", "sse", "sse2", "pni", "cx16", "x2apic", "hypervisor",
    "syscall", "nx", "lm", "lahf_lm",
)  # fmt: skip
"""What "minimal" keeps: a 64-bit processor of the first generation, in a virtual machine."""

REGISTERS = ("eax", "ebx", "ecx", "edx")


class Leaf(Record):
    """The answer to one CPUID: four 32-bit registers."""

    __slots__ = REGISTERS
    eax: int
    ebx: int
    ecx: int
    edx: int

    def __init__(self, eax: int = 0, ebx: int = 0, ecx: int = 0, edx: int = 0) -> None:
        for name, value in zip(REGISTERS, (eax, ebx, ecx, edx), strict=True):
            if not 0 <= value <= 0xFFFFFFFF:
                raise UsageError(f"CPUID {name} {value:#x} isn't a 32-bit number")
            fill(self, name, value)

    def __iter__(self) -> Iterator[int]:
        return iter((self.eax, self.ebx, self.ecx, self.edx))


class CpuidTable:
    """What the guest's CPUID instruction answers.

    >>> table = CpuidTable.preset("minimal")
    >>> table.has("lm"), table.has("avx2")
    (True, False)
    >>> table.hide("sse2").force("rdtscp").has("pni")
    False
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._leaves: dict[tuple[int, int], Leaf] = {}
        self._flags: dict[tuple[int, int], int] = {}
        for function, index, flags, eax, ebx, ecx, edx in entries:
            self._leaves[function, index] = Leaf(eax, ebx, ecx, edx)
            self._flags[function, index] = flags

    @classmethod
    def preset(cls, name: str, supported: Iterable[Entry] | CpuidTable | None = None) -> CpuidTable:
        """A table to start from, limited to what ``supported`` (the host's table) has.

        "host" is everything in it. "minimal" is a plain 64-bit processor (`MINIMAL_FEATURES`), the same on
        every host but for the vendor, its address widths and features it lacks; it needs no ``supported``.
        UsageError for another name, or "host" without ``supported``.
        """
        if name not in PRESETS:
            raise UsageError(f"no CPUID preset {name!r}: one of {', '.join(PRESETS)}")
        host = supported.copy() if isinstance(supported, CpuidTable) else cls(supported or ())
        if name == "minimal":
            return _minimal(host)
        if not host:
            raise UsageError('CPUID preset "host" needs the table of what the host supports')
        return host

    def entries(self) -> list[Entry]:
        """All entries, sorted by function and index, as ``KVM_SET_CPUID2`` takes them."""
        return [(*key, self._flags[key], *self._leaves[key]) for key in sorted(self._leaves)]

    def copy(self) -> CpuidTable:
        """An independent copy."""
        return CpuidTable(self.entries())

    def __len__(self) -> int:
        return len(self._leaves)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(sorted(self._leaves))

    def __contains__(self, key: object) -> bool:
        return self._key(key) in self._leaves

    def __getitem__(self, key: int | tuple[int, int]) -> Leaf:
        """The entry for a leaf or (leaf, subleaf); KeyError if there is none."""
        return self._leaves[self._key(key)]

    def __setitem__(self, key: int | tuple[int, int], value: Leaf | tuple[int, int, int, int]) -> None:
        self.set(*self._key(key), **dict(zip(REGISTERS, value, strict=True)))

    def __delitem__(self, key: int | tuple[int, int]) -> None:
        """Remove one entry; a bare leaf removes all its subleaves. KeyError if there is none."""
        doomed = [key] if isinstance(key, tuple) else [found for found in self._leaves if found[0] == key]
        if not doomed:
            raise KeyError(key)
        for one in doomed:
            del self._leaves[one], self._flags[one]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CpuidTable) and self.entries() == other.entries()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<CpuidTable {self.vendor!r}, {len(self)} entries>"

    def get(self, leaf: int, subleaf: int = 0) -> Leaf:
        """The entry for (leaf, subleaf), or zeros."""
        return self._leaves.get((leaf, subleaf), Leaf())

    def lookup(self, leaf: int, subleaf: int = 0) -> Leaf:
        """What the instruction answers, leaves out of range included.

        Intel processors answer those with the highest basic leaf, AMD's with zeros.
        """
        found = self._exact(leaf, subleaf)
        if found is not None:
            return found
        base = leaf & 0xFFFF0000
        if base not in (0, 0x80000000):
            base = 0x40000000 if leaf >> 24 == 0x40 else 0
        top = self.get(base).eax
        if base <= leaf <= top or "AMD" in self.vendor or "Hygon" in self.vendor:
            return Leaf()
        return self._exact(self.get(0).eax, subleaf) or Leaf()

    def set(
        self,
        leaf: int,
        subleaf: int = 0,
        *,
        eax: int | None = None,
        ebx: int | None = None,
        ecx: int | None = None,
        edx: int | None = None,
    ) -> CpuidTable:
        """Set the given registers of an entry, which is made (of zeros) if it isn't there; returns the table.

        The highest leaf reported grows with it. UsageError for a leaf or register that isn't a 32-bit number.
        """
        for name, value in (("leaf", leaf), ("subleaf", subleaf)):
            if not 0 <= value <= 0xFFFFFFFF:
                raise UsageError(f"CPUID {name} {value:#x} isn't a 32-bit number")
        old = self.get(leaf, subleaf)
        given = (eax, ebx, ecx, edx)
        self._leaves[leaf, subleaf] = Leaf(*(o if g is None else g for o, g in zip(old, given, strict=True)))
        indexed = leaf in INDEXED or subleaf or any(f == leaf and i for f, i in self._leaves)
        self._flags[leaf, subleaf] = SIGNIFICANT_INDEX if indexed else 0
        base = leaf & 0xFFFF0000
        if leaf != base and self.get(base).eax < leaf and base in (0, 0x40000000, 0x80000000):
            self.set(base, eax=leaf)
        return self

    def limit(self, *, basic: int | None = None, extended: int | None = None) -> CpuidTable:
        """Lower the highest basic or extended (0x8000…) leaf, drop the entries above; returns the table."""
        for base, top in ((0, basic), (0x80000000, extended)):
            if top is None:
                continue
            for leaf in {key[0] for key in self._leaves if top < key[0] < base + 0x10000}:
                del self[leaf]
            if self.get(base).eax > top:
                self.set(base, eax=top)
        return self

    # features by name

    def has(self, feature: str) -> bool:
        """Whether a feature is announced; names as in /proc/cpuinfo. UsageError for an unknown name."""
        leaf, subleaf, register, bit = _places(feature)[0]
        return bool(getattr(self.get(leaf, subleaf), register) >> bit & 1)

    def features(self) -> list[str]:
        """The names of all features announced, by leaf and bit."""
        from kvmpy.x86.cpuid_features import FEATURES

        return [
            name
            for name, (leaf, subleaf, register, bit) in FEATURES.items()
            if getattr(self.get(leaf, subleaf), register) >> bit & 1
        ]

    def hide(self, *features: str, dependents: bool = True) -> CpuidTable:
        """Clear features and, with ``dependents``, those that need them (avx2 goes with avx)."""
        from kvmpy.x86.cpuid_features import dependents as dependents_of

        for feature in features:
            _places(feature)  # an unknown name is reported as one
            for name in (feature, *(dependents_of(feature) if dependents else ())):
                self._change(name, False)
        return self

    def force(self, *features: str) -> CpuidTable:
        """Announce features whether the host has them or not; returns the table.

        KVM and the processor aren't asked: a guest that uses what isn't there gets #UD, or worse.
        """
        for feature in features:
            self._change(feature, True)
        return self

    # fields

    @property
    def vendor(self) -> str:
        """The 12 characters of leaf 0, "GenuineIntel" for example."""
        leaf = self.get(0)
        return _text((leaf.ebx, leaf.edx, leaf.ecx))

    @vendor.setter
    def vendor(self, text: str) -> None:
        ebx, edx, ecx = _words(text, 3, "vendor")
        self.set(0, ebx=ebx, ecx=ecx, edx=edx)
        if (0x80000000, 0) in self:
            self.set(0x80000000, ebx=ebx, ecx=ecx, edx=edx)

    @property
    def hypervisor(self) -> str:
        """The 12 characters of leaf 0x40000000, "KVMKVMKVM" for example; empty if there is none."""
        leaf = self.get(0x40000000)
        return _text((leaf.ebx, leaf.ecx, leaf.edx))

    @hypervisor.setter
    def hypervisor(self, text: str) -> None:
        ebx, ecx, edx = _words(text, 3, "hypervisor signature")
        self.set(0x40000000, ebx=ebx, ecx=ecx, edx=edx)
        if not self.get(0x40000000).eax:
            self.set(0x40000000, eax=0x40000000)

    @property
    def brand(self) -> str:
        """The brand string of leaves 0x80000002-4, up to 47 characters."""
        words = [word for leaf in (0x80000002, 0x80000003, 0x80000004) for word in self.get(leaf)]
        return _text(words).strip(" ")

    @brand.setter
    def brand(self, text: str) -> None:
        words = _words(text, 12, "brand")
        for number in range(3):
            self[0x80000002 + number] = Leaf(*words[4 * number : 4 * number + 4])

    @property
    def signature(self) -> tuple[int, int, int]:
        """(family, model, stepping) from leaf 1, the extended fields added in."""
        eax = self.get(1).eax
        family, model = eax >> 8 & 15, eax >> 4 & 15
        if family in (6, 15):
            model |= eax >> 12 & 0xF0
        if family == 15:
            family += eax >> 20 & 0xFF
        return family, model, eax & 15

    @signature.setter
    def signature(self, value: tuple[int, int, int]) -> None:
        family, model, stepping = value
        if not (0 <= family <= 0x10E and 0 <= model <= 0xFF and 0 <= stepping <= 15):
            raise UsageError(f"CPUID family, model, stepping {value} is outside 0-270, 0-255, 0-15")
        if model > 15 and family not in (6, *range(15, 0x10F)):
            raise UsageError(f"CPUID model {model} above 15 needs family 6, or 15 and more")
        eax = (
            min(family, 15) << 8
            | max(family - 15, 0) << 20
            | (model & 15) << 4
            | (model >> 4) << 16
            | stepping
        )
        self.set(1, eax=eax)

    @property
    def physical_bits(self) -> int:
        """Width of physical addresses (leaf 0x80000008); 36 if it isn't there."""
        return self.get(0x80000008).eax & 0xFF or 36

    @property
    def linear_bits(self) -> int:
        """Width of linear addresses (leaf 0x80000008); 48 if it isn't there."""
        return self.get(0x80000008).eax >> 8 & 0xFF or 48

    def set_processor(self, apic_id: int, count: int = 1) -> CpuidTable:
        """Say which vCPU answers: its APIC ID, and how many there are (leaves 1, 0xb, 0x1f, 0x8000001e).

        The vCPUs look like ``count`` cores of one package, a thread each. Returns the table.
        """
        if not (0 <= apic_id < 1 << 32 and 1 <= count < 1 << 16):
            raise UsageError(f"APIC ID {apic_id} with {count} processors: 0 and up, 1-65535")
        leaf = self.get(1)
        # count has a byte only; processors beyond it are told apart by leaf 0xb
        self.set(1, ebx=leaf.ebx & 0xFFFF | min(count, 255) << 16 | (apic_id & 0xFF) << 24)
        self._change("ht", count > 1)
        for number in (0xB, 0x1F):
            if (number, 0) in self:
                self._topology(number, apic_id, count)
        if (0x8000001E, 0) in self:
            core = self.get(0x8000001E)
            self.set(0x8000001E, eax=apic_id, ebx=core.ebx & ~0xFFFF | apic_id & 0xFF)
        return self

    def diff(self, other: CpuidTable) -> list[str]:
        """What changes from this table to ``other``: leaf, subleaf, register, before, after, a line each."""
        lines = []
        for key in sorted({*self._leaves, *other._leaves}):
            for name, mine, theirs in zip(REGISTERS, self.get(*key), other.get(*key), strict=True):
                if mine != theirs:
                    lines.append(f"{key[0]:#x}.{key[1]} {name} {mine:#010x} -> {theirs:#010x}")
        return lines

    def _topology(self, leaf: int, apic_id: int, count: int) -> None:
        for index in [i for f, i in self._leaves if f == leaf and i > 1]:
            del self[leaf, index]
        width = (count - 1).bit_length()
        self.set(leaf, 0, eax=0, ebx=1, ecx=0x100, edx=apic_id)
        self.set(leaf, 1, eax=width, ebx=count, ecx=0x201, edx=apic_id)
        self.set(leaf, 2, eax=0, ebx=0, ecx=2, edx=apic_id)

    def _change(self, feature: str, on: bool) -> None:
        for number, (leaf, subleaf, register, bit) in enumerate(_places(feature)):
            known = (leaf, subleaf) in self._leaves
            if not known and (not on or number):
                continue
            old: int = getattr(self.get(leaf, subleaf), register)
            value = old | 1 << bit if on else old & ~(1 << bit)
            # the copy in 0x80000001 exists on AMD only
            if number and on and "AMD" not in self.vendor and "Hygon" not in self.vendor:
                continue
            self.set(leaf, subleaf, **{register: value})

    def _exact(self, leaf: int, subleaf: int) -> Leaf | None:
        found = self._leaves.get((leaf, subleaf))
        if found is None and not self._flags.get((leaf, 0), SIGNIFICANT_INDEX) & SIGNIFICANT_INDEX:
            found = self._leaves.get((leaf, 0))
        return found

    @staticmethod
    def _key(key: object) -> tuple[int, int]:
        return key if isinstance(key, tuple) else (key, 0)


def _minimal(host: CpuidTable) -> CpuidTable:
    table = CpuidTable()
    table.set(0, eax=1).set(0x80000000, eax=0x80000008).set(0x80000001)
    table.vendor = host.vendor or "GenuineIntel"
    table.signature = (6, 15, 1) if "Intel" in table.vendor else (15, 65, 1)
    table.brand = "kvmpy minimal processor"
    table.set(1, ebx=8 << 8)  # CLFLUSH works on 64 bytes
    table.set(0x80000008, eax=host.linear_bits << 8 | host.physical_bits)
    table.force(*(name for name in MINIMAL_FEATURES if not host or name == "hypervisor" or host.has(name)))
    return table


def _places(feature: str) -> list[tuple[int, int, str, int]]:
    from kvmpy.x86 import cpuid_features

    try:
        return cpuid_features.places(feature)
    except KeyError:
        from difflib import get_close_matches

        near = get_close_matches(feature.lower(), cpuid_features.FEATURES, 3)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"no CPUID feature is named {feature!r}{hint}") from None


def _text(words: Iterable[int]) -> str:
    raw = b"".join(word.to_bytes(4, "little") for word in words)
    return raw.rstrip(b"\0").decode("latin-1").replace("\0", "")


def _words(text: str, count: int, what: str) -> list[int]:
    limit = 4 * count - (count == 12)  # the brand string ends in a zero byte
    if not text.isascii() or len(text) > limit:
        raise UsageError(f"CPUID {what} {text!r} must be at most {limit} ASCII characters")
    raw = text.encode().ljust(4 * count, b"\0")
    return [int.from_bytes(raw[at : at + 4], "little") for at in range(0, 4 * count, 4)]
