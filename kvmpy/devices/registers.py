"""Devices that are mostly registers: declared, not coded.

    class Timer(RegisterFile):
        name = "timer"
        control = Register(0x00, 4, fields={"enable": 0, "mode": (1, 2)})
        status = Register(0x04, 4, access="ro")
        events = Register(0x08, 4, clear_on_write=0xFF)
        reload = Register(0x0C, 4, on_write=lambda self, value: self.start(value))

One declaration serves four: the run loop in C answers registers without side effects from the memory that Python sees
as ``timer.status``; the same semantics in Python answer the rest; traces name registers and fields; snapshots hold
them.
"""

from __future__ import annotations

from kvmpy.devices.device import Device
from kvmpy.errors import DeviceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, ClassVar

    FieldBits = int | tuple[int, int]

WIDTHS = (1, 2, 4, 8)
READS, WRITES = 1, 2
"""Bits of ``to_python``: reads, or writes, of the byte have a side effect."""

PAD = 128
"""Bytes before and behind the registers: C may load eight at any offset, and nobody else's memory is in their cache
lines, which vCPUs that use other devices would wait for."""


class Register:
    """A register of ``width`` bytes (1, 2, 4 or 8) at ``offset`` from the device's first address.

    ``reset``           value after a reset
    ``access``          "rw", "ro" (writes are ignored) or "wo" (reads as 0)
    ``writable``        bits a write can change; the others keep their value (reserved bits). Default: all
    ``clear_on_write``  bits that a write clears where it has ones (and can't change otherwise)
    ``clear_on_read``   bits that a read clears, after it has seen them
    ``on_write``        ``function(device, value)``, called with the register's value after a write has changed it
    ``on_read``         ``function(device) -> value``, called for what a read gives
    ``fields``          names of bits: a bit number or (lowest, highest)

    As an attribute of the device it is an integer: setting it is what the hardware would do, without masks or side
    effects. Raises DeviceError for a declaration that contradicts itself, and for a value that doesn't fit.
    """

    def __init__(
        self,
        offset: int,
        width: int,
        reset: int = 0,
        access: str = "rw",
        *,
        writable: int | None = None,
        clear_on_write: int = 0,
        clear_on_read: int = 0,
        on_write: Callable[[Any, int], object] | None = None,
        on_read: Callable[[Any], int] | None = None,
        fields: Mapping[str, FieldBits] | None = None,
    ) -> None:
        self.name = "?"
        self.offset = offset
        self.width = width
        self.reset = reset
        self.access = access
        self.limit = (1 << (8 * width)) - 1 if width in WIDTHS else 0
        self.clear_on_write = clear_on_write
        self.clear_on_read = clear_on_read
        allowed = 0 if access == "ro" else self.limit if writable is None else writable
        self.writable = allowed & ~clear_on_write
        self.readable = 0 if access == "wo" else self.limit
        self.on_write = on_write
        self.on_read = on_read
        self.fields = dict(fields or {})

    def __set_name__(self, owner: type[RegisterFile], name: str) -> None:
        self.name = name

    def check(self, device: str) -> None:
        """DeviceError for a declaration that contradicts itself."""
        where = f"{device}.{self.name}"
        if self.width not in WIDTHS:
            raise DeviceError(f"{where}: a width of {self.width!r} bytes: it is 1, 2, 4 or 8")
        if self.offset < 0:
            raise DeviceError(f"{where}: offset {self.offset:#x} is negative")
        if self.access not in ("rw", "ro", "wo"):
            raise DeviceError(f"{where}: access {self.access!r}: it is rw, ro or wo")
        for what in ("reset", "writable", "clear_on_write", "clear_on_read"):
            if not 0 <= getattr(self, what) <= self.limit:
                raise DeviceError(
                    f"{where}: {what} {getattr(self, what):#x} doesn't fit in {self.width} bytes"
                )
        for name, bits in self.fields.items():
            low, high = bits if isinstance(bits, tuple) else (bits, bits)
            if not 0 <= low <= high < 8 * self.width:
                raise DeviceError(f"{where}: field {name} has bits {low} to {high} of {8 * self.width}")

    def __get__(self, device: RegisterFile | None, owner: type[RegisterFile]) -> Any:
        if device is None:
            return self
        return int.from_bytes(device.memory[self.offset : self.offset + self.width], "little")

    def __set__(self, device: RegisterFile, value: int) -> None:
        if not isinstance(value, int) or not 0 <= value <= self.limit:
            raise DeviceError(f"{device.name}.{self.name}: {value!r} isn't an integer of {self.width} bytes")
        device.memory[self.offset : self.offset + self.width] = value.to_bytes(self.width, "little")

    def split(self, value: int) -> dict[str, int]:
        """The fields of a value of this register."""
        found = {}
        for name, bits in self.fields.items():
            low, high = bits if isinstance(bits, tuple) else (bits, bits)
            found[name] = value >> low & ((1 << (high - low + 1)) - 1)
        return found

    def masks(self) -> dict[str, int]:
        """What the C loop needs to know, as values as wide as the register."""
        effects = (READS if self.on_read else 0) | (WRITES if self.on_write else 0)
        return {
            "writable": self.writable,
            "readable": self.readable,
            "clear_write": self.clear_on_write,
            "clear_read": self.clear_on_read,
            "to_python": int.from_bytes(bytes([effects]) * self.width, "little"),
        }


