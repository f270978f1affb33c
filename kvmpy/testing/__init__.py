"""Testing guests, kernels and KVM itself from pytest.

    from kvmpy.testing import Hlt, Out

    def test_counts(guest):
        guest.asm("mov $3, %ecx; 1: out %al, $0x80; loop 1b; hlt", mode="long")
        assert guest.run().exits == [Out(0x80), Out(0x80), Out(0x80), Hlt()]

The fixtures ``guest``, ``machine``, ``machines`` and ``host``, the marker ``kvmpy`` and the options ``--kvmpy-…`` come
with the plugin that pytest finds by itself. Names are imported when they are first used.
"""

from __future__ import annotations

from kvmpy.lazily import exports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.testing.context import Context as Context
    from kvmpy.testing.context import new_guest as new_guest
    from kvmpy.testing.exits import ANY as ANY
    from kvmpy.testing.exits import Debug as Debug
    from kvmpy.testing.exits import Exit as Exit
    from kvmpy.testing.exits import FailEntry as FailEntry
    from kvmpy.testing.exits import Hlt as Hlt
    from kvmpy.testing.exits import Hypercall as Hypercall
    from kvmpy.testing.exits import In as In
    from kvmpy.testing.exits import InternalError as InternalError
    from kvmpy.testing.exits import MmioRead as MmioRead
    from kvmpy.testing.exits import MmioWrite as MmioWrite
    from kvmpy.testing.exits import Out as Out
    from kvmpy.testing.exits import Rdmsr as Rdmsr
    from kvmpy.testing.exits import Shutdown as Shutdown
    from kvmpy.testing.exits import SystemEvent as SystemEvent
    from kvmpy.testing.exits import Wrmsr as Wrmsr
    from kvmpy.testing.golden_trace import golden as golden
    from kvmpy.testing.guest import Guest as Guest
    from kvmpy.testing.guest import Run as Run
    from kvmpy.testing.problems import AssemblyError as AssemblyError
    from kvmpy.testing.problems import GoldenError as GoldenError
    from kvmpy.testing.problems import GuestAssertion as GuestAssertion
    from kvmpy.testing.problems import GuestHang as GuestHang
    from kvmpy.testing.problems import SerialError as SerialError
    from kvmpy.testing.trace import ExitList as ExitList

_HOME = {
    "context": ("Context", "new_guest"),
    "exits": (
        "ANY", "Debug", "Exit", "FailEntry", "Hlt", "Hypercall", "In", "InternalError", "MmioRead", "MmioWrite", "Out",
        "Rdmsr", "Shutdown", "SystemEvent", "Wrmsr",
    ),
    "golden_trace": ("golden",),
    "guest": ("Guest", "Run"),
    "problems": ("AssemblyError", "GoldenError", "GuestAssertion", "GuestHang", "SerialError"),
    "trace": ("ExitList",),
}  # fmt: skip
_MODULES = {name: f"{__name__}.{module}" for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULES)
__getattr__, __dir__ = exports(__name__, _MODULES, globals())
