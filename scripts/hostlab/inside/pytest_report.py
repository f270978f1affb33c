"""pytest plugin for the hosts that run the suite under pytest: reports each test as it ends.

python -m pytest -p scripts.hostlab.inside.pytest_report tests/hosts
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from .facts import gather
from .limit import time_limit
from .report import Reporter, shorten

_SUITE = "tests/hosts/"


class Reporting:
    """Puts a test's phases together: a failure in any is a failure, a skip in any else a skip."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._count = 0
        self._seconds = 0.0
        self._outcome, self._reason = "pass", ""

    def pytest_sessionstart(self) -> None:
        self._reporter.say("host", facts=gather())

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            name = _name(report.nodeid)
            self._reporter.say("start", test=name)
            self._say_test(name, "fail", report.longreprtext, 0.0)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._outcome, self._reason, self._seconds = "pass", "", 0.0
        self._reporter.say("start", test=_name(nodeid))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        with time_limit():
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds += report.duration
        if report.failed:
            self._outcome, self._reason = "fail", f"{self._reason}\n{report.longreprtext}".strip()
        elif report.skipped and self._outcome == "pass" and not hasattr(report, "wasxfail"):
            self._outcome, self._reason = "skip", _skip_reason(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._say_test(_name(nodeid), self._outcome, self._reason, self._seconds)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._reporter.say("end", status=int(exitstatus), count=self._count)
        self._reporter.close()

    def _say_test(self, name: str, outcome: str, reason: str, seconds: float) -> None:
        self._count += 1
        text = shorten(reason)
        self._reporter.say("test", test=name, outcome=outcome, reason=text, seconds=round(seconds, 3))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Reporting(Reporter()), "hosts-report")


def _name(nodeid: str) -> str:
    return nodeid.removeprefix(_SUITE)


def _skip_reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return report.longreprtext
