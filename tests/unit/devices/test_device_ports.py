"""The devices of one or two registers: exit port, debug console, POST, ports 0x61 and 0x92, ELCR, PCI."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kvmpy.devices.debugcon import DebugConsole
from kvmpy.devices.elcr import Elcr
from kvmpy.devices.exit_port import ExitPort
from kvmpy.devices.latches import Latches
from kvmpy.devices.pci_absent import PciAbsent
from kvmpy.devices.port61 import REFRESH_NS, Port61
from kvmpy.devices.port92 import Port92
from kvmpy.devices.post import PostPort
from kvmpy.devices.registers import Register, RegisterFile
from kvmpy.errors import DeviceError


@pytest.mark.parametrize(
    ("value", "size", "status"),
    [
        (0, 1, 0),
        (3, 1, 3),
        (0x1FF, 1, 0xFF),
        (0x1234, 2, 0x1234),
        (0xDEADBEEF, 4, 0xDEADBEEF),
        (-1, 8, 0xFFFFFFFF),
    ],
)
def test_exit_port_gives_the_status_as_wide_as_written(value: int, size: int, status: int) -> None:
    ends: list[int] = []
    port = ExitPort(ends.append)
    assert ExitPort(ends.append).status is None
    port.write(0, value, size)
    assert (ends, port.status) == ([status], status)
    assert port.read(0, size) == 0


@pytest.mark.parametrize(("value", "status"), [(0, 1), (0x10, 33), (0x31, 99), (0xFFFFFFFF, 0x1FFFFFFFF)])
def test_exit_port_as_qemu_counts(value: int, status: int) -> None:
    ends: list[int] = []
    port = ExitPort(ends.append, qemu=True)
    port.write(0, value, 4)
    assert (ends, port.status) == ([status], status)


def test_exit_port_at_any_offset_and_again() -> None:
    ends: list[int] = []
    port = ExitPort(ends.append)
    port.write(3, 7, 1)
    port.write(0, 0, 1)
    assert ends == [7, 0]
    assert port.status == 0
    port.reset()
    assert port.status is None


def test_debug_console() -> None:
    pieces: list[bytes] = []
    console = DebugConsole(pieces.append)
    console.write(0, 0x4241, 1)
    console.write(0, 0x4443, 2)
    console.write_string(0, b"hello", 1)
    console.write_string(0, b"a.b.", 2)
    console.write_string(0, b"", 1)
    assert pieces == [b"A", b"C", b"hello", b"ab"]
    assert console.read(0, 1) == 0xE9
    assert console.read(0, 2) == 0xFFE9
    assert DebugConsole(pieces.append, readback=0x12).read(0, 1) == 0x12


def test_post_codes() -> None:
    codes: list[int] = []
    port = PostPort(codes.append)
    for code in (0x01, 0x55, 0x1AA):
        port.write(0, code, 1)
    assert (codes, port.code, port.count) == ([1, 0x55, 0xAA], 0xAA, 3)
    assert port.read(0, 1) == 0xFF


def test_latches_keep_each_its_own() -> None:
    latches = Latches("dma", 4, fill=0x11)
    latches.write(1, 0xAABB, 2)
    assert latches.read(0, 4) == 0x11AABB11
    latches.reset()
    assert latches.read(0, 4) == 0x11111111


def test_port92_a20_and_a_rising_reset() -> None:
    events: list[str] = []
    port = Port92(lambda: events.append("reset"), lambda on: events.append(f"a20 {on}"))
    port.write(0, 0x02, 1)
    port.write(0, 0x02, 1)
    assert events == ["a20 True"]
    assert port.read(0, 1) == 0x02
    port.write(0, 0x03, 1)
    port.write(0, 0x03, 1)
    port.write(0, 0x00, 1)
    port.write(0, 0x01, 1)
    assert events == ["a20 True", "reset", "a20 False", "reset"]


def test_port61_toggle_with_time_and_without() -> None:
    time = [0]
    port = Port61(lambda: time[0])
    assert [port.read(0, 1), port.read(0, 1)] == [0, 0]
    time[0] = REFRESH_NS
    assert port.read(0, 1) == 0x10
    alone = Port61()
    assert [alone.read(0, 1) for _ in range(4)] == [0x10, 0, 0x10, 0]


def test_port61_gate_and_output_of_the_timer() -> None:
    gates: list[bool] = []
    output = [False]
    port = Port61(lambda: 0, lambda: output[0], gates.append)
    port.write(0, 0xFD, 1)
    assert port.read(0, 1) == 0x0D
    output[0] = True
    assert port.read(0, 1) == 0x2D
    port.write(0, 0xFF, 1)
    port.reset()
    assert gates == [True, False]


def test_elcr_leaves_the_pcs_own_lines_alone() -> None:
    seen: list[int] = []
    elcr = Elcr(seen.append)
    elcr.write(0, 0xFFFF, 2)
    assert elcr.read(0, 2) == 0xDEF8
    elcr.write(1, 0, 1)
    assert elcr.read(0, 2) == 0x00F8
    assert seen == [0xDEF8, 0xF8]


def test_pci_is_not_there() -> None:
    pci = PciAbsent()
    pci.write(0, 0x80000000, 4)
    assert pci.read(0, 4) == 0xFFFFFFFF
    assert pci.read(4, 2) == 0xFFFF
    assert pci.read(1, 1) == 0xFF


def test_reset_control_register() -> None:
    resets: list[int] = []
    pci = PciAbsent(lambda: resets.append(1))
    pci.write(0, 0x0606, 4)  # a configuration address, not the register
    pci.write(1, 0x02, 1)
    assert not resets
    assert pci.read(1, 1) == 0x02
    pci.write(1, 0x06, 1)
    assert resets == [1]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"width": 3}, "Timer.control: a width of 3 bytes: it is 1, 2, 4 or 8"),
        ({"width": "x"}, "Timer.control: a width of 'x' bytes"),
        ({"offset": -1}, "Timer.control: offset -0x1 is negative"),
        ({"access": "x"}, "Timer.control: access 'x': it is rw, ro or wo"),
        ({"reset": 1 << 40}, "Timer.control: reset 0x10000000000 doesn't fit in 1 bytes"),
        ({"fields": {"a": 9}}, "Timer.control: field a has bits 9 to 9 of 8"),
    ],
)
def test_a_declaration_that_contradicts_itself(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(DeviceError, match=re.escape(words)):
        type("Timer", (RegisterFile,), {"control": Register(**{"offset": 0, "width": 1, **wrong})})
