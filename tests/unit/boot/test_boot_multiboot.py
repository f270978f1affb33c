"""Multiboot 1: header, loading, information structure, modules, and every way a kernel can be bad."""

from __future__ import annotations

import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from boot_images import MIB, Piece, elf, kludge, multiboot_elf, multiboot_header

from kvmpy.boot import BootOptions, Chunk, Payload, load
from kvmpy.boot.memory_map import lower_kib, memory_map, upper_kib
from kvmpy.errors import ImageError, UsageError

CODE = b"\xf4"


def boot(data: bytes, memory: int = 64 * MIB, **options: object) -> Payload:
    options.setdefault("name", "kernel")
    return load(data, BootOptions(memory, **options))  # type: ignore[arg-type]


def refused(data: bytes, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        boot(data, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith("kernel: ")
    assert "\n" not in message
    return message


class Guest:
    """Reads a payload as the kernel would: from memory, starting at EBX."""

    def __init__(self, payload: Payload) -> None:
        self.chunks = payload.chunks
        self.info = payload.entry.reg("rbx")
        self.flags = self.word(self.info)

    def read(self, at: int, length: int) -> bytes:
        for chunk in self.chunks:
            if chunk.gpa <= at and at + length <= chunk.end:
                return (bytes(chunk.data) + bytes(chunk.zero))[at - chunk.gpa :][:length]
        raise AssertionError(f"nothing at {at:#x}")

    def word(self, at: int) -> int:
        return int.from_bytes(self.read(at, 4), "little")

    def field(self, offset: int) -> int:
        return self.word(self.info + offset)

    def string(self, at: int) -> str:
        text = b""
        while (byte := self.read(at, 1)) != b"\0":
            text, at = text + byte, at + 1
        return text.decode()

    def modules(self) -> list[tuple[bytes, str, int]]:
        found = []
        for number in range(self.field(20)):
            start, end, text, zero = struct.unpack("<4I", self.read(self.field(24) + 16 * number, 16))
            assert zero == 0
            found.append((self.read(start, end - start) if start < end else b"", self.string(text), start))
        return found

    def areas(self) -> list[tuple[int, int, int]]:
        at, end = self.field(48), self.field(48) + self.field(44)
        found = []
        while at < end:
            size, start, length, kind = struct.unpack("<IQQI", self.read(at, 24))
            found.append((start, length, kind))
            at += size + 4
        assert at == end
        return found


def test_machine_state_is_what_the_specification_asks_for() -> None:
    state = boot(multiboot_elf()).entry
    assert (state.mode, state.reg("rax"), state.reg("rip")) == ("protected", 0x2BADB002, MIB + 12)
    assert state.cr0 & 1 == 1
    assert state.cr0 >> 31 == 0
    assert state.reg("rflags") & (1 << 9 | 1 << 17) == 0
    code = state.segments["cs"]
    assert (code.base, code.limit, code.db, code.type & 0xA) == (0, 0xFFFFFFFF, 1, 0xA)
    for name in ("ds", "es", "fs", "gs", "ss"):
        data = state.segments[name]
        assert (data.base, data.limit, data.type & 0xA) == (0, 0xFFFFFFFF, 2)


def test_information_structure() -> None:
    guest = Guest(boot(multiboot_elf(), append="console=serial quiet"))
    assert guest.flags == 0x24D  # memory, command line, modules, memory map, loader name
    assert (guest.field(4), guest.field(8)) == (639, 63 * 1024)
    assert guest.string(guest.field(16)) == "kernel console=serial quiet"
    assert guest.field(20) == 0
    assert guest.string(guest.field(64)) == "kvmpy"
    assert guest.areas() == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        (0xF0000, 0x10000, 2),
        (MIB, 63 * MIB, 1),
        (0xFEFFC000, 0x1004000, 2),
    ]
    assert guest.info + 4096 < 0x9FC00
    assert guest.read(guest.info + 72, 48) == bytes(48)


def test_without_arguments_the_command_line_is_the_name() -> None:
    guest = Guest(boot(multiboot_elf(), name="tests/apic.elf"))
    assert guest.string(guest.field(16)) == "tests/apic.elf"


def test_memory_map_with_a_hole() -> None:
    ram = [(0, 3 << 30), (4 << 30, 2 << 30)]
    assert memory_map(ram)[3:] == [
        (MIB, (3 << 30) - MIB, 1),
        (0xFEFFC000, 0x1004000, 2),
        (4 << 30, 2 << 30, 1),
    ]
    assert upper_kib(ram) == 3 * MIB - 1024
    assert upper_kib([(0, 8 << 30)]) == 4 * MIB - 1024
    assert memory_map([(0, 8 << 30)])[-1] == (MIB, (8 << 30) - MIB, 1)
    assert (lower_kib([(0, 0x80000)]), upper_kib([(0, 0x80000)])) == (512, 0)


def test_modules() -> None:
    modules = [("first.bin", b"\x11" * 5000, "a b"), ("empty", b"", ""), ("last", b"\x33", "")]
    payload = boot(multiboot_elf(), modules=modules, initrd=b"disk")
    guest = Guest(payload)
    found = guest.modules()
    assert [(data, text) for data, text, _ in found] == [
        (b"disk", "initrd"),
        (b"\x11" * 5000, "first.bin a b"),
        (b"", "empty"),
        (b"\x33", "last"),
    ]
    starts = [start for _, _, start in found]
    assert all(start % 4096 == 0 for start in starts)
    assert starts == sorted(set(starts))
    assert starts[0] >= MIB + 13 + 8192


def test_nothing_overlaps() -> None:
    """Kernel low in memory, where the information would go, and modules: each byte has one owner."""
    image = elf([Piece(multiboot_header() + CODE, 0x8000, size=0x70000)], bits=32, entry=0x800C)
    payload = boot(image, modules=[("m", bytes(70000), "")] * 3, append="x" * 40000)
    taken = [(chunk.gpa, chunk.end) for chunk in payload.chunks]
    taken += [(at, at + len(contents)) for at, contents in payload.entry.memory]
    taken.sort()
    for (_, end), (start, _) in pairwise(taken):
        assert end <= start
    Guest(payload).string(Guest(payload).field(16))


def test_sections_lead_to_the_symbols() -> None:
    def section(kind: int, address: int, offset: int, size: int) -> bytes:
        return struct.pack("<10I", 1, kind, 0, address, offset, size, 0, 0, 8, 0)

    header = multiboot_header(3)
    table = b"".join(
        (section(0, 0, 0, 0), section(1, MIB, 4096, 12), section(2, 0, 4096 + 13, 7), section(3, 0, 4096, 3))
    )
    image = elf(
        [Piece(header + CODE, MIB)], bits=32, entry=MIB + 12, sections=b"symbols" + table, section_count=4
    )
    # the builder says the table begins right behind the segments; it begins behind "symbols"
    image = image[:32] + struct.pack("<I", 4096 + 13 + 7) + image[36:]
    guest = Guest(boot(image))
    assert guest.flags & 0x20
    count, size, at, names = (guest.field(offset) for offset in (28, 32, 36, 40))
    assert (count, size, names) == (4, 40, 0)
    addresses = [guest.word(at + 40 * number + 12) for number in range(4)]
    assert (addresses[0], addresses[1]) == (0, MIB)
    assert guest.read(addresses[2], 7) == b"symbols"
    assert guest.read(addresses[3], 3) == header[:3]
    assert addresses[2] % 8 == addresses[3] % 8 == 0


def test_sections_that_cannot_be_had_are_left_out() -> None:
    payload = boot(multiboot_elf(section_count=65535))
    assert Guest(payload).flags & 0x20 == 0
    assert payload.notes == ["the ELF section headers are cut off; the kernel gets no symbols"]
    sections = b"".join(struct.pack("<10I", 0, 3, 0, 0, 0, 4000, 0, 0, 1, 0) for _ in range(1000))
    payload = boot(multiboot_elf(section_count=1000, sections=sections), memory=4 * MIB)
    assert payload.notes == ["no room for the ELF sections beside the kernel; it gets no symbols"]
    assert Guest(payload).flags & 0x20 == 0


def test_elf64_kernel_starts_in_protected_mode() -> None:
    header = multiboot_header()
    payload = boot(elf([Piece(header + CODE, MIB)], entry=MIB + 12))
    assert (payload.format, payload.entry.mode, payload.entry.reg("rip")) == (
        "multiboot",
        "protected",
        MIB + 12,
    )


def test_higher_half_kernel_starts_at_its_physical_entry() -> None:
    header = multiboot_header()
    image = elf([Piece(header + CODE, MIB, virtual=0xC0000000 + MIB)], bits=32, entry=0xC0000000 + MIB + 12)
    assert boot(image).entry.reg("rip") == MIB + 12


def test_load_addresses_in_the_header() -> None:
    payload = boot(
        kludge(b"\x90" * 100, before=b"\xcc" * 64, load_end=MIB + 64 + 32 + 50, bss_end=MIB + 0x5000)
    )
    kernel = payload.chunks[0]
    assert (kernel.gpa, len(kernel.data), kernel.zero) == (MIB, 146, 0x5000 - 146)
    assert bytes(kernel.data[:4]) == b"\xcc" * 4
    assert bytes(kernel.data[-50:]) == b"\x90" * 50
    assert payload.entry.reg("rip") == MIB + 64 + 32


def test_without_a_load_end_all_of_the_file_is_loaded() -> None:
    image = b"skip" + kludge(b"\x90" * 100)
    payload = boot(image)
    assert payload.chunks[0] == Chunk(MIB, image[4:])


def test_load_addresses_come_before_elf() -> None:
    code = multiboot_header(0x10000, 0x200000, 0x200000, 0x200040, 0, 0x200020).ljust(64, b"\xf4")
    payload = boot(elf([Piece(code, MIB)], bits=32, entry=MIB))
    assert payload.chunks[0] == Chunk(0x200000, code)


def test_later_header_counts_if_the_first_sum_is_wrong() -> None:
    payload = boot(kludge(before=multiboot_header(0, checksum=7)))
    assert payload.entry.reg("rip") == MIB + 12 + 32


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 0x20000003, 0xFFFE0000])
def test_flags_that_are_fine(flags: int) -> None:
    assert boot(multiboot_elf(flags)).entry.reg("rax") == 0x2BADB002


