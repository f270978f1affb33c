"""The suite's rules mean the same under pytest and under the light runner."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.hostlab.inside.report import MOST_TEXT, Reporter, shorten
from scripts.hostlab.inside.selection import matches, parse

SAMPLE = """
import warnings
from suite import Host, cases, needs, raises, skip

order = []

def test_passes(host):
    assert host.parameter("no.such") is None

def test_fails(host):
    answer = 41
    assert answer == 42

def test_skips(host):
    skip("kvm.x=N")

@needs("no_module.x=Y")
def test_needs_what_is_not_here(host):
    raise AssertionError("must not run")

@needs("no_module.x=Y or flag fpu")
def test_needs_one_of_two(host):
    pass

@cases(1, "b", named=(3,))
def test_cases(host, case):
    assert case in (1, "b", (3,))

def test_defers(host):
    host.defer(order.append, "first")
    host.defer(order.append, "second")
    assert order == []

def test_deferred_ran_last_first(host):
    assert order == ["second", "first"]

def test_raises(host):
    with raises(ValueError, "bad") as caught:
        raise ValueError("very bad")
    assert str(caught[0]) == "very bad"

def test_raises_nothing(host):
    with raises(ValueError):
        pass

def test_raises_with_other_words(host):
    with raises(ValueError, "good"):
        raise ValueError("bad")

def test_closing_fails(host):
    host.defer(lambda: 1 / 0)

def test_takes_too_long(host):
    while True:
        pass

def test_avoids_a_host(host):
    host.avoid("elsewhere", because="no")
    host.avoid("local", because="its emulator is wrong")

def test_forgets_something(host):
    ring = [open("/dev/null")]
    ring.append(ring)

def test_after_all(host):
    pass

def helper(host):
    raise AssertionError("no test")
