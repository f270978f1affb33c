"""What a host is, as far as it matters to times: part of every report, and what two reports are compared by."""

from __future__ import annotations

import os
import sys

from kvmpy.kvm import processor as files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PARAMETERS = ("ept", "npt", "unrestricted_guest", "vpid", "enable_apicv", "avic", "nrips", "nested", "ple_gap",
              "pause_filter_count", "preemption_timer", "vls", "pml")  # fmt: skip
"""Of the vendor's module; those that are there are reported."""
KVM_PARAMETERS = ("halt_poll_ns", "lapic_timer_advance", "lapic_timer_advance_ns", "tdp_mmu", "nx_huge_pages",
                  "mmio_caching", "enable_pmu")  # fmt: skip
PACKAGES = ("cffi", "click", "psutil", "rich", "unicorn", "matplotlib")
CHANGING = ("load_before", "load_after", "frequency_mhz", "uptime_seconds")
"""Not part of what a host is: differences of these mean nothing in a comparison."""


def fingerprint(root: str = "/") -> dict[str, Any]:
    """Group -> name -> value. What can't be found out is None; never raises for a host it doesn't know."""
    return {
        "cpu": _cpu(root),
        "kvm": _kvm(root),
        "mitigations": _mitigations(root),
        "power": _power(root),
        "kernel": _kernel(root),
        "clock": _clock(root),
        "memory": _memory(root),
        "software": software(),
    }


def load_average() -> list[float] | None:
    """Of the last 1, 5 and 15 minutes."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except OSError:
        return None


def _read(root: str, path: str) -> str | None:
    return files.read(os.path.join(root, path))


def _cpu(root: str) -> dict[str, Any]:
    text = (_read(root, "proc/cpuinfo") or "").split("\n\n", 1)[0]
    values = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())
    }
    found: dict[str, Any] = {
        "model": values.get("model name") or None,
        "vendor": values.get("vendor_id") or None,
    }
    for name, key in (("family", "cpu family"), ("model_number", "model"), ("stepping", "stepping")):
        number = values.get(key, "")
        found[name] = int(number) if number.isdecimal() else None
    found["microcode"] = values.get("microcode")
    found["cpus"] = os.cpu_count()
    found["allowed"] = len(os.sched_getaffinity(0))
    found["virtual"] = "hypervisor" in values.get("flags", "").split()
    return found


def _kvm(root: str) -> dict[str, Any]:
    cpu = files.processor(root)
    module = files.active_part(cpu, root)
    found: dict[str, Any] = {"technique": files.TECHNIQUES.get(module, "none"), "module": module or None}
    for names, values in (
        (PARAMETERS, files.parameters(module, root) if module else None),
        (KVM_PARAMETERS, files.parameters("kvm", root)),
    ):
        found.update({name: values[name] for name in names if values and name in values})
    found["nested_or_bare"] = "nested" if "hypervisor" in cpu.flags else "bare metal"
    return found


def _mitigations(root: str) -> dict[str, Any]:
    folder = os.path.join(root, "sys/devices/system/cpu/vulnerabilities")
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    return {name: files.read(os.path.join(folder, name)) for name in names}


def _power(root: str) -> dict[str, Any]:
    cpu0 = "sys/devices/system/cpu/cpu0/cpufreq"
    idle = "sys/devices/system/cpu/cpuidle"
    return {
        "smt": _read(root, "sys/devices/system/cpu/smt/control"),
        "governor": _read(root, f"{cpu0}/scaling_governor"),
        "driver": _read(root, f"{cpu0}/scaling_driver"),
        "highest_khz": _read(root, f"{cpu0}/cpuinfo_max_freq"),
        "boost": _read(root, "sys/devices/system/cpu/cpufreq/boost"),
        "no_turbo": _read(root, "sys/devices/system/cpu/intel_pstate/no_turbo"),
        "idle_driver": _read(root, f"{idle}/current_driver"),
        "frequency_mhz": _frequency(),
    }


def _frequency() -> float | None:
    try:
        import psutil

        now = psutil.cpu_freq()
        return None if now is None else round(float(now.current), 1)
    except (ImportError, OSError, NotImplementedError):
        return None


def _kernel(root: str) -> dict[str, Any]:
    system = os.uname()
    return {
        "release": system.release,
        "version": system.version,
        "command_line": _read(root, "proc/cmdline"),
        "isolated_cpus": _read(root, "sys/devices/system/cpu/isolated") or "",
    }


def _clock(root: str) -> dict[str, Any]:
    folder = "sys/devices/system/clocksource/clocksource0"
    return {
        "source": _read(root, f"{folder}/current_clocksource"),
        "available": _read(root, f"{folder}/available_clocksource"),
    }


def _memory(root: str) -> dict[str, Any]:
    return {"transparent_huge_pages": _read(root, "sys/kernel/mm/transparent_hugepage/enabled")}


def software() -> dict[str, Any]:
    """Versions of Python, kvmpy and what it uses; None for what isn't installed."""
    from importlib.metadata import PackageNotFoundError, version

    import kvmpy

    found: dict[str, Any] = {"python": sys.version.split()[0], "kvmpy": kvmpy.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, first's value, second's value) of what isn't the same, but for what changes by itself."""
    found = []
    for group in {**first, **second}:
        left, right = first.get(group), second.get(group)
        if not isinstance(left, dict) or not isinstance(right, dict):
            if left != right and group not in CHANGING:
                found.append((group, left, right))
            continue
        for name in {**left, **right}:
            if name not in CHANGING and left.get(name) != right.get(name):
                found.append((f"{group}.{name}", left.get(name), right.get(name)))
    return found
