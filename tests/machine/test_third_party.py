"""Guests nobody here wrote start, and print what they print elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from third_party import invaders, seabios, xen

from kvmpy.machine.machine import Machine
from kvmpy.machine.pc import Pc
from kvmpy.machine.result import Result

LONG_ENOUGH = 120.0
SCREEN, COLUMNS, ROWS = 0xB8000, 80, 25


def run_until(machine: Machine, seen: Callable[[], bool]) -> Result:
    """In slices, until ``seen()`` or the guest has ended."""
    deadline = time.monotonic() + LONG_ENOUGH
    while True:
        result = machine.run(timeout=0.25)
        if seen() or result.reason != "timeout" or time.monotonic() > deadline:
            return result


def screen(machine: Machine) -> list[str]:
    """The text on the VGA screen, lines without their trailing blanks."""
    cells = machine.memory.read(SCREEN, 2 * COLUMNS * ROWS)[::2].replace(b"\0", b" ")
    return [cells[at : at + COLUMNS].decode("cp437").rstrip() for at in range(0, len(cells), COLUMNS)]


@pytest.mark.kvmpy(memory="16M", irqchip="any", timeout=120)
def test_seabios_reaches_its_banner(machine: Machine) -> None:
    serial, debug = bytearray(), bytearray()
    Pc(machine, serial.extend, debug.extend)
    payload = machine.load(seabios())
    assert payload.format == "rom"
    run_until(machine, lambda: b"SeaBIOS (version 1." in serial)
    assert debug.startswith(b"SeaBIOS (version 1.")
    assert b"SeaBIOS (version 1." in serial


@pytest.mark.kvmpy(memory="16M", irqchip="any", timeout=120)
def test_seabios_finds_nothing_to_boot(machine: Machine) -> None:
    """The build for machines without PCI takes its memory map from fw_cfg and goes all the way."""
    output = bytearray()
    Pc(machine, output.extend)
    machine.load(seabios("bios-microvm.bin"))
    run_until(machine, lambda: b"No bootable device" in output)
    assert b"No bootable device" in output


@pytest.mark.kvmpy(memory="32M", irqchip="any", timeout=120)
def test_a_multiboot_game_draws_its_screen(machine: Machine) -> None:
    Pc(machine, lambda data: None)
    payload = machine.load(invaders())
    assert payload.format == "multiboot"
    run_until(machine, lambda: sum(line.count("-*-") for line in screen(machine)) >= 10)
    assert sum(line.count("-*-") for line in screen(machine)) >= 10


@pytest.mark.kvmpy(memory="256M", irqchip="any", timeout=120, rescue=True)
def test_xen_prints_on_the_serial_console(machine: Machine, tmp_path: Path) -> None:
    """Real mode for its questions to the BIOS, protected mode, long mode with its own paging, then the UART."""
    output = bytearray()
    Pc(machine, output.extend)
    payload = machine.load(xen(tmp_path), append="com1=115200,8n1 console=com1")
    assert payload.format == "multiboot"
    result = run_until(machine, lambda: b"dom0 kernel not specified" in output)
    assert result.crash is None, f"{result.crash.what} {result.crash.remark}"
    assert output.startswith(b"(XEN) Xen version 4.17")
    assert b"(XEN) Command line: com1=115200,8n1 console=com1" in output
    assert b"(XEN) dom0 kernel not specified" in output
