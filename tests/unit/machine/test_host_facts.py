"""kvmpy.machine.host and kvmpy.kvm.access on copies of other hosts' files: VT-x, AMD-V, PVM, none."""

from __future__ import annotations

import errno
import grp
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kvmpy.errors import UsageError
from kvmpy.kvm.access import User, describe, why_not
from kvmpy.kvm.processor import active_part, parameters, processor, wanted_part
from kvmpy.machine import host
from kvmpy.machine.host import Fact, HostFacts, facts, summary
from kvmpy.machine.host_capabilities import USED, number


class FakeRoot:
    """A directory that stands for / on another host."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def cpu(self, vendor: str, flags: str, model: str = "A processor") -> None:
        lines = [f"vendor_id\t: {vendor}", f"model name\t: {model}", f"flags\t\t: fpu {flags}",
                 "address sizes\t: 46 bits physical, 48 bits virtual"]  # fmt: skip
        self.write("proc/cpuinfo", "processor\t: 0\n" + "\n".join(lines) + "\n\nprocessor\t: 1\n")

    def module(self, name: str, loaded: bool = True, **values: str) -> None:
        (self.path / "sys/module" / name / "parameters").mkdir(parents=True, exist_ok=True)
        for parameter, value in values.items():
            self.write(f"sys/module/{name}/parameters/{parameter}", value)
        if loaded:
            self.write(f"sys/module/{name}/initstate", "live")

    def facts(self) -> HostFacts:
        return facts(str(self.path), str(self.path / "dev/kvm"))


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    return FakeRoot(tmp_path)


# What kind of host


def test_vtx_with_everything(root: FakeRoot) -> None:
    root.cpu("GenuineIntel", "vmx ept pdpe1gb")
    root.module("kvm_intel", ept="Y", unrestricted_guest="Y", vpid="N", nested="Y", enable_apicv="0")
    found = root.facts()
    assert (found.vendor, found.technique) == ("Intel", "VT-x")
    assert (found.vmx, found.svm, found.pvm) == (True, False, False)
    assert (found.ept, found.unrestricted_guest, found.vpid, found.apicv) == (True, True, False, False)
    assert found["ept"].source == "kvm_intel.ept=Y"
    assert found["vpid"].source == "kvm_intel.vpid=N"
    assert found["preemption_timer"].source == "kvm_intel has no parameter preemption_timer"
    assert found["npt"].source == "KVM uses VT-x here (/sys/module/kvm_intel)"
    assert (found.npt, found.nesting, found.pages_1g) == (False, True, True)
    assert (found.nested, found.bare_metal) == (False, True)


def test_amdv_in_a_virtual_machine(root: FakeRoot) -> None:
    root.cpu("AuthenticAMD", "svm hypervisor")
    root.module("kvm_amd", npt="1", nrips="0", avic="N")
    root.write("sys/class/dmi/id/sys_vendor", "QEMU")
    found = root.facts()
    assert (found.vendor, found.technique) == ("AMD", "AMD-V")
    assert (found.npt, found.nrips, found.ept) == (True, False, False)
    assert (found.nested, found.bare_metal, found.hypervisor) == (True, False, "QEMU")
    assert found["hypervisor"].source == "/sys/class/dmi/id/sys_vendor"


@pytest.mark.parametrize("loaded", [True, False])
def test_pvm(root: FakeRoot, loaded: bool) -> None:
    root.cpu("AuthenticAMD", "hypervisor")
    root.module("kvm_pvm", loaded)
    found = root.facts()
    assert (found.technique, found.pvm, found.ept, found.npt) == ("PVM", True, False, False)


def test_built_in_modules_are_told_by_the_flag(root: FakeRoot) -> None:
    root.cpu("AuthenticAMD", "svm")
    for name in ("kvm_intel", "kvm_amd", "kvm_pvm"):
        root.module(name, loaded=False)
    assert root.facts().technique == "AMD-V"


def test_a_loaded_pvm_beats_what_is_built_in(root: FakeRoot) -> None:
    root.cpu("GenuineIntel", "vmx")
    root.module("kvm_intel", loaded=False)
    root.module("kvm_pvm", loaded=True)
    assert root.facts().technique == "PVM"


def test_module_not_loaded(root: FakeRoot) -> None:
    root.cpu("GenuineIntel", "vmx")
    found = root.facts()
    assert (found.technique, found.kvm) == ("none", False)
    assert found["technique"].source == "kvm_intel isn't loaded (/proc/cpuinfo has the flag vmx)"
    assert found["kvm"].source.endswith("doesn't exist: load KVM: sudo modprobe kvm_intel")


def test_nothing_at_all_is_no_error(root: FakeRoot) -> None:
    found = root.facts()
    assert (found.kvm, found.technique, found.kvm_access) == (False, "none", False)
    assert found.model is None and found.memory is None
    assert not any(found[name].value for name in USED)
    assert found["irqchip"].source == "KVM can't be asked"
    json.dumps(found.as_dict())


def test_a_probe_that_fails_is_a_fact(root: FakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such luck")

    for probe in ("_kvm", "_translate", "_processor", "_host", "_access", "_memory", "_capabilities"):
        monkeypatch.setattr(host, probe, broken)
    found = root.facts()
    assert {fact.source for fact in found} == {"couldn't be found out: RuntimeError: no such luck"}
    assert {fact.value for fact in found} == {None}


def test_a_file_in_place_of_kvm(root: FakeRoot) -> None:
    root.write("dev/kvm", "")
    found = root.facts()
    assert not found.kvm
    assert "isn't KVM" in found["kvm"].source


# Memory


def test_memory(root: FakeRoot) -> None:
    root.write("proc/meminfo", "MemTotal:  2048 kB\nMemAvailable: 1024 kB\nHugePages_Total: 3")
    root.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    root.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8")
    root.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "5")
    root.write("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0")
    found = root.facts()
    assert (found.memory, found.memory_available) == (2 << 20, 1 << 20)
    assert found.thp is False and "echo madvise | sudo tee /sys/kernel" in found["thp"].source
    assert (found.hugetlb_2m, found["hugetlb_2m"].source) == (8, "5 of them free")
    assert found.hugetlb_1g == 0 and "sets N aside" in found["hugetlb_1g"].source


@pytest.mark.parametrize(("text", "on"), [("[always] madvise never", True), ("always [madvise] never", True)])
def test_thp(root: FakeRoot, text: str, on: bool) -> None:
    root.write("sys/kernel/mm/transparent_hugepage/enabled", text)
    assert root.facts().thp is on


# Asking


@pytest.fixture
def known() -> HostFacts:
    class Table:
        def has(self, name: str) -> bool:
            return name == "sse2"

    found = [
        Fact("processor", "ept", False, "kvm_intel.ept=N"),
        Fact("processor", "npt", False, "KVM uses VT-x here"),
        Fact("processor", "pvm", False, "KVM uses VT-x here"),
        Fact("capabilities", "irqchip", True, "KVM_CAP_IRQCHIP=1"),
        Fact("host", "kernel", "6.1", "uname"),
    ]
    return HostFacts(found, {"KVM_CAP_IRQCHIP": 1, "KVM_CAP_SYNC_REGS": 7}, Table())


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        (["irqchip"], ""),
        ([], ""),
        (["irqchip", "not pvm"], ""),
        (["ept or irqchip"], ""),
        (["ept"], "needs ept: kvm_intel.ept=N"),
        (["irqchip", "ept"], "needs ept: kvm_intel.ept=N"),
        (["ept or npt"], "needs ept or npt: kvm_intel.ept=N; KVM uses VT-x here"),
        (["npt or pvm"], "needs npt or pvm: KVM uses VT-x here"),
        (["not irqchip"], "needs not irqchip: KVM_CAP_IRQCHIP=1"),
        (["KVM_CAP_SYNC_REGS"], ""),
        (["KVM_CAP_X86_SMM"], "needs KVM_CAP_X86_SMM: KVM_CAP_X86_SMM=0"),
        (["cpuid.sse2"], ""),
        (["cpuid.avx2"], "needs cpuid.avx2: KVM_GET_SUPPORTED_CPUID says no"),
    ],
)
def test_missing(known: HostFacts, conditions: list[str], reason: str) -> None:
    assert known.missing(*conditions) == reason


def test_unknown_names(known: HostFacts) -> None:
    with pytest.raises(UsageError, match=r"no fact of a host is called 'irqchp': did you mean 'irqchip'\?"):
        known.missing("irqchp")
    with pytest.raises(UsageError, match="`kvmpy info` lists them"):
        known["zzz"]
    with pytest.raises(UsageError, match="KVM_CAP_FLYING isn't a capability"):
        known["KVM_CAP_FLYING"]
    with pytest.raises(AttributeError, match="zzz"):
        _ = known.zzz


def test_facts_as_values(known: HostFacts) -> None:
    assert known.kernel == "6.1"
    assert bool(known["irqchip"]) is True and bool(known["ept"]) is False
    assert len(known) == 5
    assert known.as_dict()["processor"]["ept"] == {"value": False, "source": "kvm_intel.ept=N", "about": ""}


def test_every_capability_used_exists() -> None:
    assert {name for name in USED if number(name) is None} == set()
    assert number("KVM_CAP_IRQCHIP") == number("irqchip") == 0
    assert number("by_name") is None


def test_summary_needs_no_kvm(root: FakeRoot) -> None:
    root.cpu("GenuineIntel", "vmx", "Model T")
    root.module("kvm_intel")
    said = summary(str(root.path))
    assert (said["model"], said["technique"], said["kernel"]) == ("Model T", "VT-x", os.uname().release)
    json.dumps(said)


# Processor files


def test_processor(root: FakeRoot) -> None:
    root.cpu("GenuineIntel", "vmx", "Model T")
    cpu = processor(str(root.path))
    assert (cpu.vendor, cpu.model, cpu.bits) == ("Intel", "Model T", 46)
    assert {"fpu", "vmx"} <= cpu.flags and not cpu.vmx_flags
    assert wanted_part(cpu) == "kvm_intel" and active_part(cpu, str(root.path)) == ""


@pytest.mark.parametrize("text", ["", "\xff\0", "flags\n:::\n", "address sizes: many bits"])
def test_odd_cpuinfo(root: FakeRoot, text: str) -> None:
    root.write("proc/cpuinfo", text)
    assert processor(str(root.path)).bits == 0


def test_parameters(root: FakeRoot) -> None:
    root.module("kvm_intel", ept="Y")
    assert parameters("kvm_intel", str(root.path)) == {"ept": "Y"}
    assert parameters("kvm_amd", str(root.path)) is None


# Remedies


def absent(root: FakeRoot, number: int = errno.ENOENT) -> str:
    return why_not("/dev/kvm", OSError(number, "x"), str(root.path))


def test_remedy_for_a_missing_device(root: FakeRoot) -> None:
    root.cpu("AuthenticAMD", "")
    assert absent(root).endswith("switch on SVM (AMD-V) in the firmware's set-up")
    root.cpu("GenuineIntel", "")
    assert absent(root).endswith("switch on VT-x in the firmware's set-up")
    root.cpu("GenuineIntel", "hypervisor")
    assert "has no nested virtualization" in absent(root)
    root.cpu("AuthenticAMD", "svm")
    assert absent(root).endswith("sudo modprobe kvm_amd")
    assert absent(root, errno.ENODEV).startswith("/dev/kvm is there but no KVM answers: load KVM")
    root.module("kvm_amd")
    assert absent(root).endswith("start it with --device /dev/kvm")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "kvm"
    path.write_text("")
    return str(path)


def refused(device: str, mode: int, group: int, login: list[int], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said to ann when the device has this mode and group, and she this group from her next login on."""
    real = os.stat(device)
    fields = list(real)
    fields[0], fields[4], fields[5] = 0o020000 | mode, 0, group
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result(fields))
    monkeypatch.setattr(
        grp, "getgrgid", lambda gid: grp.struct_group(("root" if gid == 0 else "kvm", "x", gid, []))
    )
    return why_not(device, OSError(errno.EACCES, "no"), user=User(1000, "ann", [1000], login))


