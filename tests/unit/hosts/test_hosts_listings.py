"""Guest code in tests/hosts is listed with its bytes: the assembler says the same."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

SUITE = Path(__file__).resolve().parents[2] / "hosts"
sys.path.insert(0, str(SUITE))

import listing  # noqa: E402  found by the line above
from listing import ORIGIN, Code, code  # noqa: E402


def listings() -> Iterator[tuple[str, Code]]:
    """Every listing there is when a module of the suite has been imported, and where it is."""
    found: list[tuple[str, Code]] = []

    def recording(bits: int, text: str) -> Code:
        caller = sys._getframe(1)
        found.append((f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}", code(bits, text)))
        return found[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "code", recording)
        for file in sorted(SUITE.glob("test_*.py")):
            spec = importlib.util.spec_from_file_location(f"_listings_of_{file.stem}", file)
            assert spec is not None and spec.loader is not None
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield from found


def parts(guest: Code) -> list[tuple[str, str]]:
    """The listing's lines as (bytes in hexadecimal, instruction); labels have no bytes."""
    lines = [line.strip() for line in guest.text.strip().splitlines()]
    pairs = [("", line) if line.endswith(":") else line.split("  ", 1) for line in lines]
    return [(bytes_.strip(), instruction.strip()) for bytes_, instruction in pairs]


def assembled(guest: Code, instructions: Sequence[str], directory: Path) -> list[str]:
    """The bytes of each instruction, in hexadecimal."""
    marked = [f"here_{number}:\n{instruction}" for number, instruction in enumerate(instructions)]
    text = [".intel_syntax noprefix", f".code{guest.bits}", *marked, f"here_{len(instructions)}:", ""]
    (directory / "a.s").write_text("\n".join(text))
    subprocess.run(("as", "--64", "a.s", "-o", "a.o"), cwd=directory, check=True)
    link = ("ld", f"-Ttext={ORIGIN:#x}", "-e", "0", "a.o", "-o", "a.elf")
    subprocess.run(link, cwd=directory, check=True)
    with (directory / "a.elf").open("rb") as file:
        image = ELFFile(file)
        data = image.get_section_by_name(".text").data()
        symbols = image.get_section_by_name(".symtab").iter_symbols()
        at = {symbol.name: symbol["st_value"] - ORIGIN for symbol in symbols}
    return [data[at[f"here_{n}"] : at[f"here_{n + 1}"]].hex(" ") for n in range(len(instructions))]


@pytest.mark.parametrize(("where", "guest"), [pytest.param(*found, id=found[0]) for found in listings()])
def test_the_bytes_are_those_of_the_instructions(where: str, guest: Code, tmp_path: Path) -> None:
    written, instructions = zip(*parts(guest), strict=True)
    right = assembled(guest, instructions, tmp_path)
    width = max(map(len, right))
    lines = (
        f"  {text:{width}}   {what}" if text else what for text, what in zip(right, instructions, strict=True)
    )
    assert list(written) == right, f"{where} should be\n" + "\n".join(lines)


def test_a_listing_knows_its_labels_and_bytes() -> None:
    guest = code(64, "first:\n  90   nop\nsecond:\n  eb fe   jmp second\n")
    assert guest.data == b"\x90\xeb\xfe"
    assert guest.at == {"first": ORIGIN, "second": ORIGIN + 1}


@pytest.mark.parametrize("line", ["nop", "90 nop", "9   nop", "xx   nop"])
def test_a_line_that_is_neither_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="HEX  INSTRUCTION"):
        code(64, line)
