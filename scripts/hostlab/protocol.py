"""The lines a host reports with, and what they add up to.

One JSON object a line. ``event`` says what it is:

    up                                      KVM is there, the job starts              (init)
    host    facts                           what kind of host it is                   (runner)
    start   test                            a test begins                             (runner)
    test    test outcome reason seconds     it ended: pass, fail or skip              (runner)
    end     status count                    that was all: so many tests have ended    (runner)
    off     status error                    the job's exit status; power goes next    (init)

Only a report that is complete counts: emulators' exit statuses say nothing.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from .catalogue import Host
from .expected import Expected

OUTCOMES = ("pass", "fail", "skip")


class Result(NamedTuple):
    """How a test ended, and after how many ``seconds``; ``reason`` is why it failed or was skipped."""

    test: str
    outcome: str
    reason: str
    seconds: float


class Report:
    """What a host has said so far."""

    def __init__(self, host: Host, expected: Expected | None = None) -> None:
        self.host = host
        self.results: list[Result] = []
        self.facts: dict[str, Any] = {}
        self.problems: list[str] = []
        self.last_lines: list[str] = []
        self.up_after: float | None = None
        self.seconds = 0.0
        self.status = 0
        self.error = ""
        self.running = ""
        self.over = False
        self._expected = expected or Expected({})
        self._since = 0.0
        self._ended: dict[str, Any] | None = None

    @property
    def failed(self) -> bool:
        return bool(self.problems) or any(result.outcome == "fail" for result in self.results)

    def count(self, outcome: str) -> int:
        return sum(result.outcome == outcome for result in self.results)

    def feed(self, line: str, now: float) -> Result | None:
        """Take a line that came ``now`` seconds after the start; returns a test's result if it is one."""
        try:
            said = json.loads(line)
            event = said["event"]
        except (ValueError, KeyError, TypeError):
            self.problems.append(f"a line of the report can't be read: {line[:200]!r}")
            return None
        take = getattr(self, f"_on_{event}", None)
        if take is None:
            self.problems.append(f"the report has an unknown event {event!r}")
            return None
        result: Result | None = take(said, now)
        return result

    def finish(self, seconds: float, why: str = "") -> None:
        """The host is gone after ``seconds``, with ``why`` if it had to be ended: see what is missing."""
        self.seconds = seconds
        if self.running:
            text = f"not over when the host was: {why or 'it stopped'}"
            self.results.append(Result(self.running, "fail", text, seconds - self._since))
        if why:
            self.error = why
            self.problems.append(why)
        if self._ended is None:
            self.problems.append("the report is incomplete: it has no end line")
        elif self._ended["count"] != len(self.results):
            count = self._ended["count"]
            self.problems.append(f"the report is incomplete: {len(self.results)} results of {count} tests")
        elif self._ended["status"] and not self.count("fail"):
            self.problems.append(f"no test failed, but the runner's status is {self._ended['status']}")

    def _on_up(self, said: dict[str, Any], now: float) -> None:
        self.up_after = now

    def _on_host(self, said: dict[str, Any], now: float) -> None:
        self.facts = said["facts"]
        parameters = self.facts["parameters"]
        for name, value in self.host.parameters.items():
            if parameters.get(name) != value:
                self.problems.append(
                    f"{self.host.name} must have {name}={value}, it has {parameters.get(name)}"
                )
        if self.host.emulator != "none" and not isinstance(self.facts["api"], int):
            self.problems.append(f"{self.host.name} has no KVM: {self.facts['api']}")

    def _on_start(self, said: dict[str, Any], now: float) -> None:
        self.running, self._since = said["test"], now

    def _on_test(self, said: dict[str, Any], now: float) -> Result:
        outcome, reason = said["outcome"], said["reason"]
        if outcome not in OUTCOMES:
            outcome, reason = "fail", f"unknown outcome {outcome!r}: {reason}"
        if outcome == "skip" and not self._expected.allows(self.host.name, said["test"], reason):
            outcome, reason = (
                "fail",
                f"skipped, but EXPECTED.toml doesn't list it for {self.host.name}: {reason}",
            )
        # clocks inside an emulator are its own: what counts is when the lines arrived
        seconds = now - self._since if self.host.emulator != "none" else said["seconds"]
        result = Result(said["test"], outcome, reason, seconds)
        self.results.append(result)
        self.running = ""
        return result

    def _on_end(self, said: dict[str, Any], now: float) -> None:
        self._ended = said

    def _on_off(self, said: dict[str, Any], now: float) -> None:
        self.over = True
        self.status = said["status"]
        if said["error"]:
            self.error = said["error"]
            self.problems.append(self.error)
        elif said["status"] and self._ended is None:
            self.problems.append(f"the job ended with status {said['status']} before its report did")
