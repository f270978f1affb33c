"""Instruction sequences on the kvm and the translate engine end in the same state.

What is compared, and the flags that aren't, is in differential.py, which has a long run, too. The generator keeps away
from the known differences, which docs/binary-translation.md lists.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from differential import Generator, Side, assemble, differences, inputs, start_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from translate_rig import system

from kvmpy.errors import EngineError

MODES = [(16, 0), (32, 0), (64, 0), (64, 3)]


class Pair:
    """Both engines, for one mode."""

    def __init__(self, bits: int, ring: int) -> None:
        from kvmpy import kvm

        self.bits, self.ring = bits, ring
        self.state = start_state(bits, ring)
        self.kvm = kvm.System()
        self.sides = [Side(self.kvm), Side(system())]

    def close(self) -> None:
        for side in self.sides:
            side.vcpu.close()
            side.vm.close()
        self.kvm.close()

    def check(self, text: str, seed: int) -> None:
        [code] = assemble([text], self.bits)
        data, values = inputs(random.Random(seed), self.bits)
        seen: list[dict[str, Any]] = []
        for side in self.sides:
            side.load(self.state, code, data, values)
            seen.append(side.run())
        assert not differences(*seen), f"{differences(*seen)}\n{text}"


@pytest.fixture(params=MODES, ids=lambda mode: f"{mode[0]}-ring{mode[1]}")
def pair(request: pytest.FixtureRequest) -> Any:
    try:
        pair = Pair(*request.param)
    except EngineError as error:
        pytest.skip(f"engine kvm: {error}")
    yield pair
    pair.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=st.randoms(use_true_random=False), seed=st.integers(0, 1 << 48))
def test_both_engines_end_in_the_same_state(pair: Pair, source: random.Random, seed: int) -> None:
    pair.check(Generator(pair.bits, source, pair.ring).sequence(), seed)


def test_a_difference_is_noticed() -> None:
    try:
        pair = Pair(64, 0)
    except EngineError as error:
        pytest.skip(f"engine kvm: {error}")
    try:
        pair.check("mov eax, 1\n hlt", 0)
        pair.sides[1].vcpu.set_cpuid2([(0, 0, 0, 1, 2, 3, 4)])
        with pytest.raises(AssertionError, match="rbx"):
            pair.check("xor eax, eax\n cpuid\n hlt", 0)
    finally:
        pair.close()
