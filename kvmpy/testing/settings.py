"""What ``@pytest.mark.kvmpy(…)`` says of a test, checked when tests are collected."""

from __future__ import annotations

import math

from kvmpy.errors import KvmpyError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from kvmpy.machine.host import HostFacts

MODES = ("real", "protected", "long")
CHOICES = {
    "engine": ("auto", "kvm", "translate"),
    "mode": MODES,
    "devices": ("none", "serial", "pc"),
}
KEYS = {
    "memory": "RAM of the machine, as for Machine",
    "cpus": "number of vCPUs",
    "irqchip": "none; any: interrupt controllers, wherever the engine has them; or one of Machine's",
    "engine": "the only engine the test is for",
    "mode": "the mode guest.asm() and guest.code() start in",
    "devices": "none, serial (serial port and exit port) or pc",
    "strict": "accesses nobody owns end the run",
    "rescue": "True: the translate engine carries out what KVM can't emulate",
    "trace": "False: exits aren't written down",
    "timeout": "seconds the test's guests may run for in all; math.inf: no limit",
    "requires": "facts the host must have (kvmpy info lists them)",
    "leaks": "True: the test leaves machines open on purpose",
}
MACHINE_KEYS = ("memory", "cpus", "irqchip", "strict", "rescue", "trace")
MEMORY = "16M"

_facts: HostFacts | None = None


def host_facts() -> HostFacts:
    """What this host can do; found out once."""
    global _facts
    if _facts is None:
        from kvmpy.machine.host import facts

        _facts = facts()
    return _facts


class Settings:
    """The markers of one test put together: the nearest one counts, requirements add up."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        given = values or {}
        self.engine: str | None = given.get("engine")
        self.mode: str | None = given.get("mode")
        self.devices: str | None = given.get("devices")
        self.timeout: float | None = given.get("timeout")
        self.requires: tuple[str, ...] = tuple(given.get("requires", ()))
        self.leaks = bool(given.get("leaks", False))
        self.machine = {key: given[key] for key in MACHINE_KEYS if key in given}

    def replaced(self, **values: Any) -> Settings:
        """The same with some of them changed. UsageError for what there isn't."""
        check(values, "new_guest()")
        known: dict[str, Any] = {
            "engine": self.engine, "mode": self.mode, "devices": self.devices, "timeout": self.timeout,
            "requires": self.requires, **self.machine,
        }  # fmt: skip
        return Settings({**known, **values})


def gather(markers: Iterable[tuple[Any, Any]], where: str) -> Settings:
    """Settings of ``(node, marker)`` pairs, nearest first. Raises UsageError, with ``where``, for what can't be."""
    values: dict[str, Any] = {}
    giver: dict[str, Any] = {}
    requires: list[str] = []
    for node, marker in markers:
        if marker.args:
            raise UsageError(
                f"{where}: @pytest.mark.kvmpy takes keywords only, not {marker.args[0]!r}: one of {', '.join(KEYS)}"
            )
        check(marker.kwargs, where)
        requires += marker.kwargs.get("requires", ())
        for key, value in marker.kwargs.items():
            if key in giver and giver[key] is node and key in MACHINE_KEYS and values[key] != value:
                raise UsageError(
                    f"{where}: two machines in one test: {key} is {value!r} and {values[key]!r}; the fixture"
                    " `machines` makes as many as you like"
                )
            if key not in values:
                values[key], giver[key] = value, node
    if requires:
        values["requires"] = tuple(dict.fromkeys(requires))
    return Settings(values)


def check(values: dict[str, Any], where: str) -> None:
    """UsageError for an unknown key, a value that can't be, a requirement nobody knows."""
    for key, value in values.items():
        if key not in KEYS:
            raise UsageError(f"{where}: kvmpy marker has no {key!r}: one of {', '.join(KEYS)}")
        choices = irqchips() if key == "irqchip" else CHOICES.get(key)
        if choices and value is not None and value not in choices:
            raise UsageError(f"{where}: {key}={value!r}: one of {', '.join(choices)}")
    for key in ("strict", "trace", "leaks"):
        if not isinstance(values.get(key, False), bool):
            raise UsageError(f"{where}: {key}={values[key]!r}: True or False")
    _check_numbers(values, where)
    if "requires" in values:
        _check_requirements(values["requires"], where)


def irqchips() -> tuple[str, ...]:
    """What the marker's ``irqchip`` can be."""
    from kvmpy.machine.machine import IRQCHIPS

    return (*IRQCHIPS, "any")


def check_mode(mode: str) -> None:
    """UsageError for a mode that there isn't."""
    if mode not in MODES:
        raise UsageError(f"mode {mode!r}: one of {', '.join(MODES)}")


