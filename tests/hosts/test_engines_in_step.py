"""This host's hardware and the translate engine do the same, exit by exit."""

from __future__ import annotations

from contextlib import ExitStack

from suite import Host, cases, skip

from kvmpy.errors import EngineError
from kvmpy.lab.lockstep import Lockstep, Side
from kvmpy.lab.twins import Guest, sides
from kvmpy.machine.engine import open_engine

# All bundled guests that do the same each time, and after how many exits registers and memory are compared too:
# that is what takes long on an emulated host.
STEADY = {
    "real-hello": 4,
    "protected-hello": 4,
    "long-hello": 4,
    "long-user": 16,
    "long-exceptions": 16,
    "mode-switch": 16,
    "sieve": 4,
    "memory-walk": 4,
    "crash": 4,
    "console-uart": 100,
    "console-hypercall": 1,
    "console-ring": 1,
    "work-pio": 100,
    "work-mmio": 100,
    "work-hypercall": 100,
    "exit-storm": 500,
}
MEMORY, MORE_MEMORY = "2M", {"long-user": "8M"}  # all of it is compared
ENOUGH, ENOUGH_EMULATED = 600, 100
"""Of guests that do the same over and over so many exits are compared: one takes emulated hosts long."""


def leave_out(side: Side, name: str) -> None:
    """That register isn't compared."""
    all_of_them = side.registers
    side.registers = lambda: {key: value for key, value in all_of_them().items() if key != name}  # type: ignore[method-assign]


@cases(*STEADY)
def test_engines_in_step(host: Host, case: str) -> None:
    try:
        open_engine("translate")
    except EngineError as error:
        skip(f"translate: {error}")
    if case == "crash":
        host.avoid("amd-bochs", because="Bochs ends at a guest's triple fault instead of leaving the guest")
    guest = Guest(case, MORE_MEMORY.get(case, MEMORY))
    both, _ = sides(guest, ("kvm", "translate"), host.enter(ExitStack()))
    if host.name == "amd-bochs":
        # Bochs doesn't load CR2 from the VMCB: the host's stays there.
        for side in both:
            leave_out(side, "cr2")
    enough = ENOUGH if host.name == "local" else ENOUGH_EMULATED
    found = Lockstep(both, STEADY[case], timeout=100, max_events=enough)
    difference = found.run()
    assert difference is None, difference.as_dict()
    assert not found.unfinished or found.events >= enough, found.unfinished
