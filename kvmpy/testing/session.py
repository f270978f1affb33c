"""What happens around a test that uses kvmpy: its context, skips, leaks, and what a failure's report says."""

from __future__ import annotations

import os

import pytest

from kvmpy.errors import UsageError
from kvmpy.testing import context as running
from kvmpy.testing.context import Context
from kvmpy.testing.leaks import Leaks
from kvmpy.testing.problems import CannotRun
from kvmpy.testing.settings import Settings, gather, unmet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType
    from typing import Any

    from kvmpy.testing.build import Builder

SETTINGS = pytest.StashKey[Settings]()
CONTEXT = pytest.StashKey[Context]()
FIXTURE = "kvmpy_engine"
TESTING = os.path.dirname(os.path.abspath(__file__)) + os.sep
MACHINE = os.path.join(os.path.dirname(TESTING[:-1]), "machine") + os.sep


def settings_of(node: Any) -> Settings:
    """The settings of a test; a test whose markers are wrong is an error of its collection."""
    settings: Settings | None = node.stash.get(SETTINGS, None)
    if settings is None:
        name = node.nodeid.split("[")[0]
        markers = [(owner, mark) for owner, mark in node.iter_markers_with_node("kvmpy")]
        wrong = ""
        try:
            settings = gather(markers, name)
        except UsageError as error:
            wrong = str(error)
        if settings is None:
            pytest.fail(wrong, pytrace=False)
        node.stash[SETTINGS] = settings
    return settings


def context_of(node: Any) -> Context:
    """The context of the running test."""
    context: Context = node.stash[CONTEXT]
    return context


class Session:
    """The hooks of a session in which a test uses kvmpy."""

    def __init__(self, config: pytest.Config) -> None:
        from kvmpy.testing.plugin import ENGINES, _chosen, _option

        self.config = config
        self.no_skip = bool(config.getoption("kvmpy_no_skip"))
        self.engines = _chosen(config, "engine", ENGINES)
        self.timeout = float(_option(config, "timeout"))
        self.leaks = Leaks()
        self._builder: Builder | None = None

    @property
    def builder(self) -> Builder:
        """Keeps what it makes with pytest's cache, or for this session where there is none."""
        if self._builder is None:
            from kvmpy.testing.build import Builder

            cache = getattr(self.config, "cache", None)
            if cache is not None:
                directory = str(cache.mkdir("kvmpy"))
            else:
                from tempfile import TemporaryDirectory

                scratch = TemporaryDirectory(prefix="kvmpy-")
                self.config.add_cleanup(scratch.cleanup)
                directory = scratch.name
            self._builder = Builder(directory)
        return self._builder

    def pytest_report_collectionfinish(self) -> str:
        """Engine, technique and host."""
        from kvmpy.testing.report import header

        return header(self.engines)

    def pytest_sessionfinish(self) -> None:
        """A worker of xdist has no terminal: it sends the header to who has."""
        output = getattr(self.config, "workeroutput", None)
        if output is not None:
            output["kvmpy"] = self.pytest_report_collectionfinish()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skips what this host can't do, and makes the context."""
        if FIXTURE not in getattr(item, "fixturenames", ()) and item.get_closest_marker("kvmpy") is None:
            self.leaks.begin(None)
            return
        settings = settings_of(item)
        engine = self._engine(item, settings)
        reason = unmet(settings, engine)
        if reason:
            self._cannot(reason)
        if settings.engine not in (None, "auto"):
            engine = str(settings.engine)
        item.stash[CONTEXT] = context = Context(
            item.nodeid, str(item.path), engine, settings, self.builder,
            timeout=self.timeout, update_golden=bool(self.config.getoption("kvmpy_update_golden")),
        )  # fmt: skip
        context.many_examples = hasattr(getattr(item, "obj", None), "hypothesis")
        running.begin(context)
        self.leaks.begin(context)

    def _engine(self, item: pytest.Item, settings: Settings) -> str:
        callspec = getattr(item, "callspec", None)
        params: dict[str, Any] = callspec.params if callspec is not None else {}
        return str(params.get(FIXTURE, self.engines[0]))

    def _cannot(self, reason: str) -> None:
        if self.no_skip:
            pytest.fail(f"{reason} (a failure and no skip because of --kvmpy-no-skip)", pytrace=False)
        pytest.skip(reason)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """What can't be done here is a skip; a comparison of exits is shown whole."""
        self.shown: list[str] = []
        try:
            return (yield)
        except CannotRun as error:
            self._cannot(str(error))
        except Exception as error:
            if not self.config.getoption("fulltrace"):
                hide_engine_room(error)
            if isinstance(error, AssertionError) and self.shown and error.args:
                error.args = (_whole(str(error.args[0]), self.shown), *error.args[1:])
            raise

    def pytest_assertrepr_compare(
        self, config: pytest.Config, op: str, left: object, right: object
    ) -> list[str] | None:
        """Exits against a list of patterns or a golden trace."""
        if op != "==":
            return None
        from kvmpy.testing.report import explain

        explained = explain(left, right)
        if explained is not None:
            self.shown = explained
        return explained

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Adds what is known of the test's machines to a failure."""
        report = yield
        context = item.stash.get(CONTEXT, None)
        if report.skipped and isinstance(report.longrepr, tuple) and report.longrepr[0] == __file__:
            path, line, _ = item.location
            report.longrepr = (path, (line or 0) + 1, report.longrepr[2])
        if report.failed and call.when == "call":
            self.leaks.failed = True
            if context is not None:
                from kvmpy.testing.report import all_sections

                report.sections.extend(all_sections(context))
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """Closes the test's machines; a machine that somebody else left open is an error of this test."""
        try:
            yield
        finally:
            context = item.stash.get(CONTEXT, None)
            running.begin(None)
            try:
                if context is not None:
                    context.close()
            finally:
                leaked = self.leaks.end()
        if leaked:
            pytest.fail(f"{item.nodeid} leaked {leaked}", pytrace=False)

    def pytest_unconfigure(self) -> None:
        """The machine's class is as it was."""
        self.leaks.uninstall()


def hide_engine_room(error: BaseException) -> None:
    """Takes kvmpy's own frames out of a traceback that goes on in the test's code: a handler that raises.

    ``--full-trace`` leaves them in.
    """
    step = error.__traceback__
    while step is not None:
        after = step.tb_next
        while after is not None and after.tb_next is not None and _is_own(after):
            after = after.tb_next
        step.tb_next = after
        step = after


def _is_own(step: TracebackType) -> bool:
    return step.tb_frame.f_code.co_filename.startswith((MACHINE, TESTING))


def _whole(message: str, explained: list[str]) -> str:
    """The assertion's message with all lines of the explanation, of which pytest may have kept the first few."""
    head, found, _ = message.partition(explained[0])
    if not found:
        return message
    return head + explained[0] + "".join(f"\n  {line}" for line in explained[1:])
