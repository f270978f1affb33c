"""What a PC's firmware looks for in fw_cfg, in the layouts that QEMU gives it and SeaBIOS and OVMF read."""

from __future__ import annotations

from kvmpy.devices import fw_cfg as keys
from kvmpy.errors import DeviceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvmpy.devices.fw_cfg import FwCfg

E820_RAM = 1
E820_RESERVED = 2
E820_ACPI = 3
E820_NVS = 4
E820_UNUSABLE = 5


def e820(entries: Iterable[tuple[int, int, int]]) -> bytes:
    """The file "etc/e820": (address, length, type) each, 64, 64 and 32 bits little endian, packed."""
    return b"".join(
        address.to_bytes(8, "little") + length.to_bytes(8, "little") + kind.to_bytes(4, "little")
        for address, length, kind in entries
    )


def numa(node_of_cpu: Sequence[int] = (), memory_of_node: Sequence[int] = ()) -> bytes:
    """The NUMA item: the number of nodes, the node of each CPU, the bytes of each node; 64 bits each."""
    values = (len(memory_of_node), *node_of_cpu, *memory_of_node)
    return b"".join(value.to_bytes(8, "little") for value in values)


def bootorder(paths: Iterable[str]) -> bytes:
    """The file "bootorder": Open Firmware device paths, a line each, the end marked with a zero byte."""
    lines = "\n".join(paths)
    return lines.encode("ascii") + b"\0" if lines else b""


def describe_machine(
    fw_cfg: FwCfg,
    ram: Iterable[tuple[int, int]],
    *,
    reserved: Iterable[tuple[int, int]] = (),
    cpus: int = 1,
    max_cpus: int | None = None,
    boot_menu: bool = False,
    boot_order: Sequence[str] = (),
    uuid: bytes = bytes(16),
    irq0_override: bool = True,
) -> None:
    """Set what every PC has: sizes, CPUs, memory map, boot order.

    ``ram`` and ``reserved`` are (guest physical address, bytes). ``max_cpus`` is how many there may ever be;
    QEMU means APIC IDs by it. ``irq0_override``: the timer's interrupt is wired to I/O APIC input 2, not 0.
    """
    if len(uuid) != 16:
        raise DeviceError(f"fw_cfg: the UUID has {len(uuid)} bytes, must have 16")
    limit = cpus if max_cpus is None else max_cpus
    ranges = list(ram)
    fw_cfg.set(keys.UUID, uuid)
    fw_cfg.set_int(keys.RAM_SIZE, sum(length for _, length in ranges), 8)
    fw_cfg.set_int(keys.NOGRAPHIC, 1, 2)
    fw_cfg.set_int(keys.CPUS, cpus, 2)
    fw_cfg.set_int(keys.MAX_CPUS, limit, 2)
    fw_cfg.set_int(keys.BOOT_MENU, int(boot_menu), 2)
    fw_cfg.set_int(keys.IRQ0_OVERRIDE, int(irq0_override), 4)
    fw_cfg.set(keys.NUMA, numa([0] * limit))
    entries = [(address, length, E820_RESERVED) for address, length in reserved]
    entries += [(address, length, E820_RAM) for address, length in ranges]
    fw_cfg.set_file("etc/e820", e820(entries))
    fw_cfg.set_file("bootorder", bootorder(boot_order))


def describe_kernel(
    fw_cfg: FwCfg,
    *,
    kernel: bytes = b"",
    kernel_address: int = 0,
    entry: int = 0,
    cmdline: str = "",
    cmdline_address: int = 0,
    initrd: bytes = b"",
    initrd_address: int = 0,
) -> None:
    """Set what a boot ROM needs to load a kernel; addresses are where in guest memory (32 bits) to put it.

    The command line is UTF-8 and ends with a zero byte, which its size counts.
    """
    line = cmdline.encode() + b"\0"
    fw_cfg.set_int(keys.KERNEL_ADDRESS, kernel_address, 4)
    fw_cfg.set_int(keys.KERNEL_SIZE, len(kernel), 4)
    fw_cfg.set_int(keys.KERNEL_ENTRY, entry, 4)
    fw_cfg.set(keys.KERNEL_DATA, kernel)
    fw_cfg.set_int(keys.KERNEL_CMDLINE, cmdline_address, 4)
    fw_cfg.set_int(keys.CMDLINE_ADDRESS, cmdline_address, 4)
    fw_cfg.set_int(keys.CMDLINE_SIZE, len(line), 4)
    fw_cfg.set(keys.CMDLINE_DATA, line)
    fw_cfg.set_int(keys.INITRD_ADDRESS, initrd_address, 4)
    fw_cfg.set_int(keys.INITRD_SIZE, len(initrd), 4)
    fw_cfg.set(keys.INITRD_DATA, initrd)
