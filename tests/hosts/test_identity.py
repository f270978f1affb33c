"""The host is what it is said to be."""

from __future__ import annotations

import fcntl
import os

from suite import Host, needs

KVM_GET_API_VERSION = 0xAE00


def test_kvm_answers_with_api_version_12(host: Host) -> None:
    fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    host.defer(os.close, fd)
    assert fcntl.ioctl(fd, KVM_GET_API_VERSION, 0) == 12


@needs("flag vmx or flag svm")
def test_the_module_fits_the_processor(host: Host) -> None:
    expected = "kvm_intel" if "vmx" in host.facts["flags"] else "kvm_amd"
    assert host.module == expected


@needs("kvm_intel.ept=Y or kvm_amd.npt=Y")
def test_two_dimensional_paging_says_so_in_cpuinfo(host: Host) -> None:
    flags = host.facts["vmx_flags"] + host.facts["flags"]
    assert "ept" in flags or "npt" in flags
