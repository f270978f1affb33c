"""Builds the bundled guests: guest_images/*.s and images.toml in; one image file each and index.json out.

Run when the package is built, by file path and before the package is installed: standard library only.
Works with GCC and Clang on x86-64; the same tools give the same bytes, wherever the sources lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1  # of index.json; kvmpy/boot/bundled.py reads it

SUFFIXES = {"flat": "bin", "elf": "elf"}
# What a guest's table in images.toml may hold besides the required fields, and what a missing one means.
DEFAULTS: dict[str, Any] = {
    "cpus": 1, "irqchip": "none", "memory": "2M", "serial_input": False, "status": 0, "paravirt": False, "group": "",
}  # fmt: skip
REQUIRED = ("summary", "mode", "format", "load_address", "ends")
CHOICES = {
    "mode": ("real", "protected", "long"),
    "format": tuple(SUFFIXES),
    "irqchip": ("none", "kernel"),
    "ends": ("halt", "exit", "crash", "never"),
    "serial_input": (False, True),
    "paravirt": (False, True),
}
RANGES = {"load_address": (0, (1 << 32) - 1), "cpus": (1, 255), "status": (0, 119)}
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

# Every choice that a distribution's compiler may have made differently is made here: no position-independent
# code, no C library, no notes that carry a hash of the file, no symbols, no executable stack.
FLAGS = ("-m64", "-nostdlib", "-static", "-no-pie", "-Wa,--noexecstack", "-Wl,--build-id=none", "-Wl,-s")


class ImageBuildError(Exception):
    """A guest can't be built; ``str()`` is one line that says which, why and what to do."""


def build_images(
    source_dir: str | os.PathLike[str], output_dir: str | os.PathLike[str], cc: str | Sequence[str] = "gcc"
) -> list[Path]:
    """Build every guest that ``source_dir``/images.toml names; returns the files written to ``output_dir``.

    ``cc`` is the C compiler: a command line ("gcc -pthread") or its words. Nothing is done when
    ``output_dir`` already holds what these sources and this compiler give. A failure leaves the old
    files as they were. Raises ImageBuildError.
    """
    source, output = Path(source_dir), Path(output_dir)
    command = shlex.split(cc) if isinstance(cc, str) else list(cc)
    guests = read_metadata(source / "images.toml")
    digest = _digest(source, command)
    old = _read_index(output)
    if old.get("sources") == digest and all((output / name).is_file() for name in _files(old)):
        return [output / name for name in (*_files(old), "index.json")]

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=output) as scratch:
        for guest in guests:
            _assemble(source, guest, Path(scratch) / guest["file"], command)
        index = {"schema": SCHEMA, "sources": digest, "images": guests}
        text = json.dumps(index, indent=1) + "\n"
        (Path(scratch) / "index.json").write_text(text, encoding="utf-8")
        for name in (*_files(index), "index.json"):  # the index last: it vouches for the others
            (Path(scratch) / name).replace(output / name)
    for name in set(_files(old)) - set(_files(index)):
        (output / name).unlink(missing_ok=True)
    return [output / name for name in (*_files(index), "index.json")]


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """The guests of an images.toml in its order, checked and with defaults filled in."""
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ImageBuildError(f"{path}: {error}") from error
    return [_check(name, table) for name, table in tables.items()]


