"""ELF32 and ELF64 executables: where they go, how they start, and every way they can be bad."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from boot_images import (
    EM_386,
    EM_AARCH64,
    EM_X86_64,
    ET_DYN,
    ET_REL,
    MIB,
    PT_DYNAMIC,
    PT_INTERP,
    PT_NOTE,
    Piece,
    elf,
)  # fmt: skip

from kvmpy.boot import BootOptions, Chunk, Payload, load
from kvmpy.errors import ImageError, UsageError

HALT = b"\xf4"
HIGH = 0xFFFFFFFF80000000


def boot(data: bytes, memory: int = 64 * MIB, **options: object) -> Payload:
    return load(data, BootOptions(memory, name="guest.elf", **options))  # type: ignore[arg-type]


def refused(data: bytes, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        boot(data, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith("guest.elf: ")
    assert "\n" not in message
    return message


def test_elf64_starts_in_long_mode() -> None:
    payload = boot(elf([Piece(b"text", 0x400000, flags=5), Piece(b"data!", 0x600000, size=0x2005, flags=6)]))
    assert payload.format == "elf"
    assert payload.chunks == [Chunk(0x400000, b"text"), Chunk(0x600000, b"data!", zero=0x2000)]
    assert (payload.entry.mode, payload.entry.reg("rip")) == ("long", 0x400000)
    assert payload.notes == []


def test_elf32_starts_in_protected_mode() -> None:
    payload = boot(elf([Piece(b"text", MIB)], bits=32, entry=MIB + 2))
    assert (payload.entry.mode, payload.entry.reg("rip")) == ("protected", MIB + 2)


def test_elf32_with_64_bit_code_starts_in_long_mode() -> None:
    assert boot(elf([Piece(HALT, MIB)], bits=32, machine=EM_X86_64)).entry.mode == "long"


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("mode", "address", "base", "ip"),
    [
        ("real", 0x2000, 0, 0x2000),
        ("real", 0x23000, 0x20000, 0x3000),
        ("protected", MIB, 0, MIB),
        ("long", MIB, 0, MIB),
    ],
)
def test_mode_can_be_forced(bits: int, mode: str, address: int, base: int, ip: int) -> None:
    state = boot(elf([Piece(HALT, address)], bits=bits), mode=mode).entry
    assert (state.mode, state.segments["cs"].base, state.reg("rip")) == (mode, base, ip)


def test_entry_can_be_forced() -> None:
    assert boot(elf([Piece(HALT * 16, MIB)]), entry=MIB + 8).entry.reg("rip") == MIB + 8


def test_entry_follows_a_segment_loaded_elsewhere_than_linked() -> None:
    image = elf([Piece(HALT * 16, 0x200000, virtual=0xC0200000)], bits=32, entry=0xC0200008)
    assert boot(image).entry.reg("rip") == 0x200008


def test_higher_half_segments_are_mapped() -> None:
    from kvmpy.x86 import paging

    pieces = [
        Piece(HALT * 8192, MIB, virtual=HIGH + MIB),
        Piece(b"data", MIB + 0x2800, virtual=HIGH + MIB + 0x2800, size=0x3000),
    ]
    payload = boot(elf(pieces, entry=HIGH + MIB + 4))
    state = payload.entry
    assert state.reg("rip") == HIGH + MIB + 4
    assert payload.notes == []
    memory = bytearray(8 * MIB)
    for at, contents in state.memory:
        memory[at : at + len(contents)] = contents

    def walk(virtual: int) -> int:
        table = state.cr3
        for shift in (39, 30, 21, 12):
            entry = int.from_bytes(memory[table + (virtual >> shift & 511) * 8 :][:8], "little")
            assert entry & paging.PRESENT
            table = entry & 0xFFFFFFFFFF000
            if shift == 12 or entry & paging.LARGE:
                mask = (1 << shift) - 1
                return (table & ~mask) | (virtual & mask)
        raise AssertionError

    for virtual, physical in (
        (HIGH + MIB + 4, MIB + 4),
        (HIGH + MIB + 0x57FF, MIB + 0x57FF),
        (MIB, MIB),
        (0xFEE00000, 0xFEE00000),
    ):
        assert walk(virtual) == physical


def test_higher_half_segments_may_share_a_page() -> None:
    pieces = [
        Piece(b"text", MIB, virtual=HIGH + MIB),
        Piece(b"data", MIB + 0x800, virtual=HIGH + MIB + 0x800),
    ]
    assert boot(elf(pieces, entry=HIGH + MIB)).entry.reg("rip") == HIGH + MIB
    pieces[1] = Piece(b"data", 2 * MIB + 0x800, virtual=HIGH + MIB + 0x800)
    assert "overlaps" in refused(elf(pieces, entry=HIGH + MIB))


def test_segment_that_no_page_can_show_where_it_is_linked() -> None:
    payload = boot(elf([Piece(HALT * 16, MIB, virtual=HIGH + 8)], entry=HIGH + 12))
    assert payload.entry.reg("rip") == MIB + 4
    assert "only mapped where it is loaded, at 0x100000" in payload.notes[0]


def test_segment_linked_over_physical_memory_is_seen_only_there() -> None:
    payload = boot(elf([Piece(HALT * 16, MIB, virtual=0x800000)], entry=0x800004))
    assert payload.entry.reg("rip") == MIB + 4
    assert payload.notes == [
        "ELF segment 0, linked at 0x800000, is only mapped where it is loaded, at 0x100000"
    ]


def test_tables_give_way_to_segments() -> None:
    pieces = [Piece(b"low", 0x1000, size=0x9E000), Piece(HALT, MIB)]
    state = boot(elf(pieces, entry=MIB), memory=16 * MIB).entry
    assert state.collides(0x1000, 0x9E000) is None
    assert state.collides(MIB, 1) is None
    assert state.reg("rsp") > MIB


def test_headers_that_load_nothing_are_passed_over() -> None:
    pieces = [
        Piece(HALT, MIB),
        Piece(b"note", 0, type=PT_NOTE),
        Piece(b"", 0, size=0),
        Piece(b"x", 0, type=0x6474E551),
    ]
    assert boot(elf(pieces)).chunks == [Chunk(MIB, HALT)]


ONE = [Piece(HALT * 64, MIB)]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"\x7fELF", "truncated ELF file: 4 bytes"),
        (elf(ONE)[:63], "truncated ELF file: 63 bytes, the ELF64 header has 64"),
        (elf(ONE)[:100], "program headers end at byte 120, the file has 100 bytes"),
        (elf(ONE)[:4100], "ELF segment 0 is truncated: it ends at byte 4160, the file has 4100 bytes"),
        (elf(ONE, bits=32)[:50], "the ELF32 header has 52"),
        (elf(ONE)[:4] + b"\x03" + elf(ONE)[5:], "ELF class 3 is unknown"),
        (elf(ONE, little=2), "byte order 2 isn't x86's"),
        (elf(ONE, machine=EM_AARCH64), "for another machine (AARCH64): x86 or x86-64"),
        (elf(ONE, machine=0xABCD), "for another machine (code 43981)"),
        (elf(ONE, machine=EM_386), "class and machine disagree"),
        (elf(ONE, type=ET_DYN), "position independent or a shared library: link it at a fixed address"),
        (elf(ONE, type=ET_REL), "an object file: link it"),
        (elf(ONE, type=0x1234), "of type code 4660"),
        (
            elf([*ONE, Piece(b"/lib/ld.so", 0, type=PT_INTERP)]),
            "dynamically linked ELF file (it has PT_INTERP)",
        ),
        (elf([*ONE, Piece(b"", 0, type=PT_DYNAMIC)]), "dynamically linked ELF file (it has PT_DYNAMIC)"),
        (elf(ONE, phentsize=32), "program headers of 32 bytes: those of ELF64 have 56"),
        (elf(ONE, phnum=0), "nothing to load (0 program headers"),
        (elf(ONE, phnum=65535), "65535 ELF program headers: no more than 512"),
        (elf(ONE, phoff=1 << 62), "truncated ELF file: program headers end at byte 4611686018427387960"),
        (elf([Piece(b"", 0, type=PT_NOTE)]), "nothing to load (1 program headers, no PT_LOAD)"),
        (elf([Piece(HALT * 8, MIB, size=4)]), "has 8 bytes in the file, but only 4 in memory"),
        (elf([Piece(HALT, MIB, offset=1 << 40)]), "is truncated: it ends at byte 1099511627777"),
        (
            elf([Piece(HALT, 64 * MIB)]),
            "ELF segment 0 at 0x4000000-0x4000000 lies outside memory (RAM: 0x0-0x3ffffff)",
        ),
        (
            elf([Piece(HALT, MIB, size=1 << 63)]),
            "ELF segment 0 at 0x100000-0x80000000000fffff lies outside memory",
        ),
        (elf([Piece(HALT, (1 << 64) - 4096, size=1 << 63)]), "lies outside memory"),
        (
            elf([*ONE, Piece(HALT * 8, MIB + 60)]),
            "ELF segment 1 at 0x10003c-0x100043 overlaps ELF segment 0 at 0x100000-0x10003f",
        ),
        (elf(ONE, entry=MIB + 64), "entry point 0x100040 lies in none of its segments (0x100000-0x10003f)"),
        (elf(ONE, entry=0), "entry point 0x0 lies in none"),
    ],
)
def test_bad_elf(image: bytes, message: str) -> None:
    assert message in refused(image, format="elf")


def test_forced_on_something_else() -> None:
    assert "begins with 00 01 02 03, not 7f 45 4c 46" in refused(bytes(range(64)), format="elf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "real"}, "entry 0x100000 is out of reach in this mode: it must be below 0x100000"),
        ({"entry": 0x5000000}, "entry 0x5000000 lies outside memory"),
        ({"entry": 0x5000000, "mode": "protected"}, "entry 0x5000000 lies outside memory"),
        ({"entry": 1 << 32, "mode": "protected"}, "must be below 0x100000000"),
        ({"memory": 0x80000}, "ELF segment 0 at 0x100000-0x10003f lies outside memory (RAM: 0x0-0x7ffff)"),
    ],
)
def test_entry_and_memory_that_do_not_fit(options: dict[str, object], message: str) -> None:
    assert message in refused(elf(ONE), **options)


def test_options_without_use() -> None:
    for options in ({"load_address": 0x1000}, {"initrd": b"x"}, {"modules": [("m", b"", "")]}):
        with pytest.raises(UsageError, match=r"the elf format has no use for"):
            boot(elf(ONE), **options)


def test_nothing_is_copied() -> None:
    chunk = boot(elf([Piece(bytes(MIB), MIB)])).chunks[0]
    assert isinstance(chunk.data, memoryview)


def test_segment_may_lie_across_two_slots() -> None:
    ram = [(0, MIB), (MIB, MIB)]
    payload = boot(elf([Piece(bytes(8192), MIB - 4096)]), memory=2 * MIB, ram=ram)
    assert payload.chunks[0].end == MIB + 4096


def test_pyelftools_is_imported_for_elf_files_only() -> None:
    program = """
