"""What the kernel's files say of the processor and of KVM's modules: found without opening ``/dev/kvm``.

Every function takes the directory that stands for ``/``, so that other hosts can be told from copies of their files.
"""

from __future__ import annotations

import os

PARTS = ("kvm_pvm", "kvm_intel", "kvm_amd")
"""The modules that do the work under kvm.ko, one technique each."""
TECHNIQUES = {"kvm_intel": "VT-x", "kvm_amd": "AMD-V", "kvm_pvm": "PVM"}
FLAGS = {"kvm_intel": "vmx", "kvm_amd": "svm"}
"""The flag in /proc/cpuinfo without which a module doesn't work."""
VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "HygonGenuine": "Hygon", "CentaurHauls": "Centaur",
           "  Shanghai  ": "Zhaoxin"}  # fmt: skip


class Processor:
    """The first processor of /proc/cpuinfo.

    ``vendor`` ("Intel", "AMD", … or what CPUID says), ``model`` (its name), ``flags`` and ``vmx_flags`` as Linux calls
    them, ``bits`` of a physical address. What the file doesn't say is empty or 0.
    """

    __slots__ = ("bits", "flags", "model", "vendor", "vmx_flags")

    def __init__(self, text: str) -> None:
        values: dict[str, str] = {}
        for line in text.split("\n\n", 1)[0].splitlines():
            name, _, value = line.partition(":")
            values[name.strip()] = value.strip()
        vendor = values.get("vendor_id", "")
        self.vendor = next((name for id_, name in VENDORS.items() if id_.strip() == vendor), vendor)
        self.model = values.get("model name", "")
        self.flags = frozenset(values.get("flags", "").split())
        self.vmx_flags = frozenset(values.get("vmx flags", "").split())
        bits = values.get("address sizes", "").split(" ", 1)[0]
        self.bits = int(bits) if bits.isdecimal() else 0


def read(path: str) -> str | None:
    """A small text file without the white space at its ends; None if it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return None


def processor(root: str = "/") -> Processor:
    """What /proc/cpuinfo says."""
    return Processor(read(os.path.join(root, "proc/cpuinfo")) or "")


def parameters(module: str, root: str = "/") -> dict[str, str] | None:
    """The parameters of a kernel module that can be read; None if it is neither loaded nor built in."""
    home = os.path.join(root, "sys/module", module)
    if not os.path.isdir(home):
        return None
    folder = os.path.join(home, "parameters")
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    found = {name: read(os.path.join(folder, name)) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def active_part(cpu: Processor, root: str = "/") -> str:
    """The module that does KVM's work here, one of PARTS; "" if none does.

    A module that was loaded works, or it wouldn't be there. One that is built in is there even on the other vendor's
    processors: then the processor's flag decides, and PVM, which needs none, comes last.
    """
    there = [name for name in PARTS if os.path.isdir(os.path.join(root, "sys/module", name))]
    loaded = [name for name in there if read(os.path.join(root, "sys/module", name, "initstate")) == "live"]
    for name in loaded:
        if FLAGS.get(name, "") in cpu.flags or name not in FLAGS:
            return name
    for name in there:
        if name in FLAGS and FLAGS[name] in cpu.flags:
            return name
    return "kvm_pvm" if "kvm_pvm" in there else ""


def wanted_part(cpu: Processor) -> str:
    """The module to load on this processor: "kvm_intel", "kvm_amd", or "" where it offers neither VT-x nor AMD-V."""
    return next((name for name, flag in FLAGS.items() if flag in cpu.flags), "")
