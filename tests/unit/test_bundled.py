"""kvmpy.boot.bundled: guests by name, and what is said when there is none of that name."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kvmpy.boot import bundled
from kvmpy.errors import ImageError

METADATA = Path(__file__).resolve().parents[2] / "guest_images" / "images.toml"
REQUIRED = {
    "real-hello", "real-echo", "real-irq", "protected-hello", "long-hello", "long-user", "mode-switch",
    "long-exceptions", "smp-hello", "sieve", "memory-walk", "exit-storm", "crash", "spin",
}  # fmt: skip
ENTRY = {
    "name": "tiny", "file": "tiny.bin", "summary": "a test", "mode": "real", "format": "flat",
    "load_address": 0x7C00, "cpus": 2, "irqchip": "kernel", "memory": 65536, "serial_input": True,
    "ends": "exit", "status": 7, "paravirt": True, "group": "small",
}  # fmt: skip


def _write(directory: Path, index: Any) -> str:
    (directory / "index.json").write_text(json.dumps(index))
    return str(directory)


def test_the_package_holds_every_guest() -> None:
    guests = bundled.names()
    assert {guest.name for guest in guests} >= REQUIRED
    assert [guest.name for guest in guests] == list(tomllib.loads(METADATA.read_text()))
    for guest in guests:
        assert guest.read() == Path(guest.path).read_bytes() != b""
        assert guest.summary and guest.load_address + len(guest.read()) <= guest.needs["memory"]


def test_find_gives_what_the_index_says(tmp_path: Path) -> None:
    guest = bundled.find("tiny", _write(tmp_path, {"schema": 1, "images": [ENTRY]}))
    assert guest.path == str(tmp_path / "tiny.bin")
    assert (guest.name, guest.format, guest.mode, guest.load_address) == ("tiny", "flat", "real", 0x7C00)
    assert guest.needs == {
        "cpus": 2, "irqchip": "kernel", "memory": 65536, "serial_input": True, "ends": "exit", "status": 7,
        "paravirt": True,
    }  # fmt: skip
    assert guest.group == "small"
    assert repr(guest) == "<Bundled tiny: real, flat at 0x7c00>"


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("long-helo", "long-hello"), ("Long_User", "long-user"), ("seive", "sieve"), ("echo", "real-echo")],
)
def test_nearest_name_is_suggested(wrong: str, nearest: str) -> None:
    with pytest.raises(ImageError) as caught:
        bundled.find(wrong)
    assert str(caught.value) == f"no bundled guest is called {wrong!r}: did you mean {nearest!r}?"


@pytest.mark.parametrize("wrong", ["", "zzzz", "\0", "x" * 10000])
def test_no_name_is_near(wrong: str) -> None:
    with pytest.raises(ImageError, match="`kvmpy images` lists them"):
        bundled.find(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "\xff", '{"schema": 2, "images": []}', '{"schema": 1}',
        '{"schema": 1, "images": [{}]}', '{"schema": 1, "images": [1]}', '{"schema": 1, "images": 1}',
    ],
)  # fmt: skip
def test_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text, encoding="latin-1")
    with pytest.raises(ImageError, match="install kvmpy again") as caught:
        bundled.names(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_never_built(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="aren't built"):
        bundled.find("long-hello", str(tmp_path))


def test_image_gone(tmp_path: Path) -> None:
    guest = bundled.find("tiny", _write(tmp_path, {"schema": 1, "images": [ENTRY]}))
    with pytest.raises(ImageError, match=r"bundled guest tiny: .*No such file"):
        guest.read()


def test_a_found_name_pays_for_no_suggestion() -> None:
    """Start-up counts: neither difflib nor pathlib nor typing for a name that is there."""
    program = (
        "import sys; before = set(sys.modules); from kvmpy.boot import bundled; bundled.find('spin');"
        "print(sorted({'difflib', 'pathlib', 'typing', 'tomllib'} & (set(sys.modules) - before)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
