"""What this host can do, as named facts: each with its value and where it was found.

``facts()`` never fails. ``kvmpy info`` shows all of it; tests say what they need of a host by the names::

    host = facts()
    host["ept"].value, host["ept"].source      # True, "kvm_intel.ept=Y"
    host.missing("irqchip", "ept or npt")       # "" or why not, for a skip

Names are those of ``groups()``; besides them every ``KVM_CAP_*`` in upper case, and ``cpuid.FEATURE`` for what KVM can
offer a guest ("cpuid.avx2").
"""

from __future__ import annotations

import os

from kvmpy.errors import EngineError, KvmpyError, UsageError
from kvmpy.kvm import processor as files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from kvmpy.kvm.system import System

DEVICE = "/dev/kvm"
GROUPS = {
    "engines": "ways to run guests",
    "processor": "hardware virtualization",
    "host": "kernel and machine",
    "permissions": "who may use KVM",
    "memory": "memory and huge pages",
    "capabilities": "what kvmpy uses of KVM",
}
PARAMETERS = {
    "ept": ("kvm_intel", "ept", "guest page tables walked by the hardware (Intel)"),
    "unrestricted_guest": ("kvm_intel", "unrestricted_guest", "real mode without emulation"),
    "vpid": ("kvm_intel", "vpid", "the TLB survives exits"),
    "preemption_timer": ("kvm_intel", "preemption_timer", "timers without a host timer"),
    "apicv": ("kvm_intel", "enable_apicv", "interrupts without exits (Intel)"),
    "npt": ("kvm_amd", "npt", "guest page tables walked by the hardware (AMD)"),
    "nrips": ("kvm_amd", "nrips", "the hardware knows the next instruction"),
    "avic": ("kvm_amd", "avic", "interrupts without exits (AMD)"),
}


SUMMARY = ("kernel", "architecture", "cpus", "nested", "hypervisor", "vendor", "model", "technique")
"""The facts that tell one host from another."""


class Fact:
    """``name``; ``value`` (bool, int, str, or None: couldn't be found out); ``source``: the file or capability that
    says so, and the remedy where there is one; ``about``: what it is good for. True if the value is."""

    __slots__ = ("about", "group", "name", "source", "value")

    def __init__(
        self, group: str, name: str, value: bool | int | str | None, source: str, about: str = ""
    ) -> None:
        self.group = group
        self.name = name
        self.value = value
        self.source = source
        self.about = about

    def __bool__(self) -> bool:
        return bool(self.value)

    def __repr__(self) -> str:
        return f"<Fact {self.name}={self.value!r} ({self.source})>"


