"""Kernel modules: which files a purpose needs, in the order to load them, without their signatures."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from . import elf
from .errors import HostsError

# What is loaded for a purpose; what these depend on comes along. See ``init``.
PURPOSES = {
    "kvm-amd": ("kvm-amd",),
    "kvm-intel": ("kvm-intel",),
    "9p": ("virtio_pci", "9pnet_virtio", "9p", "overlay"),
}

_SIGNED = b"~Module signature appended~\n"


def without_signature(module: bytes) -> bytes:
    """The module without an appended signature.

    The kernel doesn't insist on it, but checks it where there is one, and that takes long in an emulator.
    The end of a signed file: signature, struct module_signature (12 bytes, the last four the signature's
    length, big-endian), text.
    """
    if not module.endswith(_SIGNED):
        return module
    trailer = len(module) - len(_SIGNED) - 12
    (length,) = struct.unpack_from(">I", module, trailer + 8)
    if length > trailer:
        raise ValueError(f"the module's signature claims {length} bytes, the file has {trailer} before it")
    return module[: trailer - length]


def depends(module: bytes) -> list[str]:
    """Names of the modules that it names in its ``.modinfo``, with "_" for "-"."""
    for field in elf.section(module, b".modinfo").split(b"\0"):
        key, _, value = field.partition(b"=")
        if key == b"depends":
            return [_canonical(name) for name in value.decode().split(",") if name]
    return []


def load_order(names: Iterable[str], needs: Callable[[str], list[str]]) -> list[str]:
    """``names`` and all that they need, each after what it needs itself."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order:
            return
        for other in needs(name):
            add(other)
        if name not in order:
            order.append(name)

    for name in names:
        add(_canonical(name))
    return order


class Modules:
    """The modules in an unpacked kernel package's tree."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths = {_canonical(path.stem): path for path in root.rglob("*.ko")}

    def read(self, name: str) -> bytes:
        """A module without its signature. HostsError if the package doesn't have it."""
        path = self._paths.get(_canonical(name))
        if path is None:
            raise HostsError(
                f"the kernel package has no module {name} under {self._root}: prepare with --fresh"
            )
        return without_signature(path.read_bytes())

    def order(self, purpose: str) -> list[str]:
        """The modules of a purpose in the order to load them."""
        return load_order(PURPOSES[purpose], lambda name: depends(self.read(name)))


def _canonical(name: str) -> str:
    return name.replace("-", "_")
