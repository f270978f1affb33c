"""What is known of a guest that can't go on."""

from __future__ import annotations

from guests import PATIENCE, make
from listing import code
from suite import Host

from kvmpy.cli.crash_report import render

UNDEFINED = code(
    64,
    """
      bb 5a 5a 00 00   mov ebx, 0x5a5a
    here:
      0f 0b            ud2
    """,
)


def test_a_crash_report_of_a_triple_fault(host: Host) -> None:
    """With the registers at the fault; where there are none left, on AMD-V, it says so."""
    host.avoid("amd-bochs", because="Bochs ends at a guest's triple fault instead of leaving the guest")
    machine = make(host, UNDEFINED)
    crash = machine.run(timeout=PATIENCE).crash
    assert crash is not None
    text = render(machine, crash)
    if host.module == "kvm_amd":
        assert crash.remark and crash.remark in text
        assert crash.registers["rip"] == 0xFFF0
    else:
        assert not crash.remark
        assert (crash.registers["rip"], crash.registers["rbx"]) == (UNDEFINED.at["here"], 0x5A5A)
        assert "ud2" in text or "0f 0b" in text
