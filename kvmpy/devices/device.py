"""What every device has: accesses in, values out, and its state as plain values."""

from __future__ import annotations

from kvmpy.errors import DeviceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    FieldSpec = int | range | type[bool] | type[bytes]


class Device:
    """A device as the bus sees it; offsets count from wherever the bus has put it.

    A guest may do anything: no access of any offset and size raises, and what :meth:`read` returns fits in
    ``size`` bytes. Only what the collaborators (``irq``, ``output``, ...) raise comes through.

    ``FIELDS`` declares the state, once for :meth:`state`, :meth:`restore` and tracing: attribute name to its
    largest value (an unsigned integer), its ``range``, ``bool`` or ``bytes``. A bytearray keeps its length.
    """

    name: str = "device"
    LENGTH: int = 1
    """Ports or bytes of address space that the device decodes."""
    FIELDS: ClassVar[Mapping[str, FieldSpec]] = {}

    def read(self, offset: int, size: int) -> int:
        """The value of a ``size`` byte (1, 2, 4 or 8) read at ``offset``; an undriven bus reads all ones."""
        return (1 << (8 * size)) - 1

    def write(self, offset: int, value: int, size: int) -> None:
        """A ``size`` byte (1, 2, 4 or 8) write at ``offset``."""

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        """``rep ins``: ``count`` reads of ``size`` bytes at the same ``offset``, in guest memory order."""
        read = self.read
        return b"".join([read(offset, size).to_bytes(size, "little") for _ in range(count)])

    def write_string(self, offset: int, data: bytes, size: int) -> None:
        """``rep outs``: each ``size`` bytes of ``data`` are one write at the same ``offset``."""
        for at in range(0, len(data), size):
            self.write(offset, int.from_bytes(data[at : at + size], "little"), size)

    def reset(self) -> None:
        """What the RESET line does; collaborators and what they have queued stay."""

    def state(self) -> dict[str, object]:
        """All that :meth:`restore` needs to continue from here: ``int``, ``bool`` and ``bytes`` by name."""
        return {
            field: bytes(getattr(self, field)) if kind is bytes else getattr(self, field)
            for field, kind in self.FIELDS.items()
        }

    def restore(self, state: Mapping[str, object]) -> None:
        """Continue from what :meth:`state` gave.

        Raises DeviceError for a missing, unknown or impossible value; the device is then as it was.
        """
        for field in state:
            if field not in self.FIELDS:
                raise DeviceError(
                    f"{self.name}: restore: unknown field {field!r}; known: {', '.join(self.FIELDS)}"
                )
        for field, kind in self.FIELDS.items():
            if field not in state:
                raise DeviceError(f"{self.name}: restore: field {field!r} is missing")
            self._check_field(field, kind, state[field])
        self._check_state(state)
        for field, kind in self.FIELDS.items():
            value = state[field]
            setattr(self, field, bytearray(value) if kind is bytes else value)  # type: ignore[call-overload]
        self._restored()

    def _check_field(self, field: str, kind: FieldSpec, value: object) -> None:
        if isinstance(kind, type):
            if not isinstance(value, kind):
                got = type(value).__name__
                raise DeviceError(f"{self.name}: restore: {field} is {got}, must be {kind.__name__}")
            now = getattr(self, field, None)
            if isinstance(value, bytes) and isinstance(now, bytearray) and len(value) != len(now):
                raise DeviceError(
                    f"{self.name}: restore: {field} has {len(value)} bytes, must have {len(now)}"
                )
            return
        allowed = range(kind + 1) if isinstance(kind, int) else kind
        if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
            raise DeviceError(
                f"{self.name}: restore: {field} is {value!r},"
                f" must be an integer {allowed[0]:#x}..{allowed[-1]:#x}"
            )

    def _check_state(self, state: Mapping[str, object]) -> None:
        """Raise DeviceError if the fields, each good by itself, can't be true together."""

    def _restored(self) -> None:
        """Bring what is derived from the fields (interrupt line, cached masks) in line with them."""


class ByteDevice(Device):
    """A device with 8-bit registers at consecutive offsets, as on the ISA bus.

    A wider access is split into byte accesses at rising offsets, lowest byte first; bytes beyond ``LENGTH``
    read 0xff and are not written. (An 8-bit card sees a 16-bit cycle so; QEMU splits the same way.)
    """

    def read_byte(self, offset: int) -> int:
        """The value 0..0xff of the register at ``offset``, which is in ``range(LENGTH)``."""
        return 0xFF

    def write_byte(self, offset: int, value: int) -> None:
        """``value`` (0..0xff) to the register at ``offset``, which is in ``range(LENGTH)``."""

    def read(self, offset: int, size: int) -> int:
        """``size`` bytes from ``offset`` on; each register is read once."""
        if size == 1 and 0 <= offset < self.LENGTH:
            return self.read_byte(offset)
        value = 0
        for at in range(size):
            byte = self.read_byte(offset + at) if 0 <= offset + at < self.LENGTH else 0xFF
            value |= byte << (8 * at)
        return value

    def write(self, offset: int, value: int, size: int) -> None:
        """The low ``size`` bytes of ``value`` to the registers from ``offset`` on."""
        for at in range(size):
            if 0 <= offset + at < self.LENGTH:
                self.write_byte(offset + at, (value >> (8 * at)) & 0xFF)
