"""This host's hardware and the translate engine do the same, exit by exit."""

from __future__ import annotations

from suite import Host, cases, skip

from kvmpy.errors import EngineError
from kvmpy.lab.twins import Guest, compare
from kvmpy.machine.engine import open_engine

STEADY = (
    "real-hello",
    "protected-hello",
    "long-hello",
    "long-user",
    "long-exceptions",
    "mode-switch",
    "sieve",
    "console-hypercall",
    "console-ring",
)


@cases(*STEADY)
def test_engines_in_step(host: Host, case: str) -> None:
    try:
        open_engine("translate")
    except EngineError as error:
        skip(f"translate: {error}")
    found = compare(Guest(case), every=4, timeout=100)
    assert found.difference is None, found.difference.as_dict()
    assert found.unfinished == ""
