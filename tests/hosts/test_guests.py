"""Every bundled guest prints what it should and ends as it should, on this host's hardware."""

from __future__ import annotations

import sys
from pathlib import Path

from suite import Host, cases

sys.path.append(str(Path(__file__).parents[1] / "machine"))

from expected_outputs import CPUS, EXPECTED, INPUT, MEMORY

from kvmpy.boot import bundled
from kvmpy.machine.paravirt import Paravirt
from kvmpy.machine.pc import Pc

REASONS = {"halt": "halt", "exit": "exit", "crash": "crash", "never": "timeout"}
LONG = 100
"""Seconds, more than the runner allows a test: on a busy machine the emulated one is slow, and that is no failure."""
# What Bochs 2.7 gets wrong in AMD-V only.
WRONG_IN_BOCHS = {
    "real-echo": "Bochs doesn't deliver an interrupt that is pending before STI, HLT",
    "crash": "Bochs ends at a guest's triple fault instead of leaving the guest",
}


@cases(*EXPECTED)
def test_bundled_guest(host: Host, case: str) -> None:
    if case in WRONG_IN_BOCHS:
        host.avoid("amd-bochs", because=WRONG_IN_BOCHS[case])
    expected, status, ends = EXPECTED[case]
    output = bytearray()
    irqchip = bundled.find(case).needs["irqchip"]
    machine = host.machine(memory=MEMORY, cpus=CPUS.get(case, 1), irqchip=irqchip, trace=False)
    pc = Pc(machine, output.extend)
    if bundled.find(case).needs["paravirt"]:
        Paravirt(machine, output.extend)
    machine.load(case)
    pc.serial.receive(INPUT.get(case, b""))
    result = machine.run(timeout=0.5 if ends == "never" else LONG)
    assert bytes(output) == expected
    assert (result.reason, result.status) == (REASONS[ends], status)
