"""``kvmpy info`` says of this host's virtualization what it is."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from typing import Any

from offers import offers
from suite import Host, needs, raises

from kvmpy.cli import main
from kvmpy.cli.info import headline
from kvmpy.kvm import System
from kvmpy.x86.cpuid import CpuidTable

TECHNIQUES = {"kvm_amd": "AMD-V", "kvm_intel": "VT-x", "kvm_pvm": "PVM"}
HEADLINES = {
    "amd": "KVM uses AMD-V with NPT.",
    "amd-bochs": "KVM uses AMD-V with NPT.",
    "intel": "KVM uses VT-x with EPT and unrestricted guest.",
    "intel-no-ug": "KVM uses VT-x with EPT, no unrestricted guest.",
    "intel-no-ept": "KVM uses VT-x, shadow page tables, no unrestricted guest.",
}
"""What people see first, on the hosts that are known beforehand."""
IA32_VMX_PROCBASED_CTLS2 = 0x48B
EPT, UNRESTRICTED_GUEST = 1 << 1, 1 << 7


def info(*options: str) -> str:
    with redirect_stdout(io.StringIO()) as output, raises(SystemExit) as ended:
        main(["info", *options])
    assert str(ended[0]) == "0"
    return output.getvalue()


def processor_facts() -> dict[str, Any]:
    found = json.loads(info("--json"))["processor"]
    return {name: fact["value"] for name, fact in found.items()}


def test_info_names_vendor_and_technique(host: Host) -> None:
    found = processor_facts()
    vendors = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
    assert found["vendor"] == vendors.get(host.facts["vendor"], host.facts["vendor"])
    assert found["model"] == host.facts["cpu"]
    assert found["technique"] == TECHNIQUES[host.module]
    assert [name for name in ("vmx", "svm", "pvm") if found[name]] == [
        {"kvm_intel": "vmx", "kvm_amd": "svm", "kvm_pvm": "pvm"}[host.module]
    ]


def test_info_begins_with_the_technique_in_words(host: Host) -> None:
    """The lines above the tables: to draw those takes half a minute on a slow host."""
    lines = headline(offers()).splitlines()
    if host.name in HEADLINES:
        assert HEADLINES[host.name] in lines
    else:
        assert any(line.startswith(f"KVM uses {TECHNIQUES[host.module]}") for line in lines)


@needs("kvm_intel.nested=Y or kvm_intel.nested=1 or kvm_amd.nested=Y or kvm_amd.nested=1")
def test_info_agrees_with_what_nested_guests_are_offered(host: Host) -> None:
    """KVM passes on to guests what it has itself: another way to know than the module's parameters."""
    found = processor_facts()
    names = ("ept", "unrestricted_guest", "npt", "nrips")
    with System() as system:
        offered = offered_by_vt_x(system) if host.module == "kvm_intel" else offered_by_amd_v(system)
    assert tuple(found[name] for name in names) == offered


def offered_by_vt_x(system: System) -> tuple[bool, ...]:
    """SDM vol. 3 appendix A.3.3: the upper half has the secondary controls that may be 1."""
    may_be_1 = system.get_msrs([IA32_VMX_PROCBASED_CTLS2])[IA32_VMX_PROCBASED_CTLS2] >> 32
    return bool(may_be_1 & EPT), bool(may_be_1 & UNRESTRICTED_GUEST), False, False


def offered_by_amd_v(system: System) -> tuple[bool, ...]:
    offered = CpuidTable(system.get_supported_cpuid())
    return False, False, offered.has("npt"), offered.has("nrip_save")
