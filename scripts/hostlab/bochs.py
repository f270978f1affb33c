"""Bochs, an interpreter with many CPU models: VT-x of several generations, and a second AMD-V."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import cache, disk, kernel
from .catalogue import Host
from .errors import HostsError
from .machine import Start, bounded, command_line, files_in
from .watchdog import Limits

# The BIOS, and that of the graphics card, where packages put them. bochsbios has only the first; the second
# comes with vgabios or seabios, and either will do: nobody looks.
_BIOS = ("/usr/share/bochs/BIOS-bochs-latest", "/usr/local/share/bochs/BIOS-bochs-latest")
_VGA_BIOS = (
    "/usr/share/bochs/VGABIOS-lgpl-latest",
    "/usr/local/share/bochs/VGABIOS-lgpl-latest",
    "/usr/share/seabios/vgabios-stdvga.bin",
)

# Instructions that Bochs takes for a second of the guest's time. About what it reaches, so that clocks
# inside and outside agree roughly; it isn't kept to them (clock: sync=none).
_INSTRUCTIONS_PER_SECOND = 100_000_000

# MiB of a host's memory that are in ours; what more of it is in use goes to a file.
_MOST_AT_ONCE = 2048

# For the heartbeat (see init): the PIT must drive its pin of the I/O APIC, that must be reachable from a
# process, and the kernel's complaints mustn't push all else out of its log.
_KERNEL_OPTIONS = ("no_timer_check", "cpuidle.off=1", "hpet=disable", "iomem=relaxed", "log_buf_len=1M")
_ENVIRONMENT = {"HOSTLAB_ROOT": "initramfs", "HOSTLAB_HEARTBEAT": "1"}


def start(
    host: Host, vmlinux: Path, initrd: bytes, boot_sector: bytes, place: Path, *, terminal: str = ""
) -> Start:
    """Write the disk image and the configuration to ``place``; how to start the host from there.

    ``terminal`` is a terminal device for an interactive console. HostsError if it can't be started from
    there.
    """
    append = command_line(
        *_KERNEL_OPTIONS, *host.options, **_ENVIRONMENT, **({"HOSTLAB_SHELL": "1"} if terminal else {})
    )
    image = disk.build(
        boot_sector, kernel.flatten(vmlinux.read_bytes()), initrd, append, memory=host.memory << 20
    )
    console, report, output = files_in(place)
    (place / "disk.img.lock").unlink(missing_ok=True)  # left behind when Bochs is killed
    cache.write(place / "disk.img", image.data)
    for file in (console, report):
        file.write_bytes(b"")  # it appends to nothing: the files must be there
    com1 = f"mode=term, dev={terminal}" if terminal else f"mode=file, dev={console}"
    (place / "bochsrc").write_text(
        configuration(host, place, image.cylinders, com1, f"mode=file, dev={report}")
    )
    (place / "commands").write_text("c\n")  # Debian's build has a debugger that waits for "continue"
    command = ["bochs", "-q", "-f", str(place / "bochsrc"), "-rc", str(place / "commands")]
    return Start(bounded(command, host.limit), console, report, output, Limits(host.silence, host.limit))


def configuration(host: Host, place: Path, cylinders: int, com1: str, com2: str) -> str:
    """Bochs' configuration file. HostsError if the directory's name can't be written in it."""
    if any(sign in str(place) for sign in ', "\n'):
        raise HostsError(
            f"Bochs can't use files in {str(place)!r}: set KVMPY_CACHE to a path without blanks or commas"
        )
    lines = (
        "config_interface: textconfig",
        'display_library: rfb, options="timeout=0"',  # nobody looks: don't wait for a viewer
        f"romimage: file={_first_of(_BIOS, 'bochsbios')}",
        f"vgaromimage: file={_first_of(_VGA_BIOS, 'vgabios')}",
        f"memory: guest={host.memory}, host={min(host.memory, _MOST_AT_ONCE)}",
        f"cpu: model={host.cpu}, count=1, ips={_INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0",
        "clock: sync=none, time0=local",
        "pci: enabled=1, chipset=i440fx",
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14",
        f"ata0-master: type=disk, mode=flat, path={place / 'disk.img'}, cylinders={cylinders}, "
        f"heads={disk.HEADS}, spt={disk.SECTORS_PER_TRACK}",
        "boot: disk",
        f"com1: enabled=1, {com1}",
        f"com2: enabled=1, {com2}",
        f"log: {place / 'bochs.log'}",
        "panic: action=fatal",
        "error: action=ignore",
        "info: action=ignore",
        "debug: action=ignore",
        "sound: driver=dummy",  # it ends at once where there is no sound card to open
        "speaker: enabled=0",
    )
    return "".join(f"{line}\n" for line in lines)


def _first_of(paths: Sequence[str], package: str) -> str:
    for path in paths:
        if Path(path).exists():
            return path
    raise HostsError(f"Bochs has no {Path(paths[0]).name}; as root: apt-get install {package}")