def _check(name: str, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ImageBuildError(f"images.toml: {name!r} is not a table; write [{name}] and its fields below it")
    for field in REQUIRED:
        if field not in table:
            raise ImageBuildError(f"images.toml: guest {name}: field {field!r} is missing")
    for field in table:
        if field not in DEFAULTS and field not in REQUIRED:
            known = ", ".join((*REQUIRED, *DEFAULTS))
            raise ImageBuildError(f"images.toml: guest {name}: unknown field {field!r} (there are {known})")
    guest: dict[str, Any] = {"name": name, **DEFAULTS, **table}
    for field, choices in CHOICES.items():
        if guest[field] not in choices or type(guest[field]) is not type(choices[0]):
            raise ImageBuildError(
                f"images.toml: guest {name}: {field} is {guest[field]!r},"
                f" not one of {', '.join(map(str, choices))}"
            )
    for field, (low, high) in RANGES.items():
        if not isinstance(guest[field], int) or not low <= guest[field] <= high:
            raise ImageBuildError(
                f"images.toml: guest {name}: {field} is {guest[field]!r}, not in {low:#x}-{high:#x}"
            )
    if guest["group"] and not name.startswith(f"{guest['group']}-"):
        raise ImageBuildError(
            f"images.toml: guest {name}: of the group {guest['group']!r} is {guest['group']}-…"
        )
    guest["memory"] = _size(name, guest["memory"])
    guest["file"] = f"{name}.{SUFFIXES[guest['format']]}"
    if guest["ends"] in ("crash", "never"):
        guest["status"] = None  # it sets none
    return guest


def _size(name: str, value: object) -> int:
    text = str(value)
    unit = UNITS.get(text[-1:], 1)
    digits = text if unit == 1 else text[:-1]
    if not digits.isdecimal() or int(digits) == 0:
        raise ImageBuildError(
            f"images.toml: guest {name}: memory is {value!r}, not a size such as 65536 or 64M"
        )
    return int(digits) * unit


def _assemble(source: Path, guest: dict[str, Any], target: Path, command: Sequence[str]) -> None:
    """Assemble and link one guest. Paths are relative to the sources, so no path gets into the result."""
    name, form = guest["name"], guest["format"]
    if not (source / f"{name}.s").is_file():
        raise ImageBuildError(f"guest {name}: its source {source / f'{name}.s'} is missing")
    link = [
        f"-Wl,-T,lib/{form}.ld",
        f"-Wl,--defsym=LOAD_ADDRESS={guest['load_address']:#x}",
        "-Wl,-z,max-page-size=4096",
    ]
    if form == "flat":
        link.append("-Wl,--oformat,binary")
    arguments = [*command, *FLAGS, *link, "-o", str(target.resolve()), f"{name}.s"]
    environment = {**os.environ, "LC_ALL": "C"}  # error messages are searched below
    try:
        result = subprocess.run(
            arguments, cwd=source, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except (FileNotFoundError, PermissionError, IndexError) as error:
        raise ImageBuildError(
            f"guest {name}: no C compiler {' '.join(command[:1])!r}: install the package gcc"
        ) from error
    if result.returncode != 0 or not target.is_file():
        raise ImageBuildError(f"guest {name}: {_reason(command, result.stderr)}")


def _reason(command: Sequence[str], stderr: str) -> str:
    """One line for why the compiler failed; a missing assembler or linker is named by its package."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for line in lines:
        missing = "cannot execute" in line or "cannot find 'ld'" in line or "unable to execute" in line
        if missing or "invalid linker name" in line:
            return f"{command[0]} finds no assembler or linker ({line}): install the package binutils"
    noise = ("collect2:", "warning:", "linker command failed", "Assembler messages:")
    telling = [line for line in lines if not any(word in line for word in noise)] or lines or ["no message"]
    errors = [line for line in telling if "error" in line.lower()]
    return f"{command[0]} failed: {(errors or telling)[0]}"


def _digest(source: Path, command: Sequence[str]) -> str:
    """A hash of what the images are made from: sources, this builder and the compiler's command line."""
    digest = hashlib.sha256(repr((SCHEMA, tuple(command))).encode())
    for path in [Path(__file__), *_sources(source)]:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ImageBuildError(f"{path}: {error.strerror}") from error
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _sources(source: Path) -> Iterable[Path]:
    return sorted(p for p in source.rglob("*") if p.suffix in (".s", ".inc", ".ld", ".toml"))


def _read_index(output: Path) -> dict[str, Any]:
    try:
        index = json.loads((output / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) and index.get("schema") == SCHEMA else {}


def _files(index: dict[str, Any]) -> list[str]:
    return [image["file"] for image in index.get("images", [])]


def main(arguments: Sequence[str]) -> int:
    """``python native/images.py SOURCES OUTPUT [CC]``: for trying a guest without building the package."""
    if len(arguments) not in (2, 3):
        print("usage: images.py SOURCES OUTPUT [CC]", file=sys.stderr)
        return 2
    try:
        for path in build_images(*arguments):
            print(f"{path.stat().st_size:8} {path}")
    except ImageBuildError as error:
        print(f"images.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