"""
FAILING = ["fails", "raises_nothing", "raises_with_other_words", "closing_fails", "takes_too_long"]


@pytest.fixture
def suite(tmp_path: Path, root: Path) -> Path:
    """A source tree with the suite's own files and a sample of tests. Returns its root."""
    place = tmp_path / "tree"
    (place / "tests").mkdir(parents=True)
    shutil.copytree(
        root / "tests" / "hosts", place / "tests" / "hosts", ignore=shutil.ignore_patterns("test_*")
    )
    shutil.copytree(root / "scripts" / "hostlab", place / "scripts" / "hostlab")
    (place / "tests" / "hosts" / "test_sample.py").write_text(SAMPLE)
    (place / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    return place


def run(tree: Path, *words: str) -> tuple[int, list[dict[str, object]]]:
    """Run a module with our Python; its status and the report."""
    report = tree / "report.jsonl"
    report.unlink(missing_ok=True)
    environment = os.environ | {"KVMPY_HOSTS_REPORT": str(report), "KVMPY_HOSTS_TEST_SECONDS": "0.5"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tree, env=environment, capture_output=True, text=True, timeout=60
    )
    lines = report.read_text().splitlines() if report.exists() else [json.dumps({"event": done.stderr})]
    return done.returncode, [json.loads(line) for line in lines]


def light(tree: Path, *words: str) -> tuple[int, list[dict[str, object]]]:
    return run(tree, "scripts.hostlab.inside.light", "tests/hosts", *words)


def with_pytest(tree: Path, *words: str) -> tuple[int, list[dict[str, object]]]:
    plugins = ("-p", "scripts.hostlab.inside.pytest_report", "-p", "no:cacheprovider", "-p", "no:xdist")
    return run(tree, "pytest", *plugins, "tests/hosts", *words)


def outcomes(events: list[dict[str, object]]) -> dict[str, str]:
    return {str(event["test"]): str(event["outcome"]) for event in events if event["event"] == "test"}


RUNNERS = pytest.mark.parametrize("runner", [light, with_pytest], ids=["light", "pytest"])


def test_both_runners_agree_on_everything(suite: Path) -> None:
    status, events = light(suite)
    other_status, other_events = with_pytest(suite)
    found, other = outcomes(events), outcomes(other_events)
    assert list(found) == list(other)
    # only where it is noticed differs: with pytest possibly in the test after
    forgotten = {"test_sample.py::test_forgets_something", "test_sample.py::test_after_all"}
    assert {k: v for k, v in found.items() if k not in forgotten} == {
        k: v for k, v in other.items() if k not in forgotten
    }
    assert status == other_status == 1
    failed = [name for name, outcome in found.items() if outcome == "fail"]
    assert failed == [f"test_sample.py::test_{name}" for name in [*FAILING, "forgets_something"]]
    assert [name for name in found if "[" in name] == [
        f"test_sample.py::test_cases[{name}]" for name in ("1", "b", "named")
    ]


@RUNNERS
def test_a_report_is_complete(suite: Path, runner: object) -> None:
    _, events = runner(suite)  # type: ignore[operator]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "host"
    assert kinds[-1] == "end"
    assert kinds[1:-1] == ["start", "test"] * ((len(kinds) - 2) // 2)
    assert events[-1] == {"event": "end", "status": 1, "count": kinds.count("test")}


@RUNNERS
def test_reasons_say_what_happened(suite: Path, runner: object) -> None:
    _, events = runner(suite)  # type: ignore[operator]
    reasons = {str(e["test"]).split("::test_")[1]: str(e["reason"]) for e in events if e["event"] == "test"}
    assert reasons["skips"] == "kvm.x=N"
    assert reasons["avoids_a_host"] == "local: its emulator is wrong"
    assert reasons["needs_what_is_not_here"].startswith("needs no_module.x=Y: the modules here are")
    assert "assert answer == 42" in reasons["fails"] or "assert 41 == 42" in reasons["fails"]
    assert "41" in reasons["fails"]
    assert "ZeroDivisionError" in reasons["closing_fails"]
    assert "not over after 0.5 s" in reasons["takes_too_long"]


@RUNNERS
def test_selection(suite: Path, runner: object) -> None:
    assert list(outcomes(runner(suite, "-k", "cases and not named")[1])) == [  # type: ignore[operator]
        "test_sample.py::test_cases[1]",
        "test_sample.py::test_cases[b]",
    ]
    status, events = runner(suite, "-k", "no_such_test")  # type: ignore[operator]
    assert status == 5
    assert outcomes(events) == {}


@RUNNERS
def test_stop_at_the_first_failure(suite: Path, runner: object) -> None:
    _, events = runner(suite, "-x")  # type: ignore[operator]
    assert list(outcomes(events).values()) == ["pass", "fail"]
    assert events[-1]["count"] == 2


@RUNNERS
def test_a_module_that_cannot_be_imported_is_a_failure(suite: Path, runner: object) -> None:
    (suite / "tests" / "hosts" / "test_broken.py").write_text("import no_such_module\n")
    status, events = runner(suite, "-k", "passes or broken")  # type: ignore[operator]
    assert status != 0
    assert outcomes(events)["test_broken.py"] == "fail"


def test_one_test_by_its_id(suite: Path) -> None:
    _, events = light(suite, "tests/hosts/test_sample.py::test_cases[b]")
    assert list(outcomes(events)) == ["test_sample.py::test_cases[b]"]


def test_pytest_knows_the_marker(suite: Path) -> None:
    (suite / "tests" / "test_other.py").write_text("def test_other(): pass\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--collect-only",
            "-m",
            "hosts",
            "-p",
            "no:cacheprovider",
            "tests",
        ],
        cwd=suite,
        capture_output=True,
        text=True,
    )
    assert "test_sample.py::test_passes" in done.stdout
    assert "test_other" not in done.stdout


def test_an_unknown_argument_is_told(suite: Path) -> None:
    status, events = light(suite, "--durations=5")
    assert status == 4
    assert "doesn't know --durations=5" in str(events[0]["event"])


class TestSelection:
    @pytest.mark.parametrize(
        ("expression", "wanted"),
        [
            ("", True),
            ("dirty", True),
            ("DIRTY", True),
            ("ring and dirty", True),
            ("ring and not dirty", False),
            ("other or (dirty and not x86)", True),
            ("not (dirty)", False),
            ("[4096]", True),
        ],
    )
    def test_expressions(self, expression: str, wanted: bool) -> None:
        assert matches(expression, "test_memory.py::test_dirty_ring[4096]") is wanted

    @pytest.mark.parametrize("expression", ["and", "a b", "(a", "not"])
    def test_mistakes(self, expression: str) -> None:
        with pytest.raises(ValueError, match="isn't names with and"):
            matches(expression, "test")

    def test_names(self) -> None:
        selection = parse(
            ["tests/hosts/test_a.py", "tests/hosts/test_b.py::test_x", "tests/hosts/"], "tests/hosts"
        )
        wanted = ["test_a.py::test_1", "test_b.py::test_x", "test_b.py::test_x[1]"]
        unwanted = ["test_b.py::test_xy", "test_ab.py::test_1"]
        assert all(selection.wants(name) for name in wanted)
        assert not any(selection.wants(name) for name in unwanted)

    def test_options(self) -> None:
        assert parse(["-v", "-q", "-kx", "--maxfail=3"], "s").most_failures == 3
        assert parse(["-x"], "s").most_failures == 1


class TestReporter:
    def test_lines_are_appended(self, tmp_path: Path) -> None:
        path = tmp_path / "report"
        for number in range(2):
            with Reporter(str(path)) as reporter:
                reporter.say("test", number=number, text="line\nend")
                reporter.close()
        assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [0, 1]

    def test_without_a_place_nothing_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KVMPY_HOSTS_REPORT", raising=False)
        with Reporter() as reporter:
            reporter.say("test")

    def test_a_long_text_keeps_its_ends(self) -> None:
        text = shorten("begin" + "x" * 100_000 + "end")
        assert text.startswith("begin")
        assert text.endswith("end")
        assert len(text) < MOST_TEXT + 100
        assert shorten("x" * MOST_TEXT) == "x" * MOST_TEXT