class HostFacts:
    """The facts of a host by name. ``host["ept"]`` is a Fact, ``host.ept`` its value."""

    def __init__(
        self, found: Iterable[Fact], answers: dict[str, int] | None = None, cpuid: Any = None
    ) -> None:
        self._facts = {fact.name: fact for fact in found}
        self._answers = answers or {}
        self._cpuid = cpuid

    def __iter__(self) -> Iterator[Fact]:
        return iter(self._facts.values())

    def __len__(self) -> int:
        return len(self._facts)

    def __getattr__(self, name: str) -> Any:
        facts = self.__dict__.get("_facts", {})
        if name not in facts:
            raise AttributeError(f"no fact of this host is called {name!r}")
        return facts[name].value

    def __getitem__(self, name: str) -> Fact:
        """Raises UsageError, with the nearest name, for one that doesn't exist on any host."""
        if name in self._facts:
            return self._facts[name]
        if name.startswith("KVM_CAP_"):
            return self._capability(name)
        if name.startswith("cpuid."):
            return self._cpu_feature(name)
        from difflib import get_close_matches

        near = get_close_matches(name, self._facts, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`kvmpy info` lists them"
        raise UsageError(f"no fact of a host is called {name!r}: {hint}")

    def _capability(self, name: str) -> Fact:
        from kvmpy.machine.host_capabilities import number

        if number(name) is None:
            raise UsageError(f"{name} isn't a capability of KVM that kvmpy knows")
        return _answer(name, name, self._answers, "")

    def _cpu_feature(self, name: str) -> Fact:
        if self._cpuid is None:
            return Fact("processor", name, False, "KVM can't be asked")
        there = bool(self._cpuid.has(name.removeprefix("cpuid.")))
        return Fact("processor", name, there, f"KVM_GET_SUPPORTED_CPUID says {'yes' if there else 'no'}")

    def groups(self) -> dict[str, list[Fact]]:
        """The facts by group, in the order of GROUPS."""
        found: dict[str, list[Fact]] = {group: [] for group in GROUPS}
        for fact in self:
            found[fact.group].append(fact)
        return found

    def missing(self, *conditions: str) -> str:
        """Why this host doesn't meet every condition; "" if it does.

        A condition is a fact's name, "not NAME", or several of these with " or " in between.
        """
        for condition in conditions:
            terms = [term.strip() for term in condition.split(" or ")]
            unmet = [self._unmet(term) for term in terms]
            if all(unmet):
                return f"needs {condition}: {'; '.join(dict.fromkeys(unmet))}"
        return ""

    def _unmet(self, term: str) -> str:
        wanted = not term.startswith("not ")
        fact = self[term.removeprefix("not ").strip()]
        return "" if bool(fact) is wanted else fact.source

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: group -> name -> value, source, about."""
        return {
            group: {
                fact.name: {"value": fact.value, "source": fact.source, "about": fact.about} for fact in facts
            }
            for group, facts in self.groups().items()
        }


def facts(root: str = "/", device: str = DEVICE) -> HostFacts:
    """Finds out what this host can do; takes some milliseconds and never raises.

    ``root`` stands for ``/`` when /proc and /sys are read, ``device`` for /dev/kvm.
    """
    found: list[Fact] = []
    answers: dict[str, int] = {}
    tables: list[Any] = []
    _collect(found, "engines", "kvm", lambda: [_kvm(root, device, answers, tables)])
    _collect(found, "engines", "translate", lambda: [_translate()])
    _collect(found, "processor", "processor", lambda: _processor(root, tables))
    _collect(found, "host", "host", lambda: _host(root))
    _collect(found, "permissions", "kvm_access", lambda: [_access(root, device)])
    _collect(found, "memory", "memory", lambda: _memory(root))
    _collect(found, "capabilities", "capabilities", lambda: _capabilities(answers))
    return HostFacts(found, answers, tables[0] if tables else None)


def summary(root: str = "/") -> dict[str, bool | int | str | None]:
    """What a report says of the host it was made on, found without asking KVM."""
    import platform

    found: list[Fact] = []
    _collect(found, "host", "host", lambda: _host(root))
    _collect(found, "processor", "processor", lambda: _processor(root, []))
    values = {fact.name: fact.value for fact in found if fact.name in SUMMARY}
    return {**values, "python": platform.python_version()}


def _collect(found: list[Fact], group: str, name: str, probe: Callable[[], Iterable[Fact]]) -> None:
    """What a probe finds; a probe that fails is a fact that couldn't be found out."""
    try:
        found.extend(probe())
    except Exception as error:
        found.append(Fact(group, name, None, f"couldn't be found out: {type(error).__name__}: {error}"))


# Engines


def _kvm(root: str, device: str, answers: dict[str, int], tables: list[Any]) -> Fact:
    about = "hardware virtualization through /dev/kvm"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        from kvmpy.kvm.access import why_not

        return Fact("engines", "kvm", False, why_not(device, error, root), about)
    try:
        from kvmpy.kvm.system import System
    except ImportError as error:
        return Fact("engines", "kvm", False, f"kvmpy isn't built: {error}: install it again", about)
    try:
        with System(device) as system:
            api = system.get_api_version()
            _ask(system, answers, tables)
    except KvmpyError as error:
        return Fact("engines", "kvm", False, str(error), about)
    return Fact("engines", "kvm", True, f"{device}, version {api} of the API; a VM can be made", about)


def _ask(system: System, answers: dict[str, int], tables: list[Any]) -> None:
    """Every capability, as a VM answers it; what a guest's CPUID can offer. KvmError if no VM can be made."""
    from kvmpy.abi.capabilities import by_name
    from kvmpy.x86.cpuid import CpuidTable

    with system.create_vm() as vm:
        for name, number in by_name().items():
            try:
                answers[name] = vm.check_extension(number)
            except KvmpyError:
                answers[name] = 0
    tables.append(CpuidTable(system.get_supported_cpuid()))


def _translate() -> Fact:
    about = "binary translation: slower, and works without /dev/kvm"
    try:
        from kvmpy.machine.engine import open_engine

        open_engine("translate")
    except (EngineError, ImportError) as error:
        return Fact("engines", "translate", False, str(error), about)
    return Fact("engines", "translate", True, "Unicorn", about)


# Processor


def _processor(root: str, tables: list[Any]) -> list[Fact]:
    cpu = files.processor(root)
    module, wanted = files.active_part(cpu, root), files.wanted_part(cpu)
    if module:
        technique = files.TECHNIQUES[module]
        source = f"KVM uses {technique} here (/sys/module/{module})"
    elif wanted:
        technique, source = (
            "none",
            f"{wanted} isn't loaded (/proc/cpuinfo has the flag {files.FLAGS[wanted]})",
        )
    else:
        technique, source = "none", "/proc/cpuinfo has neither flag, vmx or svm, and there is no kvm_pvm"
    found = [
        Fact("processor", "vendor", cpu.vendor or None, "/proc/cpuinfo"),
        Fact("processor", "model", cpu.model or None, "/proc/cpuinfo"),
        Fact("processor", "technique", technique, source, "how guests run"),
    ]
    for name, part in (("vmx", "kvm_intel"), ("svm", "kvm_amd"), ("pvm", "kvm_pvm")):
        active = module == part
        found.append(
            Fact("processor", name, active, source, f"{files.TECHNIQUES[part]} is what KVM uses here")
        )
    return [*found, *_parameters(module, source, root), _pages_1g(cpu, tables)]


def _parameters(module: str, instead: str, root: str) -> list[Fact]:
    values = (files.parameters(module, root) or {}) if module else {}
    found = []
    for name, (part, parameter, about) in PARAMETERS.items():
        if part != module:
            found.append(Fact("processor", name, False, instead, about))
            continue
        said = values.get(parameter)
        source = f"{part}.{parameter}={said}" if said is not None else f"{part} has no parameter {parameter}"
        found.append(Fact("processor", name, _yes(said), source, about))
    source = f"{module}.nested={values['nested']}" if "nested" in values else instead
    found.append(Fact("processor", "nesting", _yes(values.get("nested")), source, "guests can run guests"))
    return found


def _pages_1g(cpu: files.Processor, tables: list[Any]) -> Fact:
    about = "1 GiB pages in guests"
    if tables:
        there = bool(tables[0].has("pdpe1gb"))
        source = f"KVM_GET_SUPPORTED_CPUID has {'' if there else 'no '}pdpe1gb"
    else:
        there = "pdpe1gb" in cpu.flags
        source = f"/proc/cpuinfo has {'' if there else 'no '}flag pdpe1gb"
    return Fact("processor", "pages_1g", there, source, about)


def _yes(text: str | None) -> bool:
    return text is not None and text not in ("N", "0", "n", "")


# Host


def _host(root: str) -> list[Fact]:
    system = os.uname()
    virtual = "hypervisor" in files.processor(root).flags
    source = f"/proc/cpuinfo has {'the' if virtual else 'no'} flag hypervisor"
    found = [
        Fact("host", "kernel", system.release, f"uname, {system.sysname}"),
        Fact("host", "architecture", system.machine, "uname"),
        Fact("host", "cpus", len(os.sched_getaffinity(0)), f"of {os.cpu_count()}, by sched_getaffinity"),
        Fact("host", "bare_metal", not virtual, source, "times are those of the hardware"),
        Fact("host", "nested", virtual, source, "this host is a virtual machine itself"),
    ]
    if virtual:
        found.append(_hypervisor(root))
    return found


def _hypervisor(root: str) -> Fact:
    """Who runs this virtual machine: Xen says so, others show in the firmware's tables or the clock."""
    for path in ("sys/hypervisor/type", "sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/product_name"):
        said = files.read(os.path.join(root, path))
        if said:
            return Fact("host", "hypervisor", said, f"/{path}")
    clocks = "sys/devices/system/clocksource/clocksource0/available_clocksource"
    names = {"kvm-clock": "KVM", "hyperv_clocksource_tsc_page": "Hyper-V", "xen": "Xen"}
    for clock in (files.read(os.path.join(root, clocks)) or "").split():
        if clock in names:
            return Fact("host", "hypervisor", names[clock], f"clock source {clock}")
    return Fact("host", "hypervisor", None, "it doesn't say its name in /sys")


def _access(root: str, device: str) -> Fact:
    about = "this user can open /dev/kvm"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        from kvmpy.kvm.access import why_not

        return Fact("permissions", "kvm_access", False, why_not(device, error, root), about)
    from kvmpy.kvm.access import describe

    return Fact("permissions", "kvm_access", True, f"{device} is {describe(device)}", about)


# Memory


def _memory(root: str) -> list[Fact]:
    values = {}
    for line in (files.read(os.path.join(root, "proc/meminfo")) or "").splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if number.isdecimal():
            values[name] = int(number) << (10 if unit == "kB" else 0)
    found = [
        Fact("memory", "memory", values.get("MemTotal"), "/proc/meminfo MemTotal", "bytes"),
        Fact("memory", "memory_available", values.get("MemAvailable"), "/proc/meminfo MemAvailable", "bytes"),
        _transparent(root),
    ]
    for name, folder, about in (
        ("hugetlb_2m", "hugepages-2048kB", "2 MiB pages set aside"),
        ("hugetlb_1g", "hugepages-1048576kB", "1 GiB pages set aside"),
    ):
        found.append(_pool(root, name, folder, about))
    return found


def _transparent(root: str) -> Fact:
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    said = files.read(os.path.join(root, path))
    about = "2 MiB pages on request"
    if said is None:
        return Fact("memory", "thp", False, f"/{path} doesn't exist", about)
    chosen = said.partition("[")[2].partition("]")[0]
    remedy = "" if chosen != "never" else f": echo madvise | sudo tee /{path}"
    return Fact("memory", "thp", chosen in ("always", "madvise"), f"/{path} is {chosen}{remedy}", about)


def _pool(root: str, name: str, folder: str, about: str) -> Fact:
    path = f"sys/kernel/mm/hugepages/{folder}"
    total = files.read(os.path.join(root, path, "nr_hugepages"))
    free = files.read(os.path.join(root, path, "free_hugepages"))
    if total is None or not total.isdecimal():
        return Fact("memory", name, 0, f"/{path} doesn't exist", about)
    if int(total) == 0:
        return Fact("memory", name, 0, f"none: echo N | sudo tee /{path}/nr_hugepages sets N aside", about)
    return Fact("memory", name, int(total), f"{free} of them free", about)


# Capabilities


def _capabilities(answers: dict[str, int]) -> list[Fact]:
    from kvmpy.machine.host_capabilities import USED

    return [_answer(name, f"KVM_CAP_{name.upper()}", answers, about) for name, about in USED.items()]


def _answer(name: str, capability: str, answers: dict[str, int], about: str) -> Fact:
    if not answers:
        return Fact("capabilities", name, False, "KVM can't be asked", about)
    value = answers.get(capability, 0)
    return Fact("capabilities", name, value if value > 1 else bool(value), f"{capability}={value}", about)
