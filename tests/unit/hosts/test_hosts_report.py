"""Reports: only a complete one is good, and what the tables and JUnit XML make of it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from scripts.hostlab import junit, table
from scripts.hostlab.catalogue import HOSTS, find
from scripts.hostlab.errors import HostsError
from scripts.hostlab.expected import Expected, read
from scripts.hostlab.protocol import Report, Result

FACTS = {
    "kernel": "6.1.0",
    "modules": ["kvm", "kvm_intel"],
    "api": 12,
    "parameters": {"kvm_intel.ept": "Y", "kvm_intel.unrestricted_guest": "Y"},
}


def make(host: str = "intel", *events: dict[str, object], expected: Expected | None = None) -> Report:
    """A report that was given these events, one a second."""
    report = Report(find(host)[0], expected)
    for second, event in enumerate(events):
        report.feed(json.dumps(event), float(second))
    return report


def said(event: str, **values: object) -> dict[str, object]:
    return {"event": event, **values}


def ended(outcome: str, reason: str = "", test: str = "t.py::a") -> dict[str, object]:
    return said("test", test=test, outcome=outcome, reason=reason, seconds=0.25)


def good(*results: dict[str, object], host: str = "intel", expected: Expected | None = None) -> Report:
    begin = [said("up"), said("host", facts=FACTS), said("start", test="t.py::a")]
    status = 1 if any(result["outcome"] == "fail" for result in results) else 0
    close = [said("end", status=status, count=len(results)), said("off", status=status, error="")]
    report = make(host, *begin, *results, *close, expected=expected)
    report.finish(9.0)
    return report


def test_a_complete_report_is_good() -> None:
    report = good(ended("pass"))
    assert (report.problems, report.failed, report.over) == ([], False, True)
    assert report.results == [Result("t.py::a", "pass", "", 1.0)]  # by our clock, not the emulator's
    assert report.up_after == 0.0


def test_on_this_machine_its_own_clock_counts() -> None:
    assert good(ended("pass"), host="local").results[0].seconds == 0.25


def test_a_failed_test_is_a_failure() -> None:
    report = good(ended("fail", "because"))
    assert report.failed
    assert not report.problems


def test_no_end_line_is_a_failure() -> None:
    report = make("intel", said("up"), said("host", facts=FACTS))
    report.finish(5.0)
    assert report.problems == ["the report is incomplete: it has no end line"]


def test_a_test_that_never_ended_failed() -> None:
    report = make("intel", said("host", facts=FACTS), said("start", test="t.py::hangs"))
    report.finish(100.0, "ended after 99 s without a sign of life")
    assert report.results == [
        Result(
            "t.py::hangs", "fail", "not over when the host was: ended after 99 s without a sign of life", 99.0
        )
    ]
    assert len(report.problems) == 2


def test_a_lost_result_is_a_failure() -> None:
    report = make("intel", said("host", facts=FACTS), ended("pass"), said("end", status=0, count=2))
    report.finish(5.0)
    assert report.problems == ["the report is incomplete: 1 results of 2 tests"]


def test_a_runner_that_failed_without_a_failed_test_is_a_failure() -> None:
    report = make(
        "intel", said("host", facts=FACTS), said("end", status=5, count=0), said("off", status=5, error="")
    )
    report.finish(5.0)
    assert report.problems == ["no test failed, but the runner's status is 5"]


@pytest.mark.parametrize("line", ["", "{", "[]", '"x"', '{"event": 5}', '{"no": 1}', '{"event": "nonsense"}'])
def test_a_line_that_cannot_be_read_is_a_failure(line: str) -> None:
    report = Report(HOSTS[0])
    report.feed(line, 0.0)
    assert len(report.problems) == 1


def test_a_host_that_is_another_than_it_should_be_is_a_failure() -> None:
    report = make("intel-no-ept", said("host", facts=FACTS))
    assert "intel-no-ept must have kvm_intel.ept=N, it has Y" in report.problems


def test_a_host_without_kvm_is_a_failure_except_locally() -> None:
    facts = FACTS | {"api": "/dev/kvm: No such file or directory"}
    assert make("intel", said("host", facts=facts)).problems == [
        "intel has no KVM: /dev/kvm: No such file or directory"
    ]
    assert make("local", said("host", facts=facts)).problems == []


def test_init_says_why_there_was_no_job() -> None:
    report = make("intel", said("off", status=1, error="module kvm can't be loaded"))
    assert report.problems == ["module kvm can't be loaded"]


EXPECTED = Expected({"intel": {"t.py::a*": "ept=N", "t.py::b[1-2]": "flag"}})


@pytest.mark.parametrize(
    ("host", "test", "reason", "outcome"),
    [
        ("intel", "t.py::a", "needs x: kvm_intel.ept=N", "skip"),
        ("intel", "t.py::all[case]", "needs x: kvm_intel.ept=N", "skip"),
        ("intel", "t.py::a", "something else", "fail"),
        ("intel", "t.py::b[1-2]", "no flag avx", "skip"),
        ("intel", "t.py::b1", "no flag avx", "fail"),  # brackets are no pattern
        ("intel-no-ug", "t.py::a", "ept=N", "fail"),
        ("local", "t.py::whatever", "anything", "skip"),
    ],
)
def test_only_listed_skips_are_skips(host: str, test: str, reason: str, outcome: str) -> None:
    report = good(ended("skip", reason, test), host=host, expected=EXPECTED)
    assert report.results[0].outcome == outcome
    if outcome == "fail":
        assert "EXPECTED.toml" in report.results[0].reason


class TestExpectedFile:
    def test_missing_is_empty(self, tmp_path: Path) -> None:
        assert not read(tmp_path / "EXPECTED.toml").allows("amd", "t", "r")

    def test_is_read(self, tmp_path: Path) -> None:
        file = tmp_path / "EXPECTED.toml"
        file.write_text('[amd]\n"t.py::x" = "nrips=0"\n')
        assert read(file).allows("amd", "t.py::x", "kvm_amd.nrips=0")

    @pytest.mark.parametrize(
        "text", ["[", '[nohost]\n"t" = "r"', 'amd = "t"', '[amd]\n"t" = ""', '[amd]\n"t" = 5']
    )
    def test_mistakes_are_told(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "EXPECTED.toml"
        file.write_text(text)
        with pytest.raises(HostsError, match=r"EXPECTED\.toml"):
            read(file)

    def test_the_suites_own_can_be_read(self, root: Path) -> None:
        read(root / "tests" / "hosts" / "EXPECTED.toml")


class TestTables:
    def test_a_summary_has_a_row_for_each_host(self) -> None:
        rows = table.summary([good(ended("pass")), good(ended("fail"), host="amd-bochs")]).splitlines()
        assert len({len(row) for row in rows}) == 1  # aligned
        assert "| intel " in rows[2]
        assert "kvm_intel 6.1.0" in rows[2]
        assert rows[3].startswith("| **amd-bochs**")

    def test_tests_by_hosts_with_reasons_once(self) -> None:
        skips = [ended("skip", "ept=N"), ended("skip", "ept=N", "t.py::b")]
        other = Report(find("local")[0])
        text = table.tests([good(*skips, expected=Expected({"intel": {"*": "ept"}})), other])
        assert text.count("skip [1]") == 2
        assert text.endswith("[1] ept=N")

    def test_bars_and_line_ends_do_not_break_the_table(self) -> None:
        text = table.tests([good(ended("pass", test="t.py::a[x|y]"))])
        assert "a[x\\|y]" in text
        assert len(text.splitlines()) == 3


class TestJunit:
    def test_everything_is_in_it(self) -> None:
        report = good(ended("pass"), ended("fail", "first\nsecond <\0\x1b>", "t.py::b"))
        report.problems.append("the host broke")
        report.last_lines = ["Kernel panic"]
        document = ET.fromstring(junit.document([report]).encode())
        suite = document.find("testsuite")
        assert suite is not None
        assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "1")
        failure = suite.find("testcase/failure")
        assert failure is not None
        assert failure.get("message") == "first"
        assert "second <" in (failure.text or "")
        error = suite.find("testcase/error")
        assert error is not None
        assert error.text == "Kernel panic"
        assert [case.get("classname") for case in suite.findall("testcase")] == [
            "intel.t",
            "intel.t",
            "intel",
        ]
