"""What handing over an exit costs, against floors of the same run. Best rounds: what they lose to is the machine's."""

from __future__ import annotations

from typing import Any

import pytest

from kvmpy.lab import dispatch

ROUNDS = 15
# Times the floor. Quiet machines come to 5 to 7, 8 to 9, 12, 12 and 2.5: a step that doubles the work is seen.
MOST = {"constant": 10, "registers": 14, "native": 14, "ring": 20, "python": 5}


@pytest.mark.parametrize("access", ["pio write", "pio read", "mmio write", "mmio read"])
@pytest.mark.parametrize("place", MOST)
def test_a_place_costs_so_many_floors(place: str, access: str) -> None:
    case = dispatch.stub_case(place, access)
    with case.machine:
        dispatch.measure([case], ROUNDS)
    assert min(case.samples) / min(case.floors) < MOST[place]


def test_two_vcpus_dont_wait_for_each_other() -> None:
    """Whatever the machine makes of two loops, it makes the same of two vCPUs that C serves."""
    two = dispatch.scaling(lambda vcpus: dispatch.stub_case("constant", "pio write", vcpus), ROUNDS)
    assert two["of_floor_p90"] > 0.9


def test_the_report_has_it_all() -> None:
    report: dict[str, Any] = dispatch.run((), quick=True)
    assert report["schema"] == dispatch.SCHEMA
    assert {case["place"] for case in report["cases"]} == {*dispatch.RULES, "python"}
    assert set(report["two_vcpus"]) == {"stub"}
    assert report["ring_records_per_second"] > 0
