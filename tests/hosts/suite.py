"""What a test of the hardware suite may use. No pytest here: on the slow hosts the tests run without it.

A test is a plain function ``test_*(host)`` in a module ``test_*.py`` of this directory, or ``test_*(host,
case)`` with :func:`cases`. It checks with ``assert`` and :func:`raises`, says :func:`needs` or :func:`skip`
where a host can't have what is tested, and leaves closing to ``host``. Nothing else of pytest: no other
fixtures, marks, classes or plugins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from kvmpy.testing.machine import Machines, MachineUnderTest

Function = TypeVar("Function", bound=Callable[..., None])
Thing = TypeVar("Thing")


class Skip(Exception):
    """The host can't have what is tested; ``str()`` names the kernel parameter or CPUID bit that says so."""


def skip(reason: str) -> NoReturn:
    """Skip the test that is running. ``reason`` names the fact of the host: "kvm_amd.nrips=0"."""
    raise Skip(reason)


def cases(*values: object, **named: object) -> Callable[[Function], Function]:
    """Run a test once for each value, as its argument ``case``. Names become part of the test's id."""
    found = {_identifier(value): value for value in values} | named
    if len(found) != len(values) + len(named):
        raise ValueError(f"two cases have the same id: {', '.join(_identifier(value) for value in values)}")

    def mark(function: Function) -> Function:
        function.cases = found  # type: ignore[attr-defined]
        return function

    return mark


def needs(*conditions: str) -> Callable[[Function], Function]:
    """Skip a test on hosts that don't meet every condition.

    A condition is a parameter of a KVM module ("kvm_intel.ept=Y"), a flag of the processor in /proc/cpuinfo
    ("flag avx2", "vmx_flag vpid"), or several with " or " between them.
    """

    def mark(function: Function) -> Function:
        function.needs = conditions  # type: ignore[attr-defined]
        return function

    return mark


@contextmanager
def raises(kind: type[BaseException], words: str = "") -> Iterator[list[BaseException]]:
    """The block must raise ``kind`` with ``words`` in its message; the exception is put into the list."""
    caught: list[BaseException] = []
    try:
        yield caught
    except kind as error:
        assert words in str(error), f"{words!r} isn't in {str(error)!r}"
        caught.append(error)
        return
    raise AssertionError(f"no {kind.__name__} was raised")


class Host:
    """The host a test runs on: what it is, and what has to be closed when the test is over.

    ``facts`` is what scripts/hostlab/inside/facts.py gathers.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts
        self._stack = ExitStack()
        self._machines: Machines | None = None

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def name(self) -> str:
        """Name of the host as scripts/hosts has it; "local" without."""
        name: str = self.facts["host"]
        return name

    def avoid(self, *names: str, because: str) -> None:
        """Skip the test on these hosts: for what an emulator gets wrong, not what hardware lacks."""
        if self.name in names:
            skip(f"{self.name}: {because}")

    @property
    def module(self) -> str:
        """The module that drives the hardware: kvm_amd, kvm_intel, kvm_pvm; "" if there is none."""
        return next((name for name in self.facts["modules"] if name != "kvm"), "")

    def parameter(self, name: str) -> str | None:
        """A parameter of a module, as in "kvm_intel.ept"; None if that module isn't there or has none."""
        value: str | None = self.facts["parameters"].get(name)
        return value

    def enter(self, thing: AbstractContextManager[Thing]) -> Thing:
        """Enter a context that is left when the test is over; the one entered last is left first."""
        return self._stack.enter_context(thing)

    def machine(self, code: bytes | None = None, mode: str = "long", **settings: Any) -> MachineUnderTest:
        """A machine on KVM, closed when the test is over; with ``code``, every vCPU is at its beginning.

        It is what kvmpy's pytest plugin gives its tests (:class:`kvmpy.testing.machine.Machines` says what ``settings``
        there are), with the runner's time limit as its only one. Skips where KVM can't have it.
        """
        from kvmpy.testing.machine import Budget, Machines
        from kvmpy.testing.problems import CannotRun

        if self._machines is None:
            self._machines = Machines("kvm", Budget(math.inf))
            self.defer(self._machines.close)
        try:
            return self._machines.make(code, mode, **settings)
        except CannotRun as reason:
            skip(str(reason))

    def defer(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function when the test is over."""
        self._stack.callback(function, *arguments)


def missing(function: Callable[..., None], facts: Mapping[str, Any]) -> str:
    """Why a test can't run on the host with these facts; empty if it can."""
    for condition in getattr(function, "needs", ()):
        choices = condition.split(" or ")
        if not any(_meets(choice, facts) for choice in choices):
            states = filter(None, (_state(choice, facts) for choice in choices))
            return f"needs {condition}: {', '.join(states) or _modules(facts)}"
    return ""


def tests_of(module: ModuleType) -> Iterator[tuple[str, Callable[..., None], tuple[object, ...]]]:
    """The tests of a module in the order they are written: id, function, and a tuple with its case if any."""
    file = f"{module.__name__}.py"
    for name, function in list(vars(module).items()):
        if not name.startswith("test_") or not callable(function):
            continue
        if not hasattr(function, "cases"):
            yield f"{file}::{name}", function, ()
            continue
        for identifier, value in function.cases.items():
            yield f"{file}::{name}[{identifier}]", function, (value,)


def call(function: Callable[..., None], case: tuple[object, ...], facts: Mapping[str, Any]) -> None:
    """Run a test. Raises Skip if it is skipped, and whatever a failing test raises."""
    reason = missing(function, facts)
    if reason:
        raise Skip(reason)
    with Host(facts) as host:
        function(host, *case)


def _meets(choice: str, facts: Mapping[str, Any]) -> bool:
    kind, _, flag = choice.partition(" ")
    if kind in ("flag", "vmx_flag"):
        return flag in facts[f"{kind}s"]
    name, _, value = choice.partition("=")
    found = facts["parameters"].get(name)
    return found is not None and found == value


def _state(choice: str, facts: Mapping[str, Any]) -> str:
    """What the host says instead; empty for a parameter of a module that it doesn't have."""
    if choice.startswith(("flag ", "vmx_flag ")):
        return f"/proc/cpuinfo has no {choice}"
    name = choice.partition("=")[0]
    value = facts["parameters"].get(name)
    return "" if value is None else f"{name}={value}"


def _modules(facts: Mapping[str, Any]) -> str:
    return f"the modules here are {', '.join(facts['modules']) or 'none'}"


def _identifier(value: object) -> str:
    return value.__name__ if callable(value) and hasattr(value, "__name__") else str(value)
