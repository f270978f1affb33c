"""The hosts there are: which emulator, which processor, and what KVM must say there once it is up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .errors import HostsError

# The programs an emulator needs, each with the Debian package that has it.
TOOLS: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "qemu": {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static"},
    "bochs": {"bochs": "bochs", "busybox": "busybox-static", "as": "binutils", "ld": "binutils"},
}


# Of its own seconds, which take up to five of ours on a busy machine: less than ``silence`` in all. QEMU's are
# ours, and on a busy machine it does little in one.
_BOCHS_TEST = 30
_QEMU_TEST = 150


class Host(NamedTuple):
    """A machine to run the suite on.

    ``parameters`` are module parameters as in /sys/module/*/parameters; a host that says otherwise once it
    is up is a failure, not a different host. ``memory`` is in MiB. ``silence`` is the longest time in
    seconds that it may print nothing, ``limit`` the longest time for a run in all: both in wall time on two
    busy cores, about five times what is usual. ``test_seconds`` of the host's own time is the most for a
    test. ``options`` are more words of the kernel's command line.
    """

    name: str
    emulator: str
    cpu: str
    summary: str
    parameters: Mapping[str, str]
    memory: int = 0
    silence: float = 180
    limit: float = 1800
    test_seconds: int = 60
    options: tuple[str, ...] = ()


# A page of 1 GiB, set aside while there is one: it takes twice the memory for one to be free.
_GIGANTIC_PAGE = ("hugepagesz=1G", "hugepages=1")

HOSTS = (
    Host("local", "none", "", "this machine, whatever it is", {}),
    Host(
        "amd",
        "qemu",
        "max,-erms,-fsrm",
        "AMD-V, NPT",
        {"kvm_amd.npt": "Y"},
        memory=4096,
        test_seconds=_QEMU_TEST,
        options=("tsc=nowatchdog", *_GIGANTIC_PAGE),  # a busy emulator's TSC looks unsteady to Linux
    ),
    Host(
        "intel",
        "bochs",
        "broadwell_ult",
        "VT-x, EPT, unrestricted guest",
        {"kvm_intel.ept": "Y", "kvm_intel.unrestricted_guest": "Y"},
        memory=2560,
        test_seconds=_BOCHS_TEST,
        options=_GIGANTIC_PAGE,
    ),
    Host(
        "intel-no-ug",
        "bochs",
        "corei5_lynnfield_750",
        "VT-x, EPT, no unrestricted guest",
        {"kvm_intel.ept": "Y", "kvm_intel.unrestricted_guest": "N"},
        memory=768,
        test_seconds=_BOCHS_TEST,
    ),
    Host(
        "intel-no-ept",
        "bochs",
        "core2_penryn_t9600",
        "VT-x, shadow paging",
        {"kvm_intel.ept": "N", "kvm_intel.unrestricted_guest": "N"},
        memory=768,
        test_seconds=_BOCHS_TEST,
    ),
    Host(
        "amd-bochs",
        "bochs",
        "zambezi",
        "AMD-V, NPT, next RIP saved",
        {"kvm_amd.npt": "Y"},
        memory=2560,
        test_seconds=_BOCHS_TEST,
        options=_GIGANTIC_PAGE,
    ),
)

NAMES = tuple(host.name for host in HOSTS)


def find(name: str) -> list[Host]:
    """The host of that name in a list, or all of them for "all". HostsError for a name that isn't one."""
    chosen = [host for host in HOSTS if name in (host.name, "all")]
    if not chosen:
        raise HostsError(f"there is no host {name!r}: {', '.join(NAMES)} or all")
    return chosen
