"""scripts/host_numbers: tables of what hosts measured, from reports and from consoles."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "lab"))
try:
    from lab_reports import report, result
finally:
    sys.path.pop(0)


@pytest.fixture(scope="module")
def numbers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("host_numbers", ROOT / "scripts" / "host_numbers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def console(*reports: dict[str, Any]) -> str:
    """What a host prints: its kernel's remarks, a progress bar, and reports with the line ends of a serial port."""
    texts = "\r\n".join(f"\x1b[2K 99 %\x1b[2K{json.dumps(one, indent=1)}" for one in reports)
    return f"[    1.57] Failed to access perfctr msr\r\n{texts}\r\n[   99.17] reboot: Power down\r\n"


def test_latencies_of_two_hosts(
    numbers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.txt"
    one = report(result("cpuid", 2000, 1990, noise=0), result("hlt", 4000, noise=0, engine="translate"))
    one["fingerprint"]["kernel"]["release"] = "6.1.0-somebodys"
    first.write_text(json.dumps(one))
    second.write_text(console(report(result("cpuid", 20_000, noise=0))))
    numbers.main(["latency", f"A={first}", f"translate={first}", f"B={second}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["| kind | A | translate | B |", "| --- | ---: | ---: | ---: |"]
    (cpuid,) = (line for line in lines if line.startswith("| `cpuid`"))
    assert cpuid == "| `cpuid` | 1.00 µs · 1.01× | – | 10.0 µs |"
    assert "| `hlt` | – | 2.00 µs | – |" in lines
    assert any(line.startswith("- **A**: ") and "release 6.1.0;" in line for line in lines)


def case(variant: str, exits: int, cpu: float) -> dict[str, Any]:
    return {"group": "console", "variant": variant, "engine": "kvm", "exits": exits, "cpu_best": cpu}


def test_techniques(numbers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"exits": 43, "cpu": 0.002, "start_up": 0.004, "guest_memory": 32 << 10}
    compared = {"schema": 1, "host": {}, "image": "long-hello", "engines": {"kvm": run}}
    cases = [case("uart", 907, 0.02), case("ring", 3, 0.002)]
    path, picture = tmp_path / "a.txt", tmp_path / "a.svg"
    path.write_text(console(compared, {"schema": 1, "host": {}, "cases": cases}))
    numbers.main(["techniques", "--plot", str(picture), f"A={path}"])
    lines = capsys.readouterr().out.splitlines()
    assert "| `long-hello` | A | kvm | 43 | 2.00 ms | 4.00 ms | 32 KiB |" in lines
    assert "| console | uart | 907 · 20.0 ms |" in lines
    assert "| console | ring | 3 · 2.00 ms · 10.0× |" in lines
    assert "console: ring" in picture.read_text()


@pytest.mark.parametrize(("text", "words"), [("", "no report with"), ('{"schema": 1, "host', "isn't whole")])
def test_what_is_no_report(numbers: ModuleType, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=words):
        numbers.main(["latency", f"A={path}"])