@pytest.mark.parametrize(("kind", "text"), [(0, "graphics mode 640x480x32"), (1, "text mode 640x480x32")])
def test_request_for_a_video_mode_is_answered_with_a_note(kind: int, text: str) -> None:
    header = multiboot_header(4, 0, 0, 0, 0, 0, kind, 640, 480, 32)
    payload = boot(elf([Piece(header + CODE, MIB)], bits=32, entry=MIB + len(header)))
    assert text in payload.notes[0]
    assert Guest(payload).flags & 0x1800 == 0


ELF64_HIGH = elf([Piece(multiboot_header() + CODE, 4 << 30)], entry=(4 << 30) + 12)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            bytes(100),
            "no Multiboot header: no word 0x1badb002 on a 4-byte boundary within the first 100 bytes",
        ),
        (bytes(9000) + multiboot_header(), "within the first 8192 bytes"),
        (bytes(2) + multiboot_header(), "no Multiboot header"),
        (
            multiboot_header(3, checksum=0xE4524FFA),
            "the Multiboot header at 0x0 has a bad checksum: 0xe4524ffa instead of 0xe4524ffb",
        ),
        (multiboot_elf(0x0B), "requires unknown features: flags 0xb, of the low 16 bits only 0x7 are known"),
        (multiboot_elf(0x8000), "requires unknown features: flags 0x8000"),
        (multiboot_header(0x10000), "truncated Multiboot header: at 0x0, 32 bytes long, it must end by 0xc"),
        (bytes(8180) + multiboot_header(4) + bytes(64), "48 bytes long, it must end by 0x2000"),
        (
            multiboot_header(4, 0, 0, 0, 0, 0, 2, 0, 0, 0),
            "video mode type 2 is unknown: 0 (graphics) or 1 (text)",
        ),
        (multiboot_header(3) + CODE, "no ELF file, and its header has no load addresses"),
        (
            kludge(header=MIB - 4),
            "load address 0x100000 doesn't fit header address 0xffffc: the header is 0 bytes",
        ),
        (kludge(header=MIB + 4), "doesn't fit header address 0x100004"),
        (kludge(load_end=MIB - 1), "load end 0xfffff lies before the load address 0x100000"),
        (
            kludge(load_end=MIB + 49),
            "truncated Multiboot kernel: 49 bytes from offset 0 wanted, the file has 48",
        ),
        (kludge(load_end=MIB + 48, bss_end=MIB + 40), "bss end 0x100028 lies before the load end 0x100030"),
        (kludge(entry=MIB + 48), "entry 0x100030 lies outside the kernel (0x100000-0x10002f)"),
        (
            kludge(bss_end=0xFFFFFFFF),
            "the kernel at 0x100000-0xfffffffe lies outside memory (RAM: 0x0-0x3ffffff)",
        ),
        (kludge(load=0xFFFFFFF0, entry=0xFFFFFFF0), "outside memory"),
        (ELF64_HIGH, "ELF segment 0 at 0x100000000-0x10000000c lies outside memory"),
        (multiboot_elf(machine=183), "for another machine (AARCH64)"),
        (multiboot_elf()[:4108], "ELF segment 0 is truncated"),
    ],
)
def test_bad_kernel(image: bytes, message: str) -> None:
    assert message in refused(image, format="multiboot")


