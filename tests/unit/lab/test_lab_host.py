"""What a host is and whether it is quiet, told from copies of its files; the kernel's trace; which kinds there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmpy.errors import UsageError
from kvmpy.lab import clock, guests, kernel_view, kinds, quiet
from kvmpy.lab.fingerprint import differences, fingerprint
from kvmpy.lab.measuring import Settings

CPUS = "sys/devices/system/cpu"


def host(root: Path, **files: str) -> str:
    """A root with these files; the keys' double underscores are slashes."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return str(root)


def found(root: str) -> dict[str, quiet.Check]:
    return {check.name: check for check in quiet.checks(root)}


def test_a_quiet_host(tmp_path: Path) -> None:
    root = host(
        tmp_path,
        **{
            f"{CPUS}/cpu0/cpufreq/scaling_governor": "performance",
            f"{CPUS}/cpu1/cpufreq/scaling_governor": "performance",
            f"{CPUS}/intel_pstate/no_turbo": "1", f"{CPUS}/smt/control": "off", f"{CPUS}/isolated": "1",
            f"{CPUS}/vulnerabilities/meltdown": "Not affected", "sys/kernel/mm/ksm/run": "0",
            "proc/loadavg": "0.01 0 0",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never", "proc/cpuinfo": "flags : vmx",
            "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
            "sys/module/kvm/parameters/halt_poll_ns": "0",
        },
    )  # fmt: skip
    assert {check.verdict for check in found(root).values()} == {quiet.GOOD}
    assert not any(check.remedy for check in found(root).values())


@pytest.mark.parametrize(
    ("name", "file", "content", "remedy"),
    [
        ("governor", f"{CPUS}/cpu0/cpufreq/scaling_governor", "powersave", "cpupower frequency-set"),
        ("turbo", f"{CPUS}/cpufreq/boost", "1", "echo 0 | sudo tee"),
        ("turbo", f"{CPUS}/intel_pstate/no_turbo", "0", "echo 1 | sudo tee"),
        ("smt", f"{CPUS}/smt/control", "on", "echo off"),
        ("isolated CPUs", f"{CPUS}/isolated", "", "isolcpus="),
        ("THP", "sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never", "echo madvise"),
        ("mitigations", f"{CPUS}/vulnerabilities/mds", "Mitigation: Clear CPU buffers", "mitigations=off"),
        (
            "clock source",
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "hpet",
            "echo tsc",
        ),
        ("KSM", "sys/kernel/mm/ksm/run", "1", "echo 0"),
        ("halt polling", "sys/module/kvm/parameters/halt_poll_ns", "200000", "echo 0"),
        ("load", "proc/loadavg", "3.70 0 0", "stop"),
        ("bare metal", "proc/cpuinfo", "flags : hypervisor", "machine of your own"),
    ],
)
def test_a_noisy_host_and_what_would_change_it(
    tmp_path: Path, name: str, file: str, content: str, remedy: str
) -> None:
    check = found(host(tmp_path, **{file: content}))[name]
    assert check.verdict == quiet.NOISY and remedy in check.remedy
    json.dumps(check.as_dict())


def test_nothing_can_be_found_out(tmp_path: Path) -> None:
    assert all(
        check.verdict in (quiet.UNKNOWN, quiet.GOOD, quiet.NOISY) for check in quiet.checks(str(tmp_path))
    )
    json.dumps(fingerprint(str(tmp_path)))


def test_the_fingerprint_has_what_matters(tmp_path: Path) -> None:
    root = host(
        tmp_path,
        **{
            "proc/cpuinfo": "vendor_id : GenuineIntel\ncpu family : 6\nmodel : 61\nmodel name : X\nstepping : 4\n"
            "microcode : 0x2f\nflags : vmx",
            "sys/module/kvm_intel/initstate": "live", "sys/module/kvm_intel/parameters/ept": "Y",
            "sys/module/kvm_intel/parameters/unrestricted_guest": "Y", "sys/module/kvm/parameters/halt_poll_ns": "0",
            f"{CPUS}/vulnerabilities/l1tf": "Mitigation: PTE Inversion", "proc/cmdline": "quiet isolcpus=1",
            f"{CPUS}/cpu0/cpufreq/scaling_governor": "performance", f"{CPUS}/smt/control": "off",
            "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
        },
    )  # fmt: skip
    print_ = fingerprint(root)
    cpu, kvm = print_["cpu"], print_["kvm"]
    assert (cpu["family"], cpu["model_number"], cpu["stepping"], cpu["microcode"]) == (6, 61, 4, "0x2f")
    assert (kvm["technique"], kvm["ept"], kvm["unrestricted_guest"], kvm["halt_poll_ns"]) == (
        "VT-x",
        "Y",
        "Y",
        "0",
    )
    assert kvm["nested_or_bare"] == "bare metal"
    assert print_["mitigations"] == {"l1tf": "Mitigation: PTE Inversion"}
    assert print_["kernel"]["command_line"] == "quiet isolcpus=1"
    assert print_["power"]["governor"] == "performance" and print_["clock"]["source"] == "tsc"
    assert print_["software"]["kvmpy"] and print_["software"]["python"]


def test_what_changes_by_itself_is_no_difference() -> None:
    first = {"power": {"frequency_mhz": 1, "smt": "on"}, "cpu": {"model": "a"}}
    second = {"power": {"frequency_mhz": 2, "smt": "off"}, "cpu": {"model": "a"}, "new": {"x": 1}}
    assert differences(first, second) == [("power.smt", "on", "off"), ("new", None, {"x": 1})]


