"""What the guest ``compute`` sends, taken apart; the comparison with what isn't there."""

from __future__ import annotations

import struct

import pytest

from kvmpy.lab import compute, qemu
from kvmpy.lab.guests import LabImage


def sent(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", *pair) for pair in pairs)


def test_the_best_of_each_loop_counts_and_what_a_bios_said_does_not() -> None:
    pairs = [(900 + n, 500 - n) for n in range(compute.REPEATS)]
    assert compute.best_ticks(b"SeaBIOS\n" + sent(*pairs)) == {"count": 900, "sieve": 494}


def test_a_guest_that_ended_too_soon() -> None:
    with pytest.raises(ValueError, match="sent 16 bytes instead of 112"):
        compute.best_ticks(sent((1, 2)))


def test_ratios_are_of_pairs() -> None:
    summary = compute._summary([(100, 50), (100, 100), (100, 300)])
    assert (summary["ratio"], summary["low"], summary["high"]) == (1.0, 0.5, 3.0)


def test_without_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "PROGRAM", "no-such-qemu")
    assert compute.compare(1) == "no-such-qemu isn't installed (package qemu-system-x86)"


def test_the_guest_is_a_boot_sector() -> None:
    sector = LabImage.read("compute")
    assert len(sector) == 512
    assert sector.endswith(b"\x55\xaa")