def test_kernel_above_four_gib() -> None:
    message = refused(ELF64_HIGH, memory=6 << 30)
    assert "ELF segment 0 ends at 0x10000000d: a Multiboot kernel must lie below 0x100000000" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": [("big", bytes(3 * MIB), "")]}, "no free place of 3145728 bytes for module big"),
        ({"append": "x" * (4 * MIB)}, "for the Multiboot information"),
        ({"entry": 5 * MIB}, "entry 0x500000 lies outside memory"),
        ({"entry": 1 << 32}, "must be below 0x100000000"),
    ],
)
def test_what_does_not_fit(options: dict[str, object], message: str) -> None:
    assert message in refused(multiboot_elf(), memory=4 * MIB, **options)


def test_options_without_use() -> None:
    with pytest.raises(UsageError, match="starts in protected mode, not in long mode"):
        boot(multiboot_elf(), mode="long")
    with pytest.raises(UsageError, match="no use for load address"):
        boot(multiboot_elf(), load_address=0x1000)
    assert boot(multiboot_elf(), entry=MIB).entry.reg("rip") == MIB


def test_64_bit_payload_in_a_32_bit_file(tmp_path: Path) -> None:
    """Bare-metal test suites are linked as ELF64 and then turned into ELF32, the code staying what it is."""
    if any(shutil.which(tool) is None for tool in ("as", "ld", "objcopy")):
        pytest.skip("no GNU as, ld and objcopy here (package binutils)")
    source = """
        .globl start
        .section .init, "ax"
        .long 0x1badb002, 0, -(0x1badb002)
        .code32
start:  mov %ebx, %edi
        .code64
        mov $0x1122334455667788, %rax
        .bss
        .skip 0x4000
"""
    built, out = tmp_path / "a.o", tmp_path / "a.elf"
    subprocess.run(["as", "--64", "-o", built, "-"], input=source.encode(), check=True)
    script = (
        "ENTRY(start) SECTIONS { . = 4M; .text : { *(.init) *(.text) } . = ALIGN(4K); .bss : { *(.bss) } }"
    )
    (tmp_path / "flat.lds").write_text(script)
    link: list[str | Path] = [
        "ld",
        "-m",
        "elf_x86_64",
        "-T",
        tmp_path / "flat.lds",
        "-z",
        "max-page-size=0x1000",
    ]
    subprocess.run([*link, "--no-warn-rwx-segments", "-o", tmp_path / "b.elf", built], check=True)
    subprocess.run(["objcopy", "-O", "elf32-i386", tmp_path / "b.elf", out], check=True)
    payload = boot(out.read_bytes())
    guest = Guest(payload)
    assert payload.entry.reg("rip") == 0x40000C
    assert guest.read(0x40000C, 4) == b"\x89\xdf\x48\xb8"
    assert guest.read(0x401000, 0x4000) == bytes(0x4000)
    assert guest.flags & 0x20
