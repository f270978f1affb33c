"""kvmpy: a virtual machine monitor for x86-64 Linux with Python in its exit loop.

    import kvmpy

    with kvmpy.Machine(memory="2M") as machine:
        kvmpy.Pc(machine)
        machine.load("long-hello")
        print(machine.run(timeout=1))

Names are imported when they are first used, so that ``import kvmpy`` costs next to nothing.
"""

from __future__ import annotations

from kvmpy.lazily import exports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.boot.payload import BootOptions as BootOptions
    from kvmpy.boot.payload import Payload as Payload
    from kvmpy.devices.device import Device as Device
    from kvmpy.devices.registers import Register as Register
    from kvmpy.devices.registers import RegisterFile as RegisterFile
    from kvmpy.errors import BusError as BusError
    from kvmpy.errors import DeviceError as DeviceError
    from kvmpy.errors import EngineError as EngineError
    from kvmpy.errors import GuestMemoryError as GuestMemoryError
    from kvmpy.errors import ImageError as ImageError
    from kvmpy.errors import KvmError as KvmError
    from kvmpy.errors import KvmpyError as KvmpyError
    from kvmpy.errors import UsageError as UsageError
    from kvmpy.machine.cpu import Cpu as Cpu
    from kvmpy.machine.machine import Machine as Machine
    from kvmpy.machine.pc import Pc as Pc
    from kvmpy.machine.result import Result as Result
    from kvmpy.machine.rules import Drop as Drop
    from kvmpy.machine.rules import Fifo as Fifo
    from kvmpy.machine.rules import Latch as Latch
    from kvmpy.machine.rules import Native as Native

_HOME = {
    "BootOptions": "kvmpy.boot.payload",
    "Payload": "kvmpy.boot.payload",
    "Device": "kvmpy.devices.device",
    "Register": "kvmpy.devices.registers",
    "RegisterFile": "kvmpy.devices.registers",
    "BusError": "kvmpy.errors",
    "DeviceError": "kvmpy.errors",
    "EngineError": "kvmpy.errors",
    "GuestMemoryError": "kvmpy.errors",
    "ImageError": "kvmpy.errors",
    "KvmError": "kvmpy.errors",
    "KvmpyError": "kvmpy.errors",
    "UsageError": "kvmpy.errors",
    "Cpu": "kvmpy.machine.cpu",
    "Machine": "kvmpy.machine.machine",
    "Pc": "kvmpy.machine.pc",
    "Result": "kvmpy.machine.result",
    "Drop": "kvmpy.machine.rules",
    "Fifo": "kvmpy.machine.rules",
    "Latch": "kvmpy.machine.rules",
    "Native": "kvmpy.machine.rules",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME)

__getattr__, __dir__ = exports(__name__, _HOME, globals())