class RegisterFile(Device):
    """A device declared by its :class:`Register` attributes.

    ``LENGTH`` is where the last register ends unless the class says more. Bytes that belong to no register read as 0
    and ignore writes; those beyond ``LENGTH`` are nobody's and read as ones.

    ``memory`` holds the registers' bytes, and C works on the same bytes. The registers are among ``FIELDS``, by name.
    """

    REGISTERS: ClassVar[tuple[Register, ...]] = ()
    MASKS: dict[str, bytes] = {}
    """One byte per byte of address space each: see kvmpy.machine.rules.Registers."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        found = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        registers = [value for value in found.values() if isinstance(value, Register)]
        for register in registers:
            register.check(cls.__name__)
        registers.sort(key=lambda register: register.offset)
        for at, after in enumerate(registers[1:]):
            before = registers[at]
            if after.offset < before.offset + before.width:
                raise DeviceError(f"{cls.__name__}: registers {before.name} and {after.name} overlap")
        cls.REGISTERS = tuple(registers)
        end = max((register.offset + register.width for register in registers), default=1)
        cls.LENGTH = max(end, cls.__dict__.get("LENGTH", 0))
        cls.MASKS = cls._make_masks()
        cls.FIELDS = {register.name: register.limit for register in registers} | dict(cls.FIELDS)

    @classmethod
    def _make_masks(cls) -> dict[str, bytes]:
        names = ("writable", "readable", "clear_write", "clear_read", "to_python")
        masks = {name: bytearray(cls.LENGTH) for name in names}
        for register in cls.REGISTERS:
            for name, value in register.masks().items():
                place = slice(register.offset, register.offset + register.width)
                masks[name][place] = value.to_bytes(register.width, "little")
        return {name: bytes(mask) for name, mask in masks.items()}

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(PAD + self.LENGTH + PAD))[PAD:]
        self.reset()

    def reset(self) -> None:
        """Every register to its reset value."""
        for register in self.REGISTERS:
            register.__set__(self, register.reset)

    def _touched(self, offset: int, size: int) -> list[Register]:
        return [r for r in self.REGISTERS if r.offset < offset + size and offset < r.offset + r.width]

    def _inside(self, offset: int, size: int) -> range:
        return range(max(offset, 0), min(offset + size, self.LENGTH))

    def read(self, offset: int, size: int) -> int:
        """What C would have answered, and the side effects it can't have. ``on_read`` is asked once a register."""
        data, masks = bytearray(b"\xff") * size, self.MASKS
        for at in self._inside(offset, size):
            data[at - offset] = self.memory[at] & masks["readable"][at]
        for register in self._touched(offset, size):
            if register.on_read:
                value = register.on_read(self) & register.readable
                for at in self._inside(offset, size):
                    if register.offset <= at < register.offset + register.width:
                        data[at - offset] = value >> (8 * (at - register.offset)) & 0xFF
        for at in self._inside(offset, size):
            self.memory[at] &= ~masks["clear_read"][at] & 0xFF
        return int.from_bytes(data, "little")

    def write(self, offset: int, value: int, size: int) -> None:
        """What C would have done, then ``on_write`` of each register the write touched."""
        masks = self.MASKS
        for at in self._inside(offset, size):
            byte = value >> (8 * (at - offset)) & 0xFF
            changed = masks["writable"][at]
            self.memory[at] = (self.memory[at] & ~changed | byte & changed) & ~(
                masks["clear_write"][at] & byte
            )
        for register in self._touched(offset, size):
            if register.on_write:
                register.on_write(self, register.__get__(self, type(self)))

    def describe(self, offset: int, value: int, size: int) -> str:
        """An access for a trace: ``control=0x5 (enable=1 mode=2)``; the plain offset where no register is hit."""
        for register in self.REGISTERS:
            if register.offset == offset and register.width == size:
                fields = " ".join(f"{name}={bits:#x}" for name, bits in register.split(value).items())
                return f"{register.name}={value:#x}" + (f" ({fields})" if fields else "")
        return f"+{offset:#x}={value:#x}"
