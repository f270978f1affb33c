"""Whether a host is set up for quiet numbers, and the command that would change what isn't. Nothing is changed."""

from __future__ import annotations

import os

from kvmpy.kvm import processor as files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD, NOISY, UNKNOWN = "good", "noisy", "unknown"
CPUS = "sys/devices/system/cpu"
THP = "sys/kernel/mm/transparent_hugepage/enabled"


class Check:
    """``name``; ``verdict``: "good", "noisy" or "unknown"; ``found``: what the host says; ``why`` it matters;
    ``remedy``: the command that changes it, "" where there is nothing to change."""

    __slots__ = ("found", "name", "remedy", "verdict", "why")

    def __init__(self, name: str, verdict: str, found: str, why: str, remedy: str = "") -> None:
        self.name = name
        self.verdict = verdict
        self.found = found
        self.why = why
        self.remedy = "" if verdict == GOOD else remedy

    def __repr__(self) -> str:
        return f"<Check {self.name}: {self.verdict}, {self.found}>"

    def as_dict(self) -> dict[str, str]:
        """JSON-able."""
        return {name: getattr(self, name) for name in self.__slots__}


def checks(root: str = "/") -> list[Check]:
    """All checks. ``root`` stands for ``/`` when /proc and /sys are read. Never raises."""
    return [
        _governor(root), _turbo(root), _smt(root), _isolated(root), _huge_pages(root), _mitigations(root),
        _clock(root), _ksm(root), _polling(root), _load(root), _nested(root),
    ]  # fmt: skip


def _read(root: str, path: str) -> str | None:
    return files.read(os.path.join(root, path))


def _governor(root: str) -> Check:
    why = "a clock that goes up and down makes the same work take different times"
    governors = set(_each_cpu(root, "cpufreq/scaling_governor"))
    if not governors:
        return Check("governor", UNKNOWN, "no cpufreq here: somebody else sets the frequency", why)
    verdict = GOOD if governors == {"performance"} else NOISY
    return Check(
        "governor", verdict, ", ".join(sorted(governors)), why, "sudo cpupower frequency-set -g performance"
    )


def _each_cpu(root: str, path: str) -> Iterator[str]:
    folder = os.path.join(root, CPUS)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        if name.startswith("cpu") and name[3:].isdecimal():
            value = files.read(os.path.join(folder, name, path))
            if value:
                yield value


def _turbo(root: str) -> Check:
    why = "the boost depends on temperature and on what the other cores do"
    no_turbo = _read(root, f"{CPUS}/intel_pstate/no_turbo")
    boost = _read(root, f"{CPUS}/cpufreq/boost")
    if no_turbo is not None:
        remedy = f"echo 1 | sudo tee /{CPUS}/intel_pstate/no_turbo"
        return Check("turbo", GOOD if no_turbo == "1" else NOISY, f"no_turbo={no_turbo}", why, remedy)
    if boost is not None:
        remedy = f"echo 0 | sudo tee /{CPUS}/cpufreq/boost"
        return Check("turbo", GOOD if boost == "0" else NOISY, f"boost={boost}", why, remedy)
    return Check("turbo", UNKNOWN, "no switch for it here", why)


def _smt(root: str) -> Check:
    why = "the other thread of a core takes its time from this one"
    control = _read(root, f"{CPUS}/smt/control")
    if control is None:
        return Check("smt", UNKNOWN, f"/{CPUS}/smt/control doesn't exist", why)
    verdict = NOISY if control == "on" else GOOD
    return Check("smt", verdict, control, why, f"echo off | sudo tee /{CPUS}/smt/control")


def _isolated(root: str) -> Check:
    why = "on an isolated CPU nobody else is scheduled"
    isolated = _read(root, f"{CPUS}/isolated")
    remedy = "boot with isolcpus=N nohz_full=N rcu_nocbs=N, then kvmpy bench exits --cpu N"
    return Check("isolated CPUs", GOOD if isolated else NOISY, isolated or "none", why, remedy)


def _huge_pages(root: str) -> Check:
    why = "pages that are merged behind one's back move memory while it is used"
    said = _read(root, THP)
    if said is None:
        return Check("THP", UNKNOWN, f"/{THP} doesn't exist", why)
    chosen = said.partition("[")[2].partition("]")[0]
    remedy = f"echo madvise | sudo tee /{THP}"
    return Check("THP", NOISY if chosen == "always" else GOOD, chosen, why, remedy)


def _mitigations(root: str) -> Check:
    why = "mitigations make every entry and exit longer: right for production, to be the same where hosts are compared"
    folder = os.path.join(root, CPUS, "vulnerabilities")
    try:
        states = {name: files.read(os.path.join(folder, name)) or "" for name in sorted(os.listdir(folder))}
    except OSError:
        return Check("mitigations", UNKNOWN, "the kernel doesn't say", why)
    active = [name for name, state in states.items() if state.startswith("Mitigation")]
    found = f"{len(active)} active: {', '.join(active)}" if active else "none active"
    remedy = "boot with mitigations=off, on a host without secrets"
    return Check("mitigations", NOISY if active else GOOD, found, why, remedy)


def _clock(root: str) -> Check:
    why = "without a steady TSC the kernel's clock, and perhaps the TSC itself, can't be trusted"
    source = _read(root, "sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source is None:
        return Check("clock source", UNKNOWN, "the kernel doesn't say", why)
    verdict = GOOD if source in ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page") else NOISY
    remedy = "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource"
    return Check("clock source", verdict, source, why, remedy)


def _ksm(root: str) -> Check:
    why = "merging equal pages takes the memory's lock at any time, and makes writes fault"
    run = _read(root, "sys/kernel/mm/ksm/run")
    if run is None:
        return Check("KSM", GOOD, "not in this kernel", why)
    return Check(
        "KSM", GOOD if run == "0" else NOISY, f"run={run}", why, "echo 0 | sudo tee /sys/kernel/mm/ksm/run"
    )


def _polling(root: str) -> Check:
    why = "after HLT the kernel polls a while that grows and shrinks by itself"
    value = _read(root, "sys/module/kvm/parameters/halt_poll_ns")
    if value is None:
        return Check("halt polling", UNKNOWN, "kvm isn't loaded", why)
    remedy = "echo 0 | sudo tee /sys/module/kvm/parameters/halt_poll_ns"
    return Check("halt polling", GOOD if value == "0" else NOISY, f"halt_poll_ns={value}", why, remedy)


def _load(root: str) -> Check:
    why = "what else runs takes the CPU, its caches and its memory bus"
    said = (_read(root, "proc/loadavg") or "").split(" ", 1)[0]
    try:
        load = float(said)
    except ValueError:
        return Check("load", UNKNOWN, "the kernel doesn't say", why)
    return Check(
        "load", GOOD if load < 0.5 else NOISY, f"{load:g} in the last minute", why, "stop what else runs"
    )


def _nested(root: str) -> Check:
    why = "inside a virtual machine exits may cost a hundred times as much, and neighbours can't be seen"
    virtual = "hypervisor" in files.processor(root).flags
    found = "this host is a virtual machine itself" if virtual else "bare metal"
    return Check("bare metal", NOISY if virtual else GOOD, found, why, "measure on a machine of your own")
