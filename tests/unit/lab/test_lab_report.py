"""Reports: what is damaged or another's is told, and every form says the same numbers."""

from __future__ import annotations

import csv
import io
import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from lab_reports import HZ, numbers, report, result

from kvmpy.lab import exports, text
from kvmpy.lab import report as r
from kvmpy.lab.page import page
from kvmpy.lab.plot import check as check_plot


def whole() -> dict[str, Any]:
    first = result("outl_to_user", 20_000, 19_800)
    first["split"] = {
        name: numbers([length] * 100) for name, length in (("out", 8000), ("handler", 100), ("in", 11900))
    }
    return report(first, result("cpuid", 5_000))


def written(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "report.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_written_and_read(tmp_path: Path) -> None:
    path = str(tmp_path / "r.json")
    r.save(path, r.dumps(whole()))
    assert r.load(path) == whole()
    assert os.listdir(tmp_path) == ["r.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "another"}, "isn't a report of exit latencies"),
        ({"version": 99}, "version 99"),
        ({"results": None}, "results is NoneType"),
        ({"clock": {"hz": 0}}, "clock.hz is 0"),
        ({"clock": {}}, "clock.hz is None"),
        ({"results": [3]}, "a result is int"),
        ({"results": [{}]}, "kind is missing"),
        ({"results": [{**result("a", 100), "histogram": "???"}]}, "not a compressed histogram"),
        ({"results": [{**result("a", 100), "samples": 1}]}, "its histogram holds"),
        ({"results": [{**result("a", 100), "rounds": [{"p50": -1}]}]}, "p50 is -1"),
        ({"results": [{**result("a", 100), "rounds": [{"ratio": "x"}]}]}, "ratio is 'x'"),
        ({"results": [{**result("a", 100), "rounds": [7]}]}, "p50 is None"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = written(tmp_path, {**whole(), **change})
    with pytest.raises(r.ReportError) as caught:
        r.load(path)
    assert words in str(caught.value) and path in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"x"', "[" * 100_000])
def test_no_report_at_all(tmp_path: Path, content: str) -> None:
    with pytest.raises(r.ReportError):
        r.load(written(tmp_path, content))


def test_every_cut_of_a_report_is_told(tmp_path: Path) -> None:
    content = json.dumps(whole())
    for length in range(0, len(content), 397):
        with pytest.raises(r.ReportError):
            r.load(written(tmp_path, content[:length]))


def test_a_file_that_isnt_there(tmp_path: Path) -> None:
    with pytest.raises(r.ReportError, match="No such file"):
        r.load(str(tmp_path / "nowhere"))


def test_saving_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        r.save(str(tmp_path / "no" / "r.json"), "x")
    assert caught.value.filename == str(tmp_path / "no" / "r.json")


def test_saving_to_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    r.save(str(path), "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(exports.csv(whole()))))
    assert [row["kind"] for row in rows] == ["outl_to_user", "cpuid"]
    assert float(rows[0]["p50_ns"]) == pytest.approx(float(rows[0]["p50_cycles"]) * 1e9 / HZ)
    assert (rows[0]["handler_p50_ns"], rows[1]["handler_p50_ns"]) == ("50.0", "")
    assert (rows[0]["floor_ratio"], rows[1]["floor_ratio"]) == ("1.01000", "")


def test_openmetrics_is_what_prometheus_reads() -> None:
    lines = exports.openmetrics(whole()).splitlines()
    assert lines[-1] == "# EOF"
    samples = [line for line in lines if not line.startswith("#")]
    assert len(samples) == len(set(samples))
    for line in samples:
        name, _, rest = line.partition("{")
        labels, _, value = rest.rpartition("} ")
        assert name.startswith("kvmpy_") and labels
        float(value)
    # The textfile collector reads the older text format: it knows these types, and refuses a file with others.
    types = {line.split()[-1] for line in lines if line.startswith("# TYPE")}
    assert types <= {"counter", "gauge", "histogram", "summary", "untyped"}
    assert 'cpu="A \\"CPU\\" <1>"' in "\n".join(samples)
    count = [line for line in samples if line.startswith('kvmpy_exit_latency_seconds_count{kind="cpuid"')]
    assert count == ['kvmpy_exit_latency_seconds_count{kind="cpuid",engine="kvm"} 2000']


def all_interrupted() -> dict[str, Any]:
    """A kind in all of whose samples the scheduler took the CPU away."""
    found = result("hlt", 1000)
    apart = found["histogram"]
    found.update(numbers([]), interrupted=2000, interrupted_histogram=apart, rounds=[])
    return found


def test_what_was_interrupted_is_shown_and_is_no_time_of_zero() -> None:
    found = report(all_interrupted(), result("cpuid", 900))
    (row, _) = csv.DictReader(io.StringIO(exports.csv(found)))
    assert (row["samples"], row["interrupted"], row["p50_ns"], row["min_cycles"]) == ("0", "2000", "", "")
    lines = exports.openmetrics(found).splitlines()
    assert not any('kind="hlt"' in line and "quantile" in line for line in lines)
    assert 'kvmpy_exit_latency_seconds_count{kind="hlt",engine="kvm"} 0' in lines
    content = page(found)
    assert (
        "<td>hlt</td>" in content
        and f"<td>({text.nanoseconds(text.interrupted_median(all_interrupted(), HZ))})" in content
    )
    assert page(report(all_interrupted()))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "data")]
        if tag not in ("meta", "line", "polyline", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_needs_nothing() -> None:
    content = page(whole())
    found = _Page()
    found.feed(content)
    found.close()
    assert found.open == []
    assert not found.links and "script" not in found.tags and "http" not in content
    assert 'A "CPU" <1>' in found.text and "this & that" in found.text
    assert "polyline" in found.tags and "rect" in found.tags
    assert "10.0 µs" in found.text


def test_a_partial_report_says_so_everywhere() -> None:
    partial = whole()
    partial["partial"] = "interrupted by Ctrl-C"
    assert "interrupted by Ctrl-C" in page(partial)
    assert text.notes(partial)[0] == "PARTIAL: interrupted by Ctrl-C"
    assert 'partial="interrupted by Ctrl-C"' in exports.openmetrics(partial)


def test_an_empty_report_can_be_shown() -> None:
    empty = report()
    empty["settings"]["engines"] = ["kvm"]
    assert exports.openmetrics(empty) and exports.csv(empty) and page(empty)
    assert text.tables(empty) == [] and text.split_table(empty) is None


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("suffix", "magic"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_pictures(tmp_path: Path, suffix: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'kvmpy[plot]'")
    from kvmpy.lab.plot import plot

    path = tmp_path / f"picture{suffix}"
    plot(whole(), str(path))
    assert path.read_bytes().startswith(magic)


def test_a_picture_of_another_kind() -> None:
    from kvmpy.errors import UsageError

    with pytest.raises(UsageError, match=r"must end with one of \.svg"):
        check_plot("picture.gif")


@pytest.mark.parametrize(
    ("ns", "words"),
    [(0, "0 ns"), (843.4, "843 ns"), (999.6, "1.00 µs"), (9420, "9.42 µs"), (25_140, "25.1 µs"), (131_000, "131 µs"),
     (1.5e6, "1.50 ms"), (2.5e9, "2.50 s")],
)  # fmt: skip
def test_times_in_words(ns: float, words: str) -> None:
    assert text.nanoseconds(ns) == words


def test_reasons_that_many_share_are_said_once() -> None:
    many = whole()
    many["unavailable"] = [{"kind": kind, "engine": "kvm", "reason": "no"} for kind in ("a", "b")]
    assert text.missing(many) == ["kvm: not measured: a, b: no"]


def test_a_sparkline_has_its_peak_where_the_values_are() -> None:
    histogram = r.histogram_of(numbers([1000] * 90 + [10_000] * 10))
    line = text.sparkline(histogram)
    assert len(line) == text.COLUMNS and line[0] == "█"
