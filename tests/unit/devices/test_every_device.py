"""What holds for every device: a hostile guest gets values, no exceptions; state goes out and comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices.acpi_pm1 import AcpiPm1
from kvmpy.devices.acpi_pm_timer import AcpiPmTimer
from kvmpy.devices.cmos import Cmos
from kvmpy.devices.debugcon import DebugConsole
from kvmpy.devices.device import ByteDevice, Device
from kvmpy.devices.elcr import Elcr
from kvmpy.devices.exit_port import ExitPort
from kvmpy.devices.fw_cfg import FwCfg
from kvmpy.devices.i8042 import I8042
from kvmpy.devices.ioapic import IoApic
from kvmpy.devices.lapic import Lapic
from kvmpy.devices.latches import Latches
from kvmpy.devices.pc_testdev import PcTestdevIrq, PcTestdevMemory, PcTestdevPorts
from kvmpy.devices.pci_absent import PciAbsent
from kvmpy.devices.pic import Pic8259
from kvmpy.devices.pit import Pit
from kvmpy.devices.port61 import Port61
from kvmpy.devices.port92 import Port92
from kvmpy.devices.post import PostPort
from kvmpy.devices.pvclock import PvClock
from kvmpy.devices.serial import Serial
from kvmpy.errors import DeviceError, GuestMemoryError


class Ram:
    """A little guest memory; beyond it is nothing."""

    def __init__(self, length: int = 4096) -> None:
        self.data = bytearray(length)

    def read(self, address: int, length: int) -> bytes:
        self._check(address, length)
        return bytes(self.data[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data))
        self.data[address : address + len(data)] = data

    def _check(self, address: int, length: int) -> None:
        if address < 0 or address + length > len(self.data):
            raise GuestMemoryError(f"{address:#x} is outside")


def make_fw_cfg() -> FwCfg:
    fw_cfg = FwCfg(Ram())
    fw_cfg.set_file("opt/a", b"hello")
    fw_cfg.set_file("opt/b", bytes(300), writable=True)
    return fw_cfg


def noon() -> int:
    return 1_700_000_000_123_456_789


def nothing(*values: object) -> None:
    pass


DEVICES: dict[str, Callable[[], Device]] = {
    "acpi_pm1": lambda: AcpiPm1(nothing),
    "acpi_pm_timer": lambda: AcpiPmTimer(noon),
    "acpi_pm_timer32": lambda: AcpiPmTimer(noon, bits=32),
    "base": Device,
    "base_byte": ByteDevice,
    "cmos": lambda: Cmos(noon, nothing, nothing),
    "debugcon": lambda: DebugConsole(nothing),
    "elcr": lambda: Elcr(nothing),
    "exit": lambda: ExitPort(nothing),
    "exit_qemu": lambda: ExitPort(nothing, qemu=True),
    "fw_cfg": make_fw_cfg,
    "fw_cfg_no_dma": FwCfg,
    "i8042": lambda: I8042(nothing, nothing, nothing, nothing),
    "ioapic": lambda: IoApic(lambda message: True),
    "lapic": lambda: Lapic(3, noon, nothing, nmi=nothing, changed=nothing, tsc=noon, tsc_khz=2_000_000),
    "latches": lambda: Latches("dma", 16),
    "pvclock": lambda: PvClock(Ram(), lambda: (1 << 40, 5), noon, 2_600_000_000),
    "pci": lambda: PciAbsent(nothing),
    "pci_no_reset": PciAbsent,
    "pic": lambda: Pic8259(nothing, 2),
    "pit": lambda: Pit(noon, nothing, nothing),
    "port61": lambda: Port61(noon, lambda: True, nothing),
    "port61_alone": Port61,
    "port92": lambda: Port92(nothing, nothing),
    "post": lambda: PostPort(nothing),
    "serial": lambda: Serial(nothing, nothing),
    "serial_clock": lambda: Serial(nothing, nothing, clock=noon),
    "serial_gated": lambda: Serial(nothing, nothing, out2_gates_irq=True),
    "testdev_irq": lambda: PcTestdevIrq(nothing),
    "testdev_memory": PcTestdevMemory,
    "testdev_ports": lambda: PcTestdevPorts(nothing),
}

SIZES = st.sampled_from([1, 2, 4, 8])
OFFSETS = st.one_of(
    st.integers(-8, 24), st.sampled_from([0xFFF8, 0xFFFE, 0xFFFF, 0x10000, 1 << 40, (1 << 64) - 1])
)
VALUES = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 0xFF), st.just(-1))
ACCESSES = st.lists(
    st.one_of(
        st.tuples(st.just("r"), OFFSETS, SIZES, st.just(0)),
        st.tuples(st.just("w"), OFFSETS, SIZES, VALUES),
        st.tuples(st.just("ins"), OFFSETS, SIZES, st.integers(0, 64)),
        st.tuples(st.just("outs"), OFFSETS, SIZES, st.integers(0, 8)),
        st.tuples(st.just("reset"), st.just(0), st.just(1), st.just(0)),
    ),
    max_size=30,
)


def drive(device: Device, accesses: list[tuple[str, int, int, int]]) -> list[object]:
    """Do all of it and give what a guest would see."""
    seen: list[object] = []
    for kind, offset, size, value in accesses:
        if kind == "r":
            result = device.read(offset, size)
            assert 0 <= result < 1 << (8 * size), f"read({offset}, {size}) gave {result:#x}"
            seen.append(result)
        elif kind == "w":
            device.write(offset, value, size)
        elif kind == "ins":
            data = device.read_string(offset, size, value)
            assert len(data) == size * value
            seen.append(data)
        elif kind == "outs":
            device.write_string(offset, bytes(range(size * value)), size)
        else:
            device.reset()
    return seen


@pytest.mark.parametrize("make", DEVICES.values(), ids=DEVICES.keys())
@given(accesses=ACCESSES)
@settings(max_examples=80, deadline=None)
def test_no_access_raises_and_every_value_fits(
    make: Callable[[], Device], accesses: list[tuple[str, int, int, int]]
) -> None:
    drive(make(), accesses)


@pytest.mark.parametrize("make", DEVICES.values(), ids=DEVICES.keys())
@given(before=ACCESSES, after=ACCESSES)
@settings(max_examples=60, deadline=None)
def test_a_restored_device_is_the_same_to_the_guest(
    make: Callable[[], Device],
    before: list[tuple[str, int, int, int]],
    after: list[tuple[str, int, int, int]],
) -> None:
    first, second = make(), make()
    drive(first, before)
    saved = first.state()
    second.restore(saved)
    assert second.state() == saved
    if isinstance(first, FwCfg):  # its guest memory isn't part of it
        after = [access for access in after if access[0] != "w"]
    assert drive(second, after) == drive(first, after)
    assert second.state() == first.state()


@pytest.mark.parametrize("make", DEVICES.values(), ids=DEVICES.keys())
def test_state_is_plain_and_stays_as_it_was_saved(make: Callable[[], Device]) -> None:
    device = make()
    saved = device.state()
    assert list(saved) == list(device.FIELDS)
    assert all(type(value) in (int, bool, bytes) for value in saved.values())
    copy = dict(saved)
    for offset in range(8):
        device.write(offset, 0x5A, 1)
    assert saved == copy


@pytest.mark.parametrize("make", DEVICES.values(), ids=DEVICES.keys())
def test_restore_refuses_what_state_never_gives(make: Callable[[], Device]) -> None:
    device = make()
    saved = device.state()
    with pytest.raises(DeviceError, match="unknown field 'bogus'"):
        device.restore({**saved, "bogus": 1})
    for field, kind in device.FIELDS.items():
        with pytest.raises(DeviceError, match=f"{field}.*missing"):
            device.restore({name: value for name, value in saved.items() if name != field})
        wrong: list[object] = [None, "x", 1.5, -(1 << 300), 1 << 300]
        if kind is not bool:
            wrong.append(True)
        for value in wrong:
            with pytest.raises(DeviceError, match=field):
                device.restore({**saved, field: value})
    assert device.state() == saved


def test_a_byte_device_splits_from_the_lowest_byte_up() -> None:
    calls: list[tuple[str, int, int]] = []

    class Probe(ByteDevice):
        LENGTH = 3

        def read_byte(self, offset: int) -> int:
            calls.append(("r", offset, 0))
            return 0x10 + offset

        def write_byte(self, offset: int, value: int) -> None:
            calls.append(("w", offset, value))

    probe = Probe()
    assert probe.read(1, 4) == 0xFFFF1211
    probe.write(1, 0x44332211, 4)
    assert calls == [("r", 1, 0), ("r", 2, 0), ("w", 1, 0x11), ("w", 2, 0x22)]


def test_string_accesses_repeat_at_one_offset() -> None:
    latches = Latches("x", 4)
    latches.write_string(1, b"\x01\x02\x03\x04", 2)
    assert latches.values == b"\x00\x03\x04\x00"
    assert latches.read_string(1, 2, 2) == b"\x03\x04\x03\x04"
