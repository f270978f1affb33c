"""What goes into an image loader (BootOptions) and what comes out of it (Payload made of Chunks)."""

from __future__ import annotations

from kvmpy.errors import UsageError
from kvmpy.x86.record import Record, fill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmpy.x86 import EntryState

MODES = ("real", "protected", "long")


class Chunk(Record):
    """Bytes to be placed in guest physical memory before the first instruction runs.

    ``gpa``       guest physical address of the first byte
    ``data``      what to put there (a view of the image wherever possible: nothing is copied)
    ``zero``      bytes to clear right after ``data`` (a segment's bss)
    ``readonly``  the guest must not be able to change it
    ``kind``      "ram": inside the machine's RAM; "rom": wants a memory slot of its own, at ``gpa``
    """

    __slots__ = ("data", "gpa", "kind", "readonly", "zero")
    gpa: int
    data: bytes | memoryview
    zero: int
    readonly: bool
    kind: str

    def __init__(
        self, gpa: int, data: bytes | memoryview, zero: int = 0, readonly: bool = False, kind: str = "ram"
    ) -> None:
        fill(self, "gpa", gpa)
        fill(self, "data", data)
        fill(self, "zero", zero)
        fill(self, "readonly", readonly)
        fill(self, "kind", kind)

    def __repr__(self) -> str:
        return (
            f"Chunk({self.kind} {self.gpa:#x}-{self.end - 1:#x}: {len(self.data)} bytes, {self.zero} cleared)"
        )

    @property
    def length(self) -> int:
        """Bytes of guest memory this chunk covers, cleared ones included."""
        return len(self.data) + self.zero

    @property
    def end(self) -> int:
        """Guest physical address of the first byte behind the chunk."""
        return self.gpa + self.length


class Payload:
    """An image made ready: memory contents, the first vCPU's entry state, and remarks for the user."""

    __slots__ = ("chunks", "entry", "format", "notes")

    def __init__(
        self, format: str, chunks: list[Chunk], entry: EntryState, notes: list[str] | None = None
    ) -> None:
        self.format = format
        self.chunks = chunks
        self.entry = entry
        self.notes = [] if notes is None else notes

    def __repr__(self) -> str:
        places = ", ".join(f"{chunk.kind} {chunk.gpa:#x}+{chunk.length:#x}" for chunk in self.chunks)
        return f"Payload({self.format}, {self.entry.mode} mode, {places})"


class BootOptions:
    """How an image is to be loaded, and into what machine.

    ``memory``        bytes of RAM in all
    ``ram``           the RAM as (guest physical address, length) pairs; by default one range from 0
    ``format``        a name of ``kvmpy.boot.FORMATS``; None: recognised from the bytes
    ``entry``         guest physical address to start at (ELF in long mode: virtual); None: as the image says
    ``mode``          "real", "protected" or "long"; None: as the format says
    ``load_address``  guest physical address of a flat image; None: the mode's usual one, or ``entry``
    ``append``        command line for the guest
    ``modules``       (name, contents, command line) of each boot module
    ``initrd``        contents of an initial RAM disk
    ``cpus``          vCPUs of the machine
    ``name``          what messages call the image, and the first word of a Multiboot command line

    Raises UsageError where a value can't be right whatever the image is.
    """

    __slots__ = (
        "append", "cpus", "entry", "format", "initrd", "load_address", "memory", "mode", "modules", "name",
        "ram",
    )  # fmt: skip

    def __init__(
        self,
        memory: int,
        *,
        ram: Sequence[tuple[int, int]] | None = None,
        format: str | None = None,
        entry: int | None = None,
        mode: str | None = None,
        load_address: int | None = None,
        append: str = "",
        modules: Sequence[tuple[str, bytes, str]] = (),
        initrd: bytes | None = None,
        cpus: int = 1,
        name: str = "image",
    ) -> None:
        if memory <= 0:
            raise UsageError(f"memory of {memory} bytes: a machine needs at least one page of 4096 bytes")
        if mode is not None and mode not in MODES:
            raise UsageError(f"mode {mode!r} is unknown: one of {', '.join(MODES)}")
        for what, address in (("entry", entry), ("load address", load_address)):
            if address is not None and not 0 <= address < 1 << 64:
                raise UsageError(f"{what} {address:#x} isn't an address: 0 to 0xffffffffffffffff")
        if "\0" in append:
            raise UsageError("the guest's command line holds a NUL character, which would end it there")
        self.memory = memory
        self.ram = [(0, memory)] if ram is None else sorted(ram)
        self.format = format
        self.entry = entry
        self.mode = mode
        self.load_address = load_address
        self.append = append
        self.modules = list(modules)
        self.initrd = initrd
        self.cpus = cpus
        self.name = name

    def refuse(self, format: str, *names: str) -> None:
        """UsageError if one of the options ``names`` is set, which ``format`` has no use for."""
        for name in names:
            if getattr(self, name) not in (None, []):
                raise UsageError(f"{self.name}: the {format} format has no use for {name.replace('_', ' ')}")
