"""Memory sizes as people write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import UsageError
from kvmpy.machine.sizes import check_pages, format_size, host_memory, memory_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("64MB", 64 << 20),
        ("64 MiB", 64 << 20),
        (" 1.5G ", 3 << 29),
        ("0.25k", 256),
        ("2T", 2 << 40),
        ("512B", 512),
        ("0x200000", 2 << 20),
        ("0XFF", 255),
        ("-1M", -1 << 20),
        ("+1M", 1 << 20),
        ("0", 0),
        (12345, 12345),
    ],
)
def test_text_means_bytes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "M", "x", "1.3", "1e3", "1.M", ".5G", "5P", "64MM", "64iB", "64Bi", "--1", "+-1", "1_000", "0x", "0x1_0",
     "1..5M", "0x1M", "٣", "9" * 5000, True, None, 1.5, b"64M"],
)  # fmt: skip
def test_what_is_no_size_is_named(text: object) -> None:
    with pytest.raises(
        UsageError, match=r"^--memory: .* is not a size; give a number with K, M, G or T"
    ) as caught:
        parse_size(text, "--memory")  # type: ignore[arg-type]
    assert len(str(caught.value)) < 150
    assert str(text)[:20] in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, r"^memory: 0 bytes is too small; the least is one page of 4096 bytes$"),
        ("0M", r"^memory: 0M is too small"),
        (-4096, r"^memory: -4096 bytes is too small"),
        ("-64M", r"^memory: -64M is too small"),
        (4097, r"^memory: 4097 bytes is not a multiple of the page size 4096$"),
        ("64", r"^memory: 64 is not a multiple of the page size 4096; 64M would be megabytes$"),
        ("1.001M", r"not a size"),
        ("5T", r"^memory: 5T is more than the 1 TiB allowed; ask for less$"),
        (1 << 41, r"^memory: 2199023255552 bytes \(2 TiB\) is more than the 1 TiB allowed"),
        (1 << 60, r"more than the 4096 TiB x86-64 can address"),
    ],
)
def test_bad_memory_sizes_name_value_and_limit(value: int | str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        memory_size(value, limit=1 << 40)


def test_the_host_is_the_limit() -> None:
    have = host_memory()
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert have == total
    assert memory_size(have // 4096 * 4096) == have // 4096 * 4096
    with pytest.raises(UsageError, match=r"is more than the \S+ \wiB this host has; ask for less$"):
        memory_size(have // 4096 * 4096 + 4096)


def test_smallest_memory_is_a_page() -> None:
    assert memory_size(os.sysconf("SC_PAGE_SIZE")) == 4096
    assert check_pages(4096) == 4096


def test_format() -> None:
    sizes = [1, 5000, 4096, 64 << 20, 3 << 29, 1 << 40, 0]
    shown = ["1 byte", "4.9 KiB", "4 KiB", "64 MiB", "1.5 GiB", "1 TiB", "0 bytes"]
    assert [format_size(size) for size in sizes] == shown


@given(st.integers(0, 1 << 20), st.sampled_from(["K", "M", "G", "T"]), st.sampled_from(["", "B", "iB"]))
def test_whole_numbers_scale(number: int, unit: str, tail: str) -> None:
    assert parse_size(f"{number}{unit}{tail}") == number << (10 * (1 + "KMGT".index(unit)))


@given(st.text(max_size=40))
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        assert isinstance(parse_size(text), int)
    except UsageError as error:
        assert "\n" not in str(error)