TRACE = """# tracer: nop
          vcpu-1 [001] d..1. 1000: kvm_entry: vcpu 0, rip 0x10
          vcpu-1 [001] d..1. 1300: kvm_exit: vcpu 0 reason CPUID rip 0x12 info1 0 info2 0
          vcpu-1 [001] d..1. 1500: kvm_entry: vcpu 0, rip 0x14
          vcpu-1 [001] d..1. 1900: kvm_exit: reason IO_INSTRUCTION rip 0x20 info 40000 0
          vcpu-1 [001] ..... 1950: kvm_userspace_exit: reason KVM_EXIT_IO (2)
          vcpu-1 [001] d..1. 2900: kvm_entry: vcpu 0, rip 0x22
          vcpu-1 [001] d..1. 2950: kvm_pio: pio_write at 0xe4
"""


def test_a_trace() -> None:
    said = kernel_view.summarise(TRACE)
    assert said["exits"] == {"CPUID": 1, "IO_INSTRUCTION": 1}
    assert said["user_space"] == {"KVM_EXIT_IO": 1}
    assert (said["kernel"]["CPUID"]["p50"], said["kernel"]["IO_INSTRUCTION"]["p50"]) == (200, 1000)
    assert (said["guest"]["min"], said["guest"]["max"]) == (300, 400)


def test_no_tracing(tmp_path: Path) -> None:
    with pytest.raises(kernel_view.TracingUnavailable) as caught:
        kernel_view.Tracing((str(tmp_path),))
    assert str(tmp_path / "events/kvm/kvm_exit") in str(caught.value) and "mount -t tracefs" in str(
        caught.value
    )
    (tmp_path / "events/kvm/kvm_exit").mkdir(parents=True)
    with pytest.raises(kernel_view.TracingUnavailable, match="instances"):
        kernel_view.Tracing((str(tmp_path),))
    (tmp_path / "instances").mkdir()
    with pytest.raises(kernel_view.TracingUnavailable, match="events/kvm/kvm_exit/enable can't be written"):
        kernel_view.Tracing((str(tmp_path),))


def test_every_kind_is_in_the_guest_and_every_loop_has_a_kind() -> None:
    for stamp in guests.STAMPS:
        entries = set(guests.LabImage(stamp).entries)
        used = {"vmmcall", "halt", "spin"}
        for kind in kinds.KINDS:
            if isinstance(kind.what, kinds.Guest):
                used |= {kind.what.entry, *kind.what.others, kind.what.handler, kind.what.other_handler} - {
                    ""
                }
            if kind.floor:
                used.add(kind.floor.entry)
        assert used == entries


def test_what_the_issue_asks_for_is_there() -> None:
    names = {kind.name for kind in kinds.KINDS} | set(kinds.ALIASES)
    assert len(names) == len(kinds.KINDS) + len(kinds.ALIASES)
    for name in ("cpuid", "vmcall", "mov_from_cr8", "mov_to_cr8", "inl_from_kernel", "outl_to_kernel", "inl_from_user",
                 "outl_to_user", "inl_from_qemu", "hlt", "ipi", "tscdeadline", "tscdeadline_immed", "self_ipi_sti_nop",
                 "wr_tsc_adjust", "ple", "rdtsc", "ept_violation_4k", "ept_violation_2m", "dirty_log_write",
                 "write_protect", "uffd_fault", "memslot_change", "kvm_run_immediate_exit", "kick", "get_regs",
                 "set_regs", "sync_regs", "vm_create", "vcpu_create", "first_run", "vm_destroy"):  # fmt: skip
        assert name in names


def test_choosing() -> None:
    assert [kind.name for kind in kinds.choose(["outl_to_user", "cpuid"])] == ["cpuid", "outl_to_user"]
    assert {kind.group for kind in kinds.choose(["mmio*"])} == {"mmio"}
    assert kinds.choose(["life cycle"]) == [kind for kind in kinds.KINDS if kind.group == "life cycle"]
    assert [kind.name for kind in kinds.choose(["inl_from_qemu"])] == ["inl_from_user"]
    assert kinds.choose([]) == list(kinds.KINDS)
    with pytest.raises(UsageError, match="did you mean outl_to_user"):
        kinds.choose(["outl_to_usr"])
    with pytest.raises(UsageError, match="--list"):
        kinds.choose(["zzz"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seconds": 0}, "time budget of 0 seconds"), ({"seconds": -1}, "time budget"),
        ({"seconds": float("nan")}, "time budget"), ({"seconds": 1e9}, "at most"), ({"rounds": 1}, "1 rounds"),
        ({"samples": 0}, "0 samples"), ({"handicap": -1}, "handicap"), ({"engines": ["tcg"]}, "engine 'tcg'"),
        ({"kinds": ["nope!"]}, "no kind of exit"),
    ],
)  # fmt: skip
def test_settings_that_cant_be(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Settings(**arguments)  # type: ignore[arg-type]


def test_choosing_a_cpu() -> None:
    assert clock.choose_cpus(3, {3}) == (3, None)
    first, other = clock.choose_cpus(None, {0, 1})
    assert {first, other} == {0, 1}
    with pytest.raises(UsageError, match="doesn't exist: there are"):
        clock.choose_cpus(100_000)
    with pytest.raises(UsageError, match="isn't allowed here; this process may use 5"):
        clock.choose_cpus(0, {5})
    with pytest.raises(UsageError, match="CPU -1 doesn't exist"):
        clock.choose_cpus(-1)


def test_the_clock_is_known() -> None:
    said = clock.tsc_frequency()
    assert said["hz"] == pytest.approx(said["measured_hz"], rel=0.02) and said["source"]
