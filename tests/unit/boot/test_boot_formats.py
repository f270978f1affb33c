"""Recognising and forcing formats; flat binaries, boot sectors, ROMs; files that can't be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from boot_images import MIB, Piece, elf, kludge, multiboot_elf, multiboot_header

from kvmpy.boot import FORMATS, BootOptions, Chunk, Payload, load, read, recognise
from kvmpy.errors import ImageError, UsageError

RESET = b"\xea\x5b\xe0\x00\xf0".ljust(16, b"\0")
ROM = bytes(65536 - 16) + RESET
SECTOR = b"\xf4".ljust(510, b"\0") + b"\x55\xaa"
BZIMAGE = bytes(510) + b"\x55\xaa" + b"\xeb\x66HdrS" + bytes(1024)


def boot(data: bytes, memory: int = 64 * MIB, **options: object) -> Payload:
    return load(data, BootOptions(memory, **options))  # type: ignore[arg-type]


def places(payload: Payload) -> list[tuple[int, int, int, str, bool]]:
    return [(c.gpa, len(c.data), c.zero, c.kind, c.readonly) for c in payload.chunks]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (multiboot_elf(), "multiboot"),
        (kludge(), "multiboot"),
        (bytes(8180) + multiboot_header(), "multiboot"),
        (bytes(8184) + multiboot_header(), "flat"),
        (bytes(6) + multiboot_header(), "flat"),
        (multiboot_header(checksum=1), "multiboot"),
        (multiboot_header()[:8], "flat"),
        (elf([Piece(b"\xf4", MIB)]), "elf"),
        (b"\x7fELF", "elf"),
        (SECTOR, "bootsector"),
        (SECTOR + bytes(512), "bootsector"),
        (SECTOR + b"\0", "flat"),
        (BZIMAGE, "linux"),
        (ROM, "rom"),
        (bytes(131072 - 16) + b"\x90\x90\xe9\x10\x20".ljust(16, b"\0"), "rom"),
        (ROM[1:], "flat"),
        (bytes(65536), "flat"),
        (b"\xf4", "flat"),
        (b"", "flat"),
    ],
)
def test_format_is_recognised(data: bytes, name: str) -> None:
    assert recognise(data) == name


def test_every_format_has_a_module_and_a_summary() -> None:
    assert list(FORMATS) == ["multiboot", "elf", "linux", "bootsector", "rom", "flat"]
    for name in FORMATS:
        assert FORMATS[name].SUMMARY
    with pytest.raises(KeyError):
        FORMATS["loader"]


def test_format_can_be_forced() -> None:
    assert boot(multiboot_elf()).format == "multiboot"
    assert boot(multiboot_elf(), format="elf").format == "elf"
    assert boot(multiboot_elf(), format="flat").format == "flat"
    assert boot(SECTOR, format="flat").chunks[0].gpa == 0x1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"format": "muliboot"},
            "image format 'muliboot' is unknown (did you mean multiboot?): one of multiboot",
        ),
        ({"mode": "unreal"}, "mode 'unreal' is unknown: one of real, protected, long"),
        ({"memory": 0}, "memory of 0 bytes"),
        ({"entry": -1}, "entry -0x1 isn't an address"),
        ({"load_address": 1 << 64}, "load address 0x10000000000000000 isn't an address"),
        ({"append": "a\0b"}, "NUL"),
        ({"modules": [("m", b"", "")]}, "the flat format has no use for modules"),
        ({"initrd": b""}, "the flat format has no use for initrd"),
    ],
)
def test_options_that_cannot_be_right(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        boot(b"\xf4", **options)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_empty_image_is_refused() -> None:
    with pytest.raises(ImageError, match=r"^guest\.bin: the image is empty \(0 bytes\)$"):
        boot(b"", name="guest.bin")


def test_linux_is_recognised_but_not_booted() -> None:
    with pytest.raises(ImageError, match=r"Linux kernel .* can't boot yet"):
        boot(BZIMAGE)
    with pytest.raises(ImageError, match="no Linux kernel"):
        boot(SECTOR, format="linux")


# flat


def test_flat_starts_in_real_mode_by_default() -> None:
    payload = boot(b"\xf4\xf4")
    assert payload.chunks == [Chunk(0x1000, b"\xf4\xf4")]
    state = payload.entry
    assert (state.mode, state.segments["cs"].base, state.reg("rip")) == ("real", 0, 0x1000)
    assert state.cr0 & 1 == 0


@pytest.mark.parametrize(
    ("address", "cs", "ip"),
    [(0, 0, 0), (0x7C00, 0, 0x7C00), (0x12345, 0x1000, 0x2345), (0xFFFF0, 0xF000, 0xFFF0)],
)
def test_flat_real_mode_at_any_address(address: int, cs: int, ip: int) -> None:
    payload = boot(b"\xf4", mode="real", load_address=address)
    state = payload.entry
    assert payload.chunks[0].gpa == address
    assert (state.segments["cs"].selector, state.segments["cs"].base, state.reg("rip")) == (cs, cs << 4, ip)
    assert state.segments["ds"].selector == state.segments["es"].selector == cs


def test_flat_real_mode_stack_keeps_clear_of_the_image() -> None:
    assert boot(b"\xf4").entry.reg("rsp") == 0x7C00
    state = boot(bytes(0x8000), load_address=0x4000).entry
    top = state.segments["ss"].base + state.reg("rsp")
    assert top - 4096 >= 0xC000 or top <= 0x4000
    assert top <= 0x9FC00


@pytest.mark.parametrize("address", [0x100000, 0x8000, 0x3FFF000])
def test_flat_long_mode_at_any_address(address: int) -> None:
    payload = boot(bytes(4096), mode="long", load_address=address)
    state = payload.entry
    assert (state.mode, state.reg("rip"), payload.chunks[0].gpa) == ("long", address, address)
    assert state.segments["cs"].l == 1
    assert state.efer & 0x500 == 0x500
    assert state.collides(address, 4096) is None
    assert not address < state.reg("rsp") <= address + 4096


def test_flat_protected_mode() -> None:
    state = boot(b"\xf4", mode="protected").entry
    assert (state.mode, state.reg("rip"), state.cr0 >> 31, state.cr0 & 1) == ("protected", MIB, 0, 1)


@pytest.mark.parametrize(("address", "size"), [(0x70000, 0x40000), (0x80000, 0x1F000), (0x1000, 0xFF000)])
def test_tables_and_stack_give_way_to_an_image(address: int, size: int) -> None:
    for mode in ("protected", "long"):
        state = boot(bytes(size), mode=mode, load_address=address).entry
        assert state.memory
        assert state.collides(address, size) is None
        top = state.reg("rsp")
        assert top <= address or top - 16384 >= address + size
        for table, contents in state.memory:
            assert table + len(contents) <= 64 * MIB


def test_entry_is_where_a_flat_image_goes_unless_a_load_address_is_given() -> None:
    payload = boot(b"\x90\xf4", entry=0x5000)
    assert (payload.chunks[0].gpa, payload.entry.reg("rip")) == (0x5000, 0x5000)
    payload = boot(b"\x90\xf4", entry=0x6001, load_address=0x6000)
    assert (payload.chunks[0].gpa, payload.entry.reg("rip")) == (0x6000, 0x6001)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (2 * MIB, {"memory": MIB}, "the image at 0x1000-0x200fff lies outside memory (RAM: 0x0-0xfffff)"),
        (16, {"load_address": 64 * MIB - 8}, "the image at 0x3fffff8-0x4000007 lies outside memory"),
        (16, {"load_address": (1 << 64) - 8}, "lies outside memory"),
        (
            16,
            {"entry": 0x5000000, "load_address": 0x1000, "mode": "long"},
            "entry 0x5000000 lies outside memory",
        ),
        (
            16,
            {"load_address": 0x100000},
            "entry 0x100000 is out of reach in this mode: it must be below 0x100000",
        ),
        (4096, {"memory": 8192, "mode": "long", "load_address": 0x1000}, "no room for"),
    ],
)
def test_flat_outside_memory(size: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(ImageError) as caught:
        boot(bytes(size), **options)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flat_starts_in_a_machine_of_one_page() -> None:
    payload = boot(bytes(4096), memory=4096, load_address=0)
    assert payload.chunks[0].gpa == 0


def test_long_mode_maps_ram_behind_the_hole() -> None:
    ram = [(0, 3 << 30), (4 << 30, 1 << 30)]
    state = boot(b"\xf4", memory=4 << 30, ram=ram, mode="long", load_address=(5 << 30) - 4096).entry
    assert state.reg("rip") == (5 << 30) - 4096


# boot sector


def test_boot_sector_starts_as_a_bios_would_start_it() -> None:
    payload = boot(SECTOR + b"\x11" * 512)
    state = payload.entry
    assert places(payload) == [(0x7C00, 1024, 0, "ram", False)]
    assert (state.segments["cs"].base, state.reg("rip"), state.reg("rsp")) == (0, 0x7C00, 0x7C00)
    assert state.reg("rdx") & 0xFF == 0x80
    assert "no BIOS" in payload.notes[0]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (bytes(512), {}, "bytes 510 and 511 are 00 00, not 55 aa"),
        (SECTOR[:-1], {}, "a multiple of 512 bytes, not 511"),
        (SECTOR + bytes(622592), {}, "623104 bytes don't fit behind 0x7c00: at most 622592"),
        (SECTOR, {"memory": 0x7000}, "lies outside memory"),
    ],
)
def test_bad_boot_sector(data: bytes, options: dict[str, object], message: str) -> None:
    with pytest.raises(ImageError) as caught:
        boot(data, format="bootsector", **options)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize("options", [{"mode": "long"}, {"entry": 0x7C02}, {"load_address": 0x1000}])
@pytest.mark.parametrize("data", [SECTOR, ROM])
def test_boot_sector_and_rom_start_in_one_way_only(data: bytes, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        boot(data, **options)  # type: ignore[arg-type]


# ROM


def test_rom_ends_at_four_gib_and_is_copied_below_one_mib() -> None:
    image = bytes(range(256)) * 1024
    image = image[:-16] + RESET
    payload = boot(image)
    assert places(payload) == [
        (0xFFFC0000, 0x40000, 0, "rom", True),
        (0xE0000, 0x20000, 0, "ram", False),
    ]
    assert payload.chunks[1].data == image[-0x20000:]
    state = payload.entry
    assert state.segments["cs"].base + state.reg("rip") == 0xFFFFFFF0
    assert state.segments["cs"].selector == 0xF000


def test_small_rom_is_copied_whole() -> None:
    assert places(boot(ROM)) == [(0xFFFF0000, 0x10000, 0, "rom", True), (0xF0000, 0x10000, 0, "ram", False)]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (bytes(5000), {}, "a ROM of 5000 bytes: a multiple of 4096"),
        (bytes(9 << 20), {}, "no more than 8388608 fit below 4 GiB"),
        (ROM, {"memory": 0x80000}, "the ROM's copy below 1 MiB at 0xf0000-0xfffff lies outside memory"),
        (ROM, {"memory": 4 << 30}, "overlaps RAM at 0x0-0xffffffff: leave a hole below 4 GiB"),
    ],
)
def test_bad_rom(data: bytes, options: dict[str, object], message: str) -> None:
    with pytest.raises(ImageError) as caught:
        boot(data, format="rom", **options)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_seabios_is_a_rom() -> None:
    path = Path("/usr/share/seabios/bios-256k.bin")
    if not path.exists():
        pytest.skip(f"Debian's package seabios isn't installed: no {path}")
    data = read(path)
    assert recognise(data) == "rom"
    assert places(boot(data))[0] == (0xFFFC0000, 0x40000, 0, "rom", True)


# files


def test_read_gives_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert read(tmp_path / "a") == b"abc"


def test_files_that_cannot_be_images(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    expected = {
        "none": "No such file or directory",
        "empty": "the image is empty (0 bytes)",
        ".": "must be a plain file, this is a directory",
        "pipe": "must be a plain file, this is a pipe",
        "sparse": "1099511627776 bytes are more than the 1073741824",
        "/dev/zero": "must be a plain file, this is a device",
        "a\0b": "can't be read",
    }
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name, message in expected.items():
        with pytest.raises(ImageError) as caught:
            read(str(tmp_path / name))
        assert message in str(caught.value)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