def check_code(code: object, at: object) -> None:
    """UsageError for machine code that is no bytes, or an address that is none."""
    if not isinstance(code, (bytes, bytearray, memoryview)):
        raise UsageError(f"code is {type(code).__name__}: it must be bytes; guest.asm() takes text")
    check_address(at)


def check_address(at: object) -> None:
    """UsageError for what can't be a guest physical address."""
    if not isinstance(at, int) or not 0 <= at < 1 << 52:
        raise UsageError(f"at={at!r}: a guest physical address, from 0 on and below 1 << 52")


def too_many(cpus: int, engine: Any) -> str:
    """Why a machine can't have that many vCPUs."""
    return f"needs {cpus} vCPUs: the {engine.name} engine has {engine.max_vcpus}"


def no_irqchip(wanted: str, engine: Any) -> str:
    """Why a machine can't have what :func:`find_irqchip` didn't find."""
    where = "at all" if wanted == "any" else "in the kernel"
    return f"needs irqchip={wanted}: the {engine.name} engine has no interrupt controllers {where}"


def find_irqchip(wanted: str, engine: Any) -> str:
    """The Machine's ``irqchip`` for a wish on an engine; "" if it has none such."""
    in_process = "user" if "user" in irqchips() else ""
    if engine.in_kernel or wanted in ("none", "user"):
        return "kernel" if wanted == "any" else wanted
    return in_process if wanted == "any" else ""


def _check_numbers(values: dict[str, Any], where: str) -> None:
    timeout = values.get("timeout")
    if timeout is not None and (
        not isinstance(timeout, (int, float)) or not (0 < timeout < 1e9 or timeout == math.inf)
    ):
        raise UsageError(f"{where}: timeout={timeout!r}: seconds, more than 0; math.inf for no limit")
    cpus = values.get("cpus")
    if cpus is not None and (not isinstance(cpus, int) or cpus < 1):
        raise UsageError(f"{where}: cpus={cpus!r}: at least 1")
    if "memory" in values:
        from kvmpy.machine.sizes import memory_size

        try:
            memory_size(values["memory"])
        except KvmpyError as error:
            raise UsageError(f"{where}: {error}") from None


def _check_requirements(requires: Any, where: str) -> None:
    if isinstance(requires, str) or not all(isinstance(each, str) for each in requires):
        raise UsageError(f"{where}: requires={requires!r}: a list of facts, as in requires=['irqchip']")
    facts = host_facts()
    for condition in requires:
        try:
            facts.missing(condition)
        except UsageError as error:
            names = ", ".join(sorted(fact.name for fact in facts))
            raise UsageError(
                f"{where}: requires={condition!r}: {error} Facts: {names}, KVM_CAP_…, cpuid.FEATURE"
            ) from None


def unmet(settings: Settings, engine: str) -> str:
    """Why a test with these settings can't run on this engine and host; "" if it can."""
    from kvmpy.errors import EngineError
    from kvmpy.machine.engine import open_engine

    if settings.engine not in (None, "auto", engine) and engine != "auto":
        return f"for the {settings.engine} engine only, and this run is for {engine}"
    if settings.engine not in (None, "auto"):
        engine = str(settings.engine)
    reason = host_facts().missing(*settings.requires) if settings.requires else ""
    if reason:
        return reason
    try:
        opened = open_engine(engine)
    except EngineError as error:
        return f"engine {engine}: {error}"
    cpus = settings.machine.get("cpus", 1)
    if cpus > opened.max_vcpus:
        return too_many(cpus, opened)
    return _lacking(settings, opened)


def _no_rescue() -> str:
    from kvmpy.errors import EngineError
    from kvmpy.machine.engine import open_engine
    from kvmpy.machine.machine import check_rescue

    try:
        check_rescue(open_engine("kvm"))
    except EngineError as error:
        return f"needs rescue: {error}"
    return ""


def _lacking(settings: Settings, engine: Any) -> str:
    """What an engine that isn't KVM lacks of what the host's KVM may have."""
    irqchip = settings.machine.get("irqchip", "none")
    if not find_irqchip(irqchip, engine):
        return no_irqchip(irqchip, engine)
    if engine.name == "kvm":
        return _no_rescue() if settings.machine.get("rescue") else ""
    facts = host_facts()
    for condition in settings.requires:
        for term in condition.replace("not ", "").split(" or "):
            if facts[term.strip()].group in ("processor", "capabilities"):
                return f"needs {condition}: a property of KVM, and this is the {engine.name} engine"
    return ""
