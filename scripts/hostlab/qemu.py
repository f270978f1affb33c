"""AMD-V with nested paging: QEMU's TCG, with this machine's own files as the host's root directory."""

from __future__ import annotations

from pathlib import Path

from .catalogue import Host
from .machine import Start, bounded, command_line, files_in
from .watchdog import Limits


def start(host: Host, kernel: Path, initrd: Path, place: Path, *, interactive: bool = False) -> Start:
    """How to start ``host``; with ``interactive`` its console is the standard input and output."""
    console, report, output = files_in(place)
    append = command_line(*host.options, HOSTLAB_ROOT="9p", **({"HOSTLAB_SHELL": "1"} if interactive else {}))
    command = [
        "qemu-system-x86_64",
        # one CPU: with two, TCG's threads now and then wait for each other for ever
        *("-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", host.cpu, "-smp", "1"),
        *("-m", str(host.memory), "-nodefaults", "-display", "none", "-no-reboot"),
        *("-serial", "mon:stdio" if interactive else f"file:{_quoted(console)}"),
        *("-serial", f"file:{_quoted(report)}"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", append),
        *("-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"),
    ]
    limits = Limits(host.silence, host.limit)
    return Start(command if interactive else bounded(command, host.limit), console, report, output, limits)


def _quoted(path: Path) -> str:
    """A comma ends a value in QEMU's options, unless doubled."""
    return str(path).replace(",", ",,")
