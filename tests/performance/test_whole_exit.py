"""What an exit costs from the guest and back, against QEMU with the same guest in the same run."""

from __future__ import annotations

import shutil

import pytest

from kvmpy.lab import qemu
from tests import engines

MOST = {"c": 0.95, "python": 1.0}


def test_an_exit_costs_less_than_qemus() -> None:
    """Best rounds: other programs on the machine lengthen either side's."""
    engines.need("kvm")
    if shutil.which(qemu.PROGRAM) is None:
        pytest.skip(f"{qemu.PROGRAM} isn't installed")
    found = qemu.compare(5)
    assert not isinstance(found, str), found
    best = {place: found["spread"][place][0] for place in MOST}
    assert {place for place, most in MOST.items() if best[place] > most} == set(), best
