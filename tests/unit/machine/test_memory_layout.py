"""RAM of a PC around the hole below 4 GiB."""

from __future__ import annotations

import pytest

from kvmpy.errors import UsageError
from kvmpy.machine.layout import ram_layout

GIB = 1 << 30


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (4096, [(0, 4096)]),
        (64 << 20, [(0, 64 << 20)]),
        (3 * GIB, [(0, 3 * GIB)]),
        (3 * GIB + 4096, [(0, 3 * GIB), (4 * GIB, 4096)]),
        (10 * GIB, [(0, 3 * GIB), (4 * GIB, 7 * GIB)]),
        ((1 << 52) - GIB, [(0, 3 * GIB), (4 * GIB, (1 << 52) - 4 * GIB)]),
    ],
)
def test_pieces(size: int, pieces: list[tuple[int, int]]) -> None:
    assert ram_layout(size) == pieces


@pytest.mark.parametrize("size", [0, -4096, 5000, (1 << 52) - GIB + 4096, 1 << 52, 1 << 70])
def test_bad_sizes(size: int) -> None:
    with pytest.raises(UsageError):
        ram_layout(size)
