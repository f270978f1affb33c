"""kvmpy.cli.report and kvmpy.cli.drawing: files that are whole or not there, tables, and what info makes of facts."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvmpy.cli.drawing import draw
from kvmpy.cli.info import headline, render, value_text
from kvmpy.cli.report import WholeFile, describe_record, stats_rows
from kvmpy.errors import UsageError
from kvmpy.machine.host import Fact, HostFacts


def test_whole_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with WholeFile(str(path), "--report") as file:
        file.write("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert os.listdir(tmp_path) == ["out"]


def test_whole_file_is_not_there_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), WholeFile(str(path), "--report") as file:
        file.write("half of")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_whole_file_keeps_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    with WholeFile(str(tmp_path / "link"), "--report") as file:
        file.write("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "x"


def test_whole_file_writes_to_pipes_as_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with WholeFile(str(tmp_path / "pipe"), "--trace") as file:
        file.write("through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize("path", ["", "/nowhere/at/all", "/"])
def test_whole_file_that_cant_be(path: str) -> None:
    with pytest.raises(UsageError, match="--trace"), WholeFile(path, "--trace"):
        pass


def test_disk_full_names_the_path() -> None:
    with pytest.raises(OSError, match="No space left") as caught, WholeFile("/dev/full", "--report") as file:
        file.write("x" * 100_000)
    assert caught.value.filename == "/dev/full"


def test_describe_record() -> None:
    fields = {"vcpu": 1, "exit": "pio", "direction": "write", "address": 0x3F8, "size": 1, "value": 10}
    assert describe_record({**fields, "range": "serial"}) == "vCPU 1: pio 0x3f8 <- 0x0a (serial)"
    assert describe_record({**fields, "range": None, "direction": "read", "size": 4}).endswith(
        "0x3f8 -> 0x0000000a (nobody)"
    )
    assert describe_record({"vcpu": 0, "exit": "HLT"}) == "vCPU 0: HLT"


def test_stats_rows_put_owners_below_their_reason() -> None:
    ranges = [("port", "serial", 0x3F8, 0x3FF, "python", 5), ("mmio", "page", 0x1000, 0x1FFF, "c", 2),
              ("port", "post", 0x80, 0x80, "c", 9)]  # fmt: skip
    rescued = {"popcnt": 2, "fld1": 7}
    result: Any = SimpleNamespace(
        exits={"HLT": 1, "IO": 14, "MMIO": 2}, ranges=ranges, unowned=3, rescued=rescued
    )
    assert stats_rows(result) == [
        ("14", "IO", "", ""),
        ("9", "", "post 0x80-0x80", "c"),
        ("5", "", "serial 0x3f8-0x3ff", "python"),
        ("2", "MMIO", "", ""),
        ("2", "", "page 0x1000-0x1fff", "c"),
        ("1", "HLT", "", ""),
        ("3", "", "nobody", "c"),
        ("9", "rescued", "", ""),
        ("7", "", "fld1", "translate"),
        ("2", "", "popcnt", "translate"),
    ]


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.text import Text

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = Text("x" * 150 + "   ", style="bold")
    assert draw(Screen(False), text) == "x" * 150 + "\n"
    assert "\x1b[1m" in draw(Screen(True), text)


def host(**values: Any) -> HostFacts:
    groups = {"kvm": "engines", "translate": "engines", "nested": "host"}
    return HostFacts([Fact(groups.get(n, "processor"), n, v, f"{n} is {v}") for n, v in values.items()])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"technique": "VT-x", "ept": True, "unrestricted_guest": True}, "VT-x with EPT and unrestricted guest."),
        ({"technique": "VT-x", "ept": True, "unrestricted_guest": False}, "VT-x with EPT, no unrestricted guest."),
        ({"technique": "VT-x", "ept": False}, "VT-x, shadow page tables, no unrestricted guest."),
        ({"technique": "AMD-V", "npt": True}, "KVM uses AMD-V with NPT."),
        ({"technique": "AMD-V", "npt": False}, "KVM uses AMD-V, shadow page tables."),
        ({"technique": "PVM"}, "KVM uses PVM ("),
        ({}, "KVM uses "),
    ],
)  # fmt: skip
def test_headline(values: dict[str, Any], words: str) -> None:
    said = headline(host(kvm=True, nested=False, **values))
    assert "on bare metal: guests run with kvm." in said
    assert words in said


def test_headline_without_an_engine() -> None:
    said = headline(host(kvm=False, translate=False, nested=True))
    assert said.endswith("inside a virtual machine: no engine works, see below.")
    assert headline(host(kvm=False, translate=True)).endswith("guests run with translate.")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("ept", True, "yes"), ("ept", False, "no"), ("model", None, "unknown"), ("sync_regs", 7, "yes"),
     ("max_vcpus", 1024, "1024"), ("memory", 3 << 29, "1.5 GiB"), ("kernel", "6.1", "6.1")],
)  # fmt: skip
def test_value_text(name: str, value: Any, text: str) -> None:
    assert value_text(Fact("host", name, value, "")) == text


def test_info_leaves_out_what_the_technique_implies() -> None:
    facts = [
        Fact("processor", "technique", "VT-x", "KVM uses VT-x here"),
        Fact("processor", "npt", False, "KVM uses VT-x here"),
        Fact("processor", "ept", False, "kvm_intel.ept=N"),
    ]
    said = render(HostFacts(facts))
    assert "technique" in said and "kvm_intel.ept=N" in said and "npt" not in said
