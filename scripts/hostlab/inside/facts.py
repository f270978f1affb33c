"""What kind of host this is, in the kernel's own words: what skips and expectations are decided by.

python -m scripts.hostlab.inside.facts      # as JSON, and as the first line of a report
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from .report import Reporter

NAME_VARIABLE = "KVMPY_HOSTS_NAME"
_KVM_GET_API_VERSION = 0xAE00
_MODULES = ("kvm", "kvm_amd", "kvm_intel", "kvm_pvm")


def gather() -> dict[str, object]:
    """What the kernel says of the processor and of KVM; ``api`` is KVM's version, or why there is none."""
    cpuinfo = _first_cpu()
    return {
        "host": os.environ.get(NAME_VARIABLE, "local"),
        "kernel": os.uname().release,
        "cpu": cpuinfo.get("model name", "unknown"),
        "vendor": cpuinfo.get("vendor_id", "unknown"),
        "flags": cpuinfo.get("flags", "").split(),
        "vmx_flags": cpuinfo.get("vmx flags", "").split(),
        "cpus": os.cpu_count() or 1,
        "modules": [name for name in _MODULES if Path("/sys/module", name).is_dir()],
        "parameters": _parameters(),
        "api": _api_version(),
    }


def _first_cpu() -> dict[str, str]:
    values: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines():
        name, _, value = line.partition(":")
        values[name.strip()] = value.strip()
    return values


def _parameters() -> dict[str, str]:
    """All parameters of KVM's modules that can be read."""
    found = {}
    for module in _MODULES:
        for file in sorted(Path("/sys/module", module, "parameters").glob("*")):
            try:
                found[f"{module}.{file.name}"] = file.read_text().strip()
            except OSError:
                continue  # some can only be written, or by root
    return found


def _api_version() -> int | str:
    """KVM's API version, or why it can't be asked."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    try:
        return fcntl.ioctl(fd, _KVM_GET_API_VERSION, 0)
    except OSError as error:
        return f"KVM_GET_API_VERSION: {error.strerror}"
    finally:
        os.close(fd)


def main() -> None:
    facts = gather()
    print(json.dumps(facts, indent=1))
    with Reporter() as reporter:
        reporter.say("host", facts=facts)
        reporter.say("end", status=0, count=0)


if __name__ == "__main__":
    main()
