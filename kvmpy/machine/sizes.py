"""Sizes of memory as people write them, checked against what the host has."""

from __future__ import annotations

import os

from kvmpy.errors import UsageError

PAGE = 4096
MAX_ADDRESS = 1 << 52
"""End of the largest guest physical address space of x86-64 (SDM vol. 3, 4.1.4: MAXPHYADDR is at most 52)."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LONGEST = 32
"""More characters than this are no size; it also keeps int() away from absurdly long digit strings."""


def host_memory() -> int:
    """Bytes of physical memory that the host's kernel manages (``MemTotal``)."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def format_size(size: int) -> str:
    """``size`` bytes for a message: ``64 MiB``, ``1.5 GiB``, ``23.5 GiB`` (rounded), ``5000 bytes``."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if abs(size) >= 1 << shift:
            number = f"{size / (1 << shift):.1f}"
            return f"{number.removesuffix('.0')} {unit}"
    return "1 byte" if size == 1 else f"{size} bytes"


def parse_size(value: int | str, what: str = "memory") -> int:
    """Bytes meant by ``value``: an int, or text such as ``"64M"``, ``"1.5G"``, ``"0x200000"``, ``"256 KiB"``.

    Units are powers of 1024 in either case, with or without ``B`` or ``iB``; no unit means bytes. The text
    may mean 0 or an odd number of bytes: :func:`memory_size` has the limits. ``what`` is named in errors.
    Raises UsageError for anything that isn't a whole number of bytes.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    size = _parse(value) if isinstance(value, str) and value.isascii() and len(value) <= _LONGEST else None
    if size is None:
        shown = repr(value) if len(repr(value)) <= _LONGEST + 2 else repr(value)[:_LONGEST] + "...'"
        raise UsageError(
            f"{what}: {shown} is not a size; give a number with K, M, G or T, such as 64M or 1.5G"
        )
    return size


def memory_size(value: int | str, what: str = "memory", limit: int | None = None) -> int:
    """Bytes of guest memory meant by ``value`` (as for :func:`parse_size`): whole 4 KiB pages, at least one.

    ``limit`` is the most there may be, by default what the host has. Raises UsageError that names the value
    and the limit.
    """
    size = check_pages(parse_size(value, what), what, value)
    most = host_memory() if limit is None else limit
    if size > most:
        whose = "this host has" if limit is None else "allowed"
        raise UsageError(
            f"{what}: {_shown(value, size)} is more than the {format_size(most)} {whose}; ask for less"
        )
    return size


def check_pages(size: int, what: str = "memory", value: int | str | None = None) -> int:
    """``size`` if it is a positive number of whole 4 KiB pages, else UsageError."""
    shown = _shown(size if value is None else value, size)
    if size <= 0:
        raise UsageError(f"{what}: {shown} is too small; the least is one page of {PAGE} bytes")
    if size % PAGE:
        hint = f"; {size}M would be megabytes" if size < PAGE else ""
        raise UsageError(f"{what}: {shown} is not a multiple of the page size {PAGE}{hint}")
    if size > MAX_ADDRESS:
        raise UsageError(f"{what}: {shown} is more than the {format_size(MAX_ADDRESS)} x86-64 can address")
    return size


def _parse(text: str) -> int | None:
    body = text.strip().upper()
    try:
        if body.startswith("0X") and "_" not in body:
            return int(body, 16)
    except ValueError:
        return None
    negative = body.startswith("-")
    number = body.lstrip("+-") if body[:1] in {"+", "-"} and body[1:2] not in {"+", "-"} else body
    digits = number.rstrip("BIKMGT ")
    unit = number[len(digits) :].strip()
    if unit not in {"", "B"} and unit[1:] not in {"", "B", "IB"}:
        return None
    scale = _UNITS.get(unit[:1] if unit != "B" else "")
    whole, point, fraction = digits.partition(".")
    if scale is None or not whole.isdigit() or (point and not fraction.isdigit()):
        return None
    parts: int = 10 ** len(fraction)
    size, rest = divmod(int(whole + fraction) * scale, parts)
    if rest:
        return None
    return -size if negative else size


def _shown(value: int | str, size: int) -> str:
    if isinstance(value, str):
        return value.strip()
    return f"{value} bytes" if abs(size) < 1 << 20 else f"{value} bytes ({format_size(size)})"
