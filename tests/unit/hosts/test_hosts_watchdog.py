"""A program that hangs is ended, one that works is left alone, and every line arrives."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.hostlab.watchdog import End, Limits, end, follow

Run = Callable[..., tuple[End, list[str]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run_(script: str, silence: float = 20, total: float = 20, **more: object) -> tuple[End, list[str]]:
        lines: list[str] = []
        log = tmp_path / "log"
        limits = Limits(silence, total, ending=0.2)
        ended = follow(
            ["sh", "-c", script.replace("LOG", str(log))],
            {log: lambda line, now: lines.append(line)},
            limits,
            output=tmp_path / "output",
            **more,  # type: ignore[arg-type]
        )
        return ended, lines

    return run_


def test_all_lines_arrive_though_the_program_is_gone(run: Run) -> None:
    ended, lines = run(r"printf 'a\r\nb\n\nlast' > LOG; exit 3")
    assert ended.why == ""
    assert lines == ["a", "b", "", "last"]


def test_a_line_written_in_parts_is_one_line(run: Run) -> None:
    _, lines = run("printf 'be' > LOG; sleep 0.2; printf 'gin\\nnext\\n' >> LOG")
    assert lines == ["begin", "next"]


def test_silence_ends_it(run: Run) -> None:
    ended, lines = run("echo one > LOG; sleep 60", silence=0.4)
    assert "without a sign of life" in ended.why
    assert lines == ["one"]
    assert ended.seconds < 10


def test_lines_keep_it_alive(run: Run) -> None:
    ended, lines = run("for n in 1 2 3 4 5; do echo $n >> LOG; sleep 0.2; done", silence=0.8)
    assert ended.why == ""
    assert len(lines) == 5


def test_the_limit_ends_even_a_talkative_one(run: Run) -> None:
    ended, lines = run("while :; do echo x >> LOG; sleep 0.05; done", total=0.5)
    assert "the limit for a run" in ended.why
    assert lines


def test_what_it_started_is_ended_too(run: Run, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    run(f"(trap '' TERM; echo $$ > LOG; sh -c 'echo $PPID > {pid_file}; exec sleep 60'); :", silence=0.6)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_one_that_cannot_switch_itself_off_is_no_failure(run: Run) -> None:
    ended, _ = run("echo over > LOG; sleep 60", done=lambda: True)
    assert ended == End(ended.seconds, "")
    assert ended.seconds < 10


def test_nothing_else_is_ended() -> None:
    code = "import time; time.sleep(60)"
    ours = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    other = subprocess.Popen([sys.executable, "-c", code])
    try:
        end(ours)
        end(ours)  # it has ended already: nothing happens
        time.sleep(0.05)
        assert ours.poll() is not None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_its_own_output_is_kept(run: Run, tmp_path: Path) -> None:
    run("echo visible; echo bad >&2")
    assert (tmp_path / "output").read_text() == "visible\nbad\n"
