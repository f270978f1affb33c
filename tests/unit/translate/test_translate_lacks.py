"""What the translator has no word for, and whose it is."""

from __future__ import annotations

import pytest

from kvmpy.translate.lacks import feature_of
from kvmpy.x86.cpuid_features import FEATURES


@pytest.mark.parametrize(
    ("code", "feature"),
    [
        ("c5f058c2", "avx"),  # vaddps xmm0, xmm1, xmm2
        ("c4e2f9a8c1", "avx"),  # vfmadd213pd
        ("62f1745858c2", "avx512f"),
        ("8fe97890c0", "xop"),
        ("66 0f38 82 00", "invpcid"),
        ("0fc7f8", "rdseed"),
        ("0fc7 2f", "xsaves"),
        ("48 0fc7 27", "xsavec"),
        ("0f38c8 c1", "sha_ni"),
        ("0f01fc", "clzero"),
        ("0f01e8", "serialize"),
        ("f2 0f01e8", "tsxldtrk"),
        ("f3 0faef0", "waitpkg"),
        ("c7f8 00000000", "rtm"),
        ("f2 0f79 c1", "sse4a"),
        ("66 0f79 c1", "sse4a"),
        ("0f79 c1", "vmx"),
        ("0f0b", None),  # ud2
        ("0fff c0", None),
        ("f0 f3 0fb8 c3", None),  # lock popcnt
        ("f3 0fc7f8", None),  # rdpid
    ],
)
def test_the_feature_of_an_instruction(code: str, feature: str | None) -> None:
    assert feature_of(bytes.fromhex(code).ljust(15, b"\0"), 64) == feature


@pytest.mark.parametrize("code", ["c500", "c400", "6200"])
def test_outside_64_bit_code_they_may_be_older(code: str) -> None:
    """LDS, LES and BOUND with a memory operand."""
    assert feature_of(bytes.fromhex(code), 32) is None
    assert feature_of(bytes.fromhex(code), 64) is not None


@pytest.mark.parametrize("length", range(15))
def test_any_number_of_bytes(length: int) -> None:
    for byte in (0x00, 0x0F, 0x62, 0x66, 0xC4, 0xF0, 0xFF):
        feature_of(bytes([byte]) * length, 64)


def test_every_feature_has_a_name_in_cpuid() -> None:
    from kvmpy.translate import lacks

    names = {row.feature for row in lacks._ROWS}
    assert names <= set(FEATURES)
