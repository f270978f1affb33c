"""``kvmpy compare`` as a program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engines import need

from kvmpy.lab.variants import groups


@pytest.fixture
def both() -> None:
    for name in ("kvm", "translate"):
        need(name)


def test_they_agree(command: Any, both: None) -> None:
    result = command("compare", "long-hello")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.decode().splitlines()
    assert lines[0] == "kvm and translate agree: 43 exits, registers and memory 43 times, 21 bytes of output"
    assert any(line.split()[:2] == ["translate", "43"] for line in lines)


def test_as_json(command: Any, both: None) -> None:
    result = command("compare", "long-hello", "--json", "--every", "10")
    report = json.loads(result.stdout)
    assert report["schema"] == 1 and report["agree"] is True and report["difference"] is None
    assert report["host"]["kernel"]["release"]
    assert all(run["cycles"] > 0 for run in report["engines"].values())
    assert report["events"] == 43 and report["states_compared"] == 5
    assert set(report["engines"]) == {"kvm", "translate"}


def test_clocks_make_a_difference(command: Any, both: None) -> None:
    result = command("compare", "time-pit")
    assert result.returncode == 1
    text = result.stdout.decode()
    assert text.startswith("kvm and translate differ in an exit after ")
    assert "the last of which was port 0x43" in text and "goes on with" in text
    assert "--tolerate time" in text
    assert command("compare", "time-pit", "--tolerate", "time").returncode == 0


def test_a_guest_without_end(command: Any, both: None) -> None:
    result = command("compare", "spin", "--timeout", "0.5")
    assert result.returncode == 124
    assert b"agree so far" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["smp-hello"], "smp-hello wants 2 vCPUs"),
        (["long-hello", "--engine", "translate"], "not comparable: only translate can run it here"),
        (["no-such-guest"], "no bundled guest is called 'no-such-guest'"),
        (["long-hello", "--every", "0"], "--every 0: 'exit', or a number from 1"),
        (["long-hello", "--timeout", "0"], "timeout of 0.0 seconds: it must be more than 0"),
        (["long-hello", "--max-exits", "0"], "max_exits of 0: it must be at least 1"),
        (["long-hello", "--memory", "16Q"], "kvmpy: memory: '16Q' is not a size"),
        (
            ["--variants", "colour"],
            "no guests come in variants called 'colour': there are console, time, work, wait",
        ),
        (["--variants", "--rounds", "0"], "0 rounds: at least 1"),
        ([], "give one IMAGE"),
        (["a", "b"], "give one IMAGE"),
    ],
)
def test_what_can_not_be_compared(command: Any, both: None, arguments: list[str], says: str) -> None:
    result = command("compare", *arguments)
    assert result.returncode == 2
    assert says in result.stderr.decode()
    assert result.stderr.count(b"\n") == 1


def test_variants(command: Any, both: None) -> None:
    result = command("compare", "--variants", "console", "--rounds", "1", "--json")
    assert result.returncode == 0, result.stderr
    cases = {(case["variant"], case["engine"]): case for case in json.loads(result.stdout)["cases"]}
    assert set(cases) == {(v, e) for v in ("uart", "hypercall", "ring") for e in ("kvm", "translate")}
    for engine in ("kvm", "translate"):
        assert cases["uart", engine]["exits"] == 907
        assert cases["hypercall", engine]["exits"] == 11
        assert cases["hypercall", engine]["fewer_exits"] == pytest.approx(907 / 11)
        assert cases["ring", engine]["exits"] == 3


def test_variants_as_a_table(command: Any, both: None) -> None:
    result = command("compare", "--variants", "console", "wait", "--rounds", "1")
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode()
    assert "fewer" in text and "82.5 ×" in text and "poll" in text and "hypercall" in text


def test_the_unmodified_guest_is_the_first_of_its_group() -> None:
    assert {name: found[0].name for name, found in groups().items()} == {
        "console": "console-uart",
        "time": "time-rtc",
        "work": "work-pio",
        "wait": "wait-poll",
    }


def test_a_picture(command: Any, both: None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, the extra 'plot', isn't installed")
    for arguments in (["long-hello"], ["--variants", "console", "--rounds", "1"]):
        picture = tmp_path / "picture.svg"
        assert command("compare", *arguments, "--plot", str(picture)).returncode == 0
        assert b"<svg" in picture.read_bytes()
        picture.unlink()


def test_no_picture_of_a_guest_without_end(command: Any, both: None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, the extra 'plot', isn't installed")
    picture = tmp_path / "picture.svg"
    result = command("compare", "spin", "--timeout", "0.5", "--plot", str(picture))
    assert result.returncode == 124
    assert b"isn't written" in result.stderr and not picture.exists()


def test_a_picture_of_a_wrong_kind_is_refused_before_anything_runs(command: Any) -> None:
    result = command("compare", "spin", "--plot", "picture.txt")
    assert result.returncode == 2 and b"must end with one of .svg, .png, .pdf" in result.stderr
