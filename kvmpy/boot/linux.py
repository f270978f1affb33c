"""Linux kernels (bzImage): recognised, not started yet.

This is the place of the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst): the real-mode header at
0x1f1, the zero page with the memory map, the command line and the initial RAM disk, entry in 64-bit or
32-bit mode. BootOptions already carries what it needs (append, initrd, cpus, ram).
"""

from __future__ import annotations

from typing import NoReturn

from kvmpy.boot.payload import BootOptions
from kvmpy.errors import ImageError

SUMMARY = "Linux kernel (bzImage); not supported yet"


def load(data: bytes, options: BootOptions) -> NoReturn:
    """Always ImageError: booting Linux isn't supported yet."""
    if data[0x202:0x206] != b"HdrS":
        raise ImageError(f"{options.name}: no Linux kernel: the word at 0x202 isn't HdrS")
    raise ImageError(f"{options.name}: this is a Linux kernel (bzImage), which kvmpy can't boot yet")
