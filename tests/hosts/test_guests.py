"""Every bundled guest prints what it should and ends as it should, on this host's hardware."""

from __future__ import annotations

import sys
from pathlib import Path

from suite import Host, cases

sys.path.append(str(Path(__file__).parents[1] / "machine"))

from expected_outputs import CPUS, EXPECTED, INPUT, MEMORY

from kvmpy.boot import bundled
from kvmpy.machine.machine import Machine
from kvmpy.machine.paravirt import Paravirt
from kvmpy.machine.pc import Pc

REASONS = {"halt": "halt", "exit": "exit", "crash": "crash", "never": "timeout"}


@cases(*EXPECTED)
def test_bundled_guest(host: Host, case: str) -> None:
    if case == "real-echo":
        host.avoid(
            "amd-bochs", because="Bochs 2.7 doesn't deliver an interrupt that is pending before STI, HLT"
        )
    expected, status, ends = EXPECTED[case]
    output = bytearray()
    irqchip = bundled.find(case).needs["irqchip"]
    machine = host.enter(Machine(MEMORY, CPUS.get(case, 1), "kvm", irqchip=irqchip))
    pc = Pc(machine, output.extend)
    if bundled.find(case).needs["paravirt"]:
        Paravirt(machine, output.extend)
    machine.load(case)
    pc.serial.receive(INPUT.get(case, b""))
    result = machine.run(timeout=0.5 if ends == "never" else 50)
    assert bytes(output) == expected
    assert (result.reason, result.status) == (REASONS[ends], status)