import sys
from kvmpy.boot import BootOptions, load
for mode in ("real", "protected", "long"):
    load(b"\\xf4", BootOptions(1 << 26, mode=mode))
print([name for name in ("elftools", "typing", "dataclasses", "re", "kvmpy.boot.elf") if name in sys.modules])
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(root)},
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("bits", "emulation"), [(32, "elf_i386"), (64, "elf_x86_64")])
def test_what_the_gnu_tools_make(bits: int, emulation: str, tmp_path: Path) -> None:
    if shutil.which("as") is None or shutil.which("ld") is None:
        pytest.skip("no GNU as and ld here (package binutils)")
    source = ".globl _start\n.text\nnop\n_start: hlt\n.data\n.long 0x12345678\n.bss\n.skip 5000\n"
    built, out = tmp_path / "a.o", tmp_path / "a.elf"
    subprocess.run(["as", f"--{bits}", "-o", built, "-"], input=source.encode(), check=True)
    link = ["ld", "-m", emulation, "-static", "-Ttext=0x200000", "-Tdata=0x300000", "-z", "noseparate-code"]
    subprocess.run([*link, "-o", out, built], check=True)
    payload = boot(out.read_bytes())
    assert payload.entry.reg("rip") == 0x200001
    assert payload.entry.mode == ("long" if bits == 64 else "protected")
    data = next(chunk for chunk in payload.chunks if chunk.gpa <= 0x300000 < chunk.end)
    assert bytes(data.data[0x300000 - data.gpa :][:4]) == b"\x78\x56\x34\x12"
    assert data.zero >= 5000
