"""The pytest plugin: fixtures, the marker, options.

pytest imports this module in every session of every project that has kvmpy installed, so it imports nothing of kvmpy;
what runs tests is in :mod:`kvmpy.testing.session`, and that is imported when the first test wants it.
"""

from __future__ import annotations

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmpy.machine.host import HostFacts
    from kvmpy.testing.guest import Guest
    from kvmpy.testing.machine import MachineUnderTest

ENGINES = ("auto", "kvm", "translate")
STATES = ("fresh", "restored")
FIXTURE = "kvmpy_engine"
MARKER = "kvmpy"
SESSION = "kvmpy-session"
HEADER = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """--kvmpy-…, and the same as settings of the project."""
    group = parser.getgroup("kvmpy", "kvmpy: tests of guests")
    group.addoption(
        "--kvmpy-engine",
        metavar="LIST",
        help="engines to run guests on, a test for each: kvm, translate, auto",
    )
    group.addoption("--kvmpy-state", metavar="LIST", help="states to run guests in: fresh, restored")
    group.addoption("--kvmpy-timeout", metavar="SECONDS", help="seconds the guests of one test may run for")
    group.addoption(
        "--kvmpy-no-skip", action="store_true", help="fail where this host can't do what a test needs"
    )
    group.addoption("--kvmpy-update-golden", action="store_true", help="write golden traces that don't match")
    parser.addini("kvmpy_engine", "the usual --kvmpy-engine", default="auto")
    parser.addini("kvmpy_state", "the usual --kvmpy-state", default="fresh")
    parser.addini("kvmpy_timeout", "the usual --kvmpy-timeout", default="10")


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker and looks at the options."""
    config.addinivalue_line(
        "markers",
        "kvmpy(memory, cpus, irqchip, engine, mode, devices, strict, rescue, trace, timeout, requires, leaks): the"
        " machine of a test and what the host must have",
    )
    _chosen(config, "engine", ENGINES)
    states = _chosen(config, "state", STATES)
    if "restored" in states:
        from importlib.util import find_spec

        if find_spec("kvmpy.snapshot") is None:
            raise pytest.UsageError(
                "--kvmpy-state=restored: this version of kvmpy has no snapshots; only fresh is possible"
            )
    timeout = _option(config, "timeout")
    try:
        good = 0 < float(timeout) < 1e9
    except ValueError:
        good = False
    if not good:
        raise pytest.UsageError(f"--kvmpy-timeout={timeout}: seconds, more than 0")


def _option(config: pytest.Config, name: str) -> str:
    return str(config.getoption(f"kvmpy_{name}") or config.getini(f"kvmpy_{name}"))


def _chosen(config: pytest.Config, name: str, known: tuple[str, ...]) -> list[str]:
    names = [each.strip() for each in _option(config, name).split(",") if each.strip()]
    for each in names:
        if each not in known:
            raise pytest.UsageError(f"--kvmpy-{name}={each}: one or more of {', '.join(known)}")
    return list(dict.fromkeys(names)) or [known[0]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each engine, where there is more than one."""
    marked = metafunc.definition.get_closest_marker(MARKER) is not None
    if not marked and FIXTURE not in metafunc.fixturenames:
        return
    from kvmpy.testing import session

    settings = session.settings_of(metafunc.definition)
    if FIXTURE not in metafunc.fixturenames:
        return
    chosen = engines = _chosen(metafunc.config, "engine", ENGINES)
    if settings.engine not in (None, "auto"):
        engines = [each for each in chosen if each in (settings.engine, "auto")] or chosen[:1]
    if engines != chosen[:1]:
        metafunc.parametrize(FIXTURE, engines, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The rest of the plugin comes when a test needs it."""
    for item in items:
        if FIXTURE in getattr(item, "fixturenames", ()) or item.get_closest_marker(MARKER) is not None:
            from kvmpy.testing.session import Session

            if not config.pluginmanager.has_plugin(SESSION):
                config.pluginmanager.register(Session(config), SESSION)
            return


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Under xdist the tests are in other processes, which tell at their end what they ran on."""
    line = getattr(node, "workeroutput", {}).get(MARKER)
    if line:
        node.config.stash[HEADER] = line


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The header's line, for xdist."""
    line = config.stash.get(HEADER, None)
    if line:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def kvmpy_engine(request: pytest.FixtureRequest) -> str:
    """The engine the test runs on: kvm, translate or auto."""
    engine: str = getattr(request, "param", None) or _chosen(request.config, "engine", ENGINES)[0]
    return engine


@pytest.fixture
def machine(kvmpy_engine: str, request: pytest.FixtureRequest) -> MachineUnderTest:
    """An empty machine as the test's kvmpy markers describe it, closed when the test is over."""
    from kvmpy.testing.session import context_of

    return context_of(request.node).main()


@pytest.fixture
def guest(kvmpy_engine: str, request: pytest.FixtureRequest) -> Guest:
    """A machine plus a way to put code in it: see :class:`kvmpy.testing.Guest`. Its machine is that of ``machine``."""
    from kvmpy.testing.session import context_of

    return context_of(request.node).guest()


@pytest.fixture
def machines(kvmpy_engine: str, request: pytest.FixtureRequest) -> Callable[..., MachineUnderTest]:
    """Makes machines: ``machines(memory="2M")``, or ``machines(b"\\xf4", cpus=2)`` with code on every vCPU; closed when
    the test is over."""
    from kvmpy.testing.session import context_of

    context = context_of(request.node)

    def make(code: bytes | None = None, mode: str | None = None, **settings: Any) -> MachineUnderTest:
        return context.make(code, mode, **{**context.settings.machine, **settings})

    return make


@pytest.fixture(scope="session")
def host() -> HostFacts:
    """What this host can do: ``host["ept"]`` is a fact with its source, ``host.ept`` its value."""
    from kvmpy.testing.settings import host_facts

    return host_facts()