def test_remedy_for_a_user_outside_the_group(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(device, 0o660, 106, [1000], monkeypatch)
    assert said == (
        f"{device} can't be opened: permission denied (crw-rw---- root:kvm): add yourself to group kvm:"
        " sudo usermod -aG kvm ann, and log in again"
    )


def test_remedy_for_a_user_who_has_to_log_in_again(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(device, 0o660, 106, [1000, 106], monkeypatch)
    assert said.endswith("you are in group kvm from your next login on: log in again, or run: newgrp kvm")


@pytest.mark.parametrize(("mode", "group"), [(0o600, 0), (0o660, 0), (0o600, 106)])
def test_remedy_for_a_device_that_is_roots(
    device: str, mode: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", 106, [])))
    said = refused(device, mode, group, [1000, 106], monkeypatch)
    assert f"sudo chown root:kvm {device} && sudo chmod 660 {device} && sudo usermod -aG kvm ann" in said


def test_remedy_where_there_is_no_group_kvm(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(name: str) -> Any:
        raise KeyError(name)

    monkeypatch.setattr(grp, "getgrnam", nobody)
    assert refused(device, 0o600, 0, [1000], monkeypatch).endswith(f"sudo chmod 666 {device}")


@pytest.mark.parametrize(("number", "uid"), [(errno.EPERM, 1000), (errno.EACCES, 0)])
def test_remedy_in_a_container(device: str, number: int, uid: int) -> None:
    said = why_not(device, OSError(number, "no"), user=User(uid, "ann", [], []))
    assert said.endswith(f"permission denied even for root: start the container with --device {device}")


def test_other_errors_keep_the_kernels_words() -> None:
    assert why_not("/dev/kvm", OSError(errno.EMFILE, "Too many open files")) == (
        "/dev/kvm can't be opened: Too many open files"
    )


def test_describe(device: str) -> None:
    os.chmod(device, 0o640)
    assert describe(device).startswith("-rw-r----- ")
    assert User.current().uid == os.geteuid()
