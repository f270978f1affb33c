"""Multiboot kernels in the style of kvm-unit-tests, with their own IDT: the same on every engine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kvmpy.machine.machine import Machine
from kvmpy.machine.pc import Pc

SOURCES = Path(__file__).with_name("multiboot")
LINES = ["divide error", "undefined instruction", "general protection"]
KERNELS = {"exceptions32": [*LINES, "done"], "exceptions64": [*LINES, "page fault", "done"]}


def kernel(name: str, folder: Path) -> bytes:
    """The kernel as kvm-unit-tests has its own: linked for 64 bit, in a 32-bit ELF file."""
    commands = [
        ["as", "--64", "-o", folder / "kernel.o", f"{name}.s"],
        [
            "ld",
            "-z",
            "max-page-size=4096",
            "-Ttext=0x100000",
            "-e",
            "_start",
            "-o",
            folder / "long",
            folder / "kernel.o",
        ],
        ["objcopy", "-O", "elf32-i386", folder / "long", folder / "kernel"],
    ]
    for command in commands:
        subprocess.run(command, cwd=SOURCES, check=True, stderr=subprocess.PIPE)
    return (folder / "kernel").read_bytes()


@pytest.mark.kvmpy(memory="16M", irqchip="any", timeout=60)
@pytest.mark.parametrize("name", KERNELS)
def test_exceptions_through_their_own_idt(machine: Machine, tmp_path: Path, name: str) -> None:
    output = bytearray()
    Pc(machine, output.extend)
    assert machine.load(kernel(name, tmp_path)).format == "multiboot"
    result = machine.run(timeout=30)
    if machine.engine.name == "kvm" and result.crash is not None and "emulation failure" in result.crash.what:
        pytest.skip(f"this host's KVM can't run it: {result.crash.what}")  # IRET in 32 bit, on PVM
    assert output.decode().splitlines() == KERNELS[name], result
    assert (result.reason, result.status) == ("exit", 0)
