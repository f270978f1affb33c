"""POST port: where firmware shows how far its self-test has come, and kernels waste a microsecond."""

from __future__ import annotations

from kvmpy.devices.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class PostPort(Device):
    """Port 0x80. Writes show a code, the low byte; reads give all ones, as in QEMU.

    ``on_code(code)``, if given, is called for each. ``code`` is the last (0 before the first), ``count`` how
    many there were.
    """

    name = "post"
    FIELDS = {"code": 0xFF, "count": (1 << 64) - 1}

    def __init__(self, on_code: Callable[[int], None] | None = None) -> None:
        self.code = 0
        self.count = 0
        self._on_code = on_code

    def write(self, offset: int, value: int, size: int) -> None:
        """Show the low byte; what is wider belongs to the DMA page registers next door and is dropped."""
        if offset == 0:
            self.code = value & 0xFF
            self.count += 1
            if self._on_code is not None:
                self._on_code(self.code)

    def reset(self) -> None:
        """Back to code 0, nothing counted."""
        self.code = 0
        self.count = 0
