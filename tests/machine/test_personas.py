"""What a guest's CPUID instruction shows of its hypervisor."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from kvmpy.errors import UsageError
from kvmpy.machine.engine_kvm import PVM
from kvmpy.machine.machine import Machine
from kvmpy.machine.personas import choose
from kvmpy.x86.persona import PERSONAS
from kvmpy.x86.pv_features import CLOCKSOURCE2, NEED_APIC, NEED_HYPERCALL

LONG_ENOUGH = 60.0
Machines = Callable[..., Machine]
pytestmark = pytest.mark.kvmpy(timeout=2 * LONG_ENOUGH)
# The leaves in a list at 0x2000 until a zero; the answers to 0x3000 on.
CODE = bytes.fromhex(
    "be00200000 bf00300000"  # mov $0x2000, %esi; mov $0x3000, %edi
    "8b06 85c0 7417 31c9 0fa2 8907 895f04 894f08 89570c 83c604 83c710 ebe3"  # the loop
    "f4"
)
BLOCKS = [0x40000000, 0x40000100, 0x40000200]


def ask(machine: Machine, leaves: list[int]) -> dict[int, tuple[int, ...]]:
    machine.memory.write(0x2000, struct.pack(f"<{len(leaves) + 1}I", *leaves, 0))
    machine.load(CODE, mode="long", format="flat", load_address=0x100000)
    assert machine.run(timeout=LONG_ENOUGH).reason == "halt"
    answers = machine.memory.read(0x3000, 16 * len(leaves))
    return dict(zip(leaves, struct.iter_unpack("<4I", answers), strict=True))


def names(answers: dict[int, tuple[int, ...]]) -> list[bytes]:
    return [struct.pack("<3I", *answers[base][1:]).rstrip(b"\0") for base in BLOCKS]


@pytest.mark.parametrize(
    ("persona", "expected"),
    [
        ("kvm", [b"KVMKVMKVM"]),
        ("kvmpy", [b"kvmpykvmpyVM", b"KVMKVMKVM"]),
        ("hyperv", [b"Microsoft Hv", b"KVMKVMKVM"]),
        ("xen", [b"XenVMMXenVMM", b"KVMKVMKVM"]),
    ],
)
def test_what_the_guest_finds(machines: Machines, persona: str, expected: list[bytes]) -> None:
    machine = machines(memory="2M")
    choose(machine, persona)
    answers = ask(machine, [1, *BLOCKS, 0x40000001])
    found = [name for name in names(answers) if name in (b"KVMKVMKVM", *expected)]
    if persona != "kvm" and not machine.engine.in_kernel:
        expected = expected[:1]  # KVM's own features are KVM's
    assert found[: len(expected)] == expected
    assert names(answers)[0] == expected[0]
    assert answers[1][2] >> 31 == 1
    if persona == "hyperv":
        assert answers[0x40000001][0] == int.from_bytes(b"Hv#1", "little")


def test_none(machines: Machines) -> None:
    machine = machines(memory="2M")
    choose(machine, "none")
    answers = ask(machine, BLOCKS)
    assert not {b"KVMKVMKVM", b"kvmpykvmpyVM", b"KVMPYTRANSL8"} & set(names(answers))


def test_what_can_not_be(machines: Machines) -> None:
    machine = machines(memory="2M")
    with pytest.raises(UsageError, match="persona 'bhyve': one of kvm"):
        choose(machine, "bhyve")
    ask(machine, BLOCKS)
    with pytest.raises(UsageError, match="has run: CPUID can't be edited"):
        choose(machine, "kvm")


@pytest.mark.parametrize("persona", PERSONAS)
def test_on_the_command_line(command: Any, persona: str) -> None:
    assert command("run", "long-hello", "--persona", persona).stdout == b"Hello from long mode\n"
    if persona != "none":
        assert command("run", "console-hypercall", "--persona", persona).returncode == 0


@pytest.mark.parametrize("edited", [False, True])
def test_no_features_that_are_not_there(machines: Machines, edited: bool) -> None:
    """Both by the default table and by one that was looked at."""
    machine = machines(memory="2M", irqchip="none")
    if not machine.engine.in_kernel:
        pytest.skip(f"engine {machine.engine.name}: KVM's features are KVM's")
    if edited:
        assert machine.cpus[0].cpuid.hypervisor == "KVMKVMKVM"
    features = ask(machine, [0x40000001, *BLOCKS])[0x40000001][0]
    assert features & CLOCKSOURCE2
    assert not features & NEED_APIC
    if os.path.exists(PVM):
        assert not features & NEED_HYPERCALL
