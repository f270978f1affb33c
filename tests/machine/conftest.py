"""Machines with nothing in between: no trace, no time limit of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kvmpy.errors import EngineError
from kvmpy.machine.engine import open_engine
from kvmpy.machine.machine import Machine

AT = 0x1000
"""Where the code of these machines begins."""


def make_machine(engine: str, code: bytes = b"\xf4", mode: str = "real", **settings: Any) -> Machine:
    """A machine of 1 MiB with ``code`` at AT and every vCPU that has none to start it ready to run that."""
    machine = Machine(settings.pop("memory", "1M"), engine=engine, **settings)
    try:
        entry = machine.load(code, mode=mode, format="flat", load_address=AT).entry
        for cpu in machine.cpus[1:]:
            cpu.load(entry)
            if machine.irqchip != "none":
                cpu.vcpu.set_mp_state(0)  # KVM_MP_STATE_RUNNABLE
    except BaseException:
        machine.close()
        raise
    return machine


@pytest.fixture
def bare(kvmpy_engine: str) -> Iterator[Callable[..., Machine]]:
    """``bare(code, cpus=2)``: see :func:`make_machine`; closed when the test is over."""
    engine = _engine(kvmpy_engine)
    with ExitStack() as stack:

        def make(*what: Any, **settings: Any) -> Machine:
            if settings.get("cpus", 1) > engine.max_vcpus:
                pytest.skip(f"engine {kvmpy_engine} has {engine.max_vcpus} vCPU at most")
            return stack.enter_context(make_machine(kvmpy_engine, *what, **settings))

        yield make


@pytest.fixture
def in_kernel(kvmpy_engine: str) -> None:
    """Skips on engines that aren't in the kernel."""
    if not _engine(kvmpy_engine).in_kernel:
        pytest.skip(f"engine {kvmpy_engine} isn't in the kernel")


def _engine(name: str) -> Any:
    try:
        return open_engine(name)
    except EngineError as error:
        pytest.skip(f"engine {name}: {error}")
