"""fw_cfg, by port and by DMA, read the way firmware reads it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices import fw_cfg as keys
from kvmpy.devices.fw_cfg import FwCfg
from kvmpy.devices.fw_cfg_items import bootorder, describe_kernel, describe_machine, e820, numa
from kvmpy.errors import DeviceError, GuestMemoryError

LENGTH = 64 * 1024
REQUEST = 0x100
BUFFER = 0x1000


class Ram:
    def __init__(self, length: int = LENGTH) -> None:
        self.data = bytearray(b"\xaa" * length)
        self.largest = 0

    def read(self, address: int, length: int) -> bytes:
        if address + length > len(self.data):
            raise GuestMemoryError("outside")
        return bytes(self.data[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        self.largest = max(self.largest, len(data))
        if address + len(data) > len(self.data):
            raise GuestMemoryError("outside")
        self.data[address : address + len(data)] = data


class Bench:
    def __init__(self, length: int = LENGTH) -> None:
        self.ram = Ram(length)
        self.fw_cfg = FwCfg(self.ram)

    def by_port(self, key: int, count: int) -> bytes:
        self.fw_cfg.write(0, key, 2)
        return bytes(self.fw_cfg.read(1, 1) for _ in range(count))

    def dma(self, control: int, length: int = 0, address: int = BUFFER, at: int = REQUEST) -> int:
        """One operation with 32-bit writes; gives the control field afterwards."""
        self.ram.data[at : at + 16] = struct.pack(">IIQ", control, length, address)
        self.fw_cfg.write(4, int.from_bytes((at >> 32).to_bytes(4, "big"), "little"), 4)
        self.fw_cfg.write(8, int.from_bytes((at & 0xFFFFFFFF).to_bytes(4, "big"), "little"), 4)
        result: int = struct.unpack_from(">I", self.ram.data, at)[0]
        return result


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_signature_and_id(bench: Bench) -> None:
    assert bench.by_port(keys.SIGNATURE, 6) == b"QEMU\0\0"
    assert bench.by_port(keys.ID, 4) == b"\x03\0\0\0"
    assert bench.fw_cfg.read(4, 4) == int.from_bytes(b"QEMU", "little")
    assert bench.fw_cfg.read(8, 4) == int.from_bytes(b" CFG", "little")
    assert bench.fw_cfg.read(4, 8) == int.from_bytes(b"QEMU CFG", "little")


def test_without_memory_there_is_no_dma() -> None:
    fw_cfg = FwCfg()
    assert fw_cfg.item(keys.ID) == b"\x01\0\0\0"
    assert fw_cfg.read(4, 4) == 0xFFFFFFFF
    fw_cfg.write(8, 0, 4)


def test_the_signature_is_selected_at_first_and_after_a_reset(bench: Bench) -> None:
    assert bench.fw_cfg.read_string(1, 1, 4) == b"QEMU"
    bench.by_port(keys.ID, 1)
    bench.fw_cfg.reset()
    assert bench.fw_cfg.read_string(1, 1, 4) == b"QEMU"


def test_selecting_starts_over_and_bit_14_is_ignored(bench: Bench) -> None:
    bench.by_port(keys.SIGNATURE, 2)
    assert bench.by_port(keys.SIGNATURE | 0x4000, 4) == b"QEMU"


def test_only_a_word_to_the_selector_selects(bench: Bench) -> None:
    bench.fw_cfg.write(0, keys.ID, 1)
    bench.fw_cfg.write(0, keys.ID, 4)
    bench.fw_cfg.write(1, keys.ID, 1)
    assert bench.fw_cfg.selected == keys.SIGNATURE


def test_unknown_items_and_the_end_read_zero(bench: Bench) -> None:
    assert bench.by_port(0x3FFF, 3) == b"\0\0\0"
    assert bench.by_port(0x8123, 3) == b"\0\0\0"


def test_wide_reads_keep_the_order_of_the_string(bench: Bench) -> None:
    bench.fw_cfg.set(0x40, b"abcdef")
    bench.fw_cfg.write(0, 0x40, 2)
    assert bench.fw_cfg.read(1, 4) == int.from_bytes(b"abcd", "little")
    assert bench.fw_cfg.read(1, 4) == int.from_bytes(b"ef\0\0", "little")


def test_a_byte_from_the_selectors_port_is_data_too(bench: Bench) -> None:
    assert bench.fw_cfg.read(0, 1) == ord("Q")
    assert bench.fw_cfg.read(0, 2) == 0
    assert bench.fw_cfg.read(1, 1) == ord("E")


def test_data_writes_are_ignored(bench: Bench) -> None:
    bench.fw_cfg.set(0x40, b"abc", writable=True)
    bench.fw_cfg.write(0, 0x4040, 2)
    bench.fw_cfg.write(1, ord("z"), 1)
    assert bench.by_port(0x40, 3) == b"abc"


def test_directory(bench: Bench) -> None:
    first = bench.fw_cfg.set_file("etc/e820", bytes(20))
    second = bench.fw_cfg.set_file("opt/org.example/x", b"abc")
    bench.fw_cfg.set_file("etc/e820", bytes(40))  # keeps its key
    assert (first, second) == (0x20, 0x21)
    directory = bench.by_port(keys.FILE_DIRECTORY, 4 + 2 * 64)
    assert struct.unpack_from(">I", directory) == (2,)
    assert struct.unpack_from(">IHH56s", directory, 4) == (40, 0x20, 0, b"etc/e820".ljust(56, b"\0"))
    assert struct.unpack_from(">IHH56s", directory, 68) == (3, 0x21, 0, b"opt/org.example/x".ljust(56, b"\0"))
    assert bench.by_port(second, 3) == b"abc"


def test_a_file_added_while_the_directory_is_selected_shows(bench: Bench) -> None:
    bench.by_port(keys.FILE_DIRECTORY, 0)
    bench.fw_cfg.set_file("a", b"")
    assert bench.fw_cfg.read_string(1, 1, 4) == b"\0\0\0\x01"


@pytest.mark.parametrize("name", ["", "x" * 56, "ä", "a\0b"])
def test_bad_file_names(bench: Bench, name: str) -> None:
    with pytest.raises(DeviceError, match=r"1\.\.55"):
        bench.fw_cfg.set_file(name, b"")


@pytest.mark.parametrize("key", [-1, 0x19, 0x4000, 0x7FFF, 0xC000, 0x10000])
def test_bad_keys(bench: Bench, key: int) -> None:
    with pytest.raises(DeviceError, match="key"):
        bench.fw_cfg.set(key, b"")


def test_a_number_that_does_not_fit(bench: Bench) -> None:
    with pytest.raises(DeviceError, match="65536"):
        bench.fw_cfg.set_int(keys.CPUS, 65536, 2)


# DMA


def test_dma_select_and_read(bench: Bench) -> None:
    bench.fw_cfg.set(0x40, b"hello world")
    assert bench.dma(0x40 << 16 | keys.DMA_SELECT | keys.DMA_READ, 5) == 0
    assert bench.ram.data[BUFFER : BUFFER + 6] == b"hello\xaa"
    assert bench.dma(keys.DMA_SKIP, 1) == 0
    assert bench.dma(keys.DMA_READ, 8) == 0
    assert bench.ram.data[BUFFER : BUFFER + 9] == b"world\0\0\0\xaa"


def test_dma_with_one_write_of_64_bits(bench: Bench) -> None:
    bench.ram.data[REQUEST : REQUEST + 16] = struct.pack(">IIQ", keys.DMA_READ, 4, BUFFER)
    bench.fw_cfg.write(4, int.from_bytes(REQUEST.to_bytes(8, "big"), "little"), 8)
    assert bench.ram.data[BUFFER : BUFFER + 4] == b"QEMU"


def test_the_upper_half_is_used_once(bench: Bench) -> None:
    bench.fw_cfg.write(4, 0x01000000, 4)  # big endian 1: at 4 GiB, where there is nothing
    bench.fw_cfg.write(8, int.from_bytes(REQUEST.to_bytes(4, "big"), "little"), 4)
    assert bench.ram.data[REQUEST] == 0xAA
    assert bench.dma(keys.DMA_READ, 4) == 0
    bench.fw_cfg.write(4, 0x01000000, 4)
    bench.fw_cfg.reset()
    assert bench.fw_cfg.state()["dma_high"] == 0


def test_dma_write_only_to_writable_items_and_never_beyond(bench: Bench) -> None:
    bench.fw_cfg.set(0x40, bytes(8))
    bench.fw_cfg.set(0x41, bytes(8), writable=True)
    select_write = keys.DMA_SELECT | keys.DMA_WRITE
    assert bench.dma(0x40 << 16 | select_write, 4) == keys.DMA_ERROR
    assert bench.dma(0x41 << 16 | select_write, 9) == keys.DMA_ERROR
    assert bench.fw_cfg.item(0x41) == bytes(8)
    bench.ram.data[BUFFER : BUFFER + 8] = b"abcdefgh"
    assert bench.dma(0x41 << 16 | select_write, 4) == 0
    assert bench.dma(keys.DMA_WRITE, 4, BUFFER + 4) == 0
    assert bench.fw_cfg.item(0x41) == b"abcdefgh"
    assert bench.dma(keys.DMA_WRITE, 1) == keys.DMA_ERROR


def test_read_wins_over_write_and_write_over_skip(bench: Bench) -> None:
    bench.fw_cfg.set(0x41, b"abcd", writable=True)
    assert bench.dma(0x41 << 16 | 0x1E, 2) == 0
    assert bench.ram.data[BUFFER : BUFFER + 2] == b"ab"
    assert bench.dma(keys.DMA_WRITE | keys.DMA_SKIP, 2, BUFFER + 0x10) == 0
    assert bench.fw_cfg.item(0x41) == b"ab\xaa\xaa"


def test_an_operation_without_a_direction_only_selects(bench: Bench) -> None:
    bench.fw_cfg.set(0x40, b"abc")
    assert bench.dma(0x40 << 16 | keys.DMA_SELECT, 0xFFFFFFFF) == 0
    assert bench.fw_cfg.read(1, 1) == ord("a")


@pytest.mark.parametrize("length", [0x1000, 0x10_0000, 0x7FFF_FFFF, 0xFFFF_FFFF])
@pytest.mark.parametrize("address", [LENGTH - 0x800, 1 << 40, (1 << 64) - 16])
def test_a_hostile_length_is_an_error_and_bounded(bench: Bench, length: int, address: int) -> None:
    assert bench.dma(keys.DMA_READ, length, address) == keys.DMA_ERROR
    assert bench.ram.largest <= keys.CHUNK
    assert bench.dma(keys.DMA_WRITE, length, address) == keys.DMA_ERROR
    assert bench.dma(keys.DMA_SKIP, length, address) == 0
    assert bench.fw_cfg.position <= 4


def test_zeros_beyond_the_end_are_bounded() -> None:
    bench = Bench(keys.ZERO_LIMIT + 0x10000)
    assert bench.dma(keys.DMA_READ, 4 + keys.ZERO_LIMIT + 1) == keys.DMA_ERROR
    assert bench.dma(keys.DMA_READ, 4 + keys.ZERO_LIMIT) == 0
    assert not any(bench.ram.data[BUFFER + 4 : BUFFER + 4 + keys.ZERO_LIMIT])


def test_a_request_outside_memory_is_lost(bench: Bench) -> None:
    before = bytes(bench.ram.data)
    bench.fw_cfg.write(8, 0xFFFFFFFF, 4)
    bench.fw_cfg.write(4, (1 << 64) - 1, 8)
    assert bench.ram.data == before


def test_a_request_half_outside_memory_is_told() -> None:
    bench = Bench(LENGTH)
    at = LENGTH - 8
    bench.fw_cfg.write(8, int.from_bytes(at.to_bytes(4, "big"), "little"), 4)
    assert bench.ram.data[at : at + 4] == b"\0\0\0\x01"


@given(
    data=st.binary(max_size=300),
    steps=st.lists(
        st.tuples(st.sampled_from(["port", "string", "dma", "skip", "wide"]), st.integers(0, 120)),
        max_size=12,
    ),
)
@settings(deadline=None)
def test_every_way_of_reading_gives_the_same_bytes(data: bytes, steps: list[tuple[str, int]]) -> None:
    bench = Bench()
    bench.fw_cfg.set(0x40, data)
    bench.fw_cfg.write(0, 0x40, 2)
    at = 0
    for how, count in steps:
        if how == "wide":
            count -= count % 4
        expected = data[at : at + count].ljust(count, b"\0")
        at = min(at + count, len(data))
        if how == "port":
            got = bytes(bench.fw_cfg.read(1, 1) for _ in range(count))
        elif how == "string":
            got = bench.fw_cfg.read_string(1, 1, count)
        elif how == "wide":
            got = b"".join(bench.fw_cfg.read(1, 4).to_bytes(4, "little") for _ in range(count // 4))
        elif how == "dma":
            assert bench.dma(keys.DMA_READ, count) == 0
            got = bytes(bench.ram.data[BUFFER : BUFFER + count])
        else:
            assert bench.dma(keys.DMA_SKIP, count) == 0
            got = expected
        assert got == expected


# What a PC's firmware looks for


def test_describe_machine(bench: Bench) -> None:
    gib = 1 << 30
    describe_machine(
        bench.fw_cfg,
        [(0, 3 * gib), (4 * gib, gib)],
        reserved=[(0xFEFFC000, 0x4000)],
        cpus=2,
        max_cpus=4,
        boot_menu=True,
        boot_order=["/rom@genroms/linuxboot.bin"],
    )
    assert bench.by_port(keys.RAM_SIZE, 8) == (4 * gib).to_bytes(8, "little")
    assert bench.by_port(keys.CPUS, 2) == b"\x02\0"
    assert bench.by_port(keys.MAX_CPUS, 2) == b"\x04\0"
    assert bench.by_port(keys.BOOT_MENU, 2) == b"\x01\0"
    assert bench.by_port(keys.NUMA, 40) == bytes(40)
    assert bench.fw_cfg.file("bootorder") == b"/rom@genroms/linuxboot.bin\0"
    table = bench.fw_cfg.file("etc/e820") or b""
    assert list(struct.iter_unpack("<QQI", table)) == [
        (0xFEFFC000, 0x4000, 2),
        (0, 3 * gib, 1),
        (4 * gib, gib, 1),
    ]


def test_describe_kernel(bench: Bench) -> None:
    describe_kernel(bench.fw_cfg, kernel=b"KERNEL", kernel_address=0x100000, cmdline="quiet", initrd=b"rd")
    assert bench.by_port(keys.KERNEL_SIZE, 4) == b"\x06\0\0\0"
    assert bench.by_port(keys.KERNEL_DATA, 6) == b"KERNEL"
    assert bench.by_port(keys.CMDLINE_SIZE, 4) == b"\x06\0\0\0"
    assert bench.by_port(keys.CMDLINE_DATA, 6) == b"quiet\0"
    assert bench.by_port(keys.INITRD_SIZE, 4) == b"\x02\0\0\0"
    assert bench.by_port(keys.INITRD_DATA, 2) == b"rd"


def test_layouts() -> None:
    assert e820([]) == b""
    assert numa([0, 1], [5, 6]) == struct.pack("<5Q", 2, 0, 1, 5, 6)
    assert bootorder([]) == b""
    assert bootorder(["/a", "/b"]) == b"/a\n/b\0"


def test_restore_needs_the_same_items(bench: Bench) -> None:
    bench.fw_cfg.set(0x40, b"ab", writable=True)
    with pytest.raises(DeviceError, match="same items"):
        FwCfg(bench.ram).restore(bench.fw_cfg.state())
