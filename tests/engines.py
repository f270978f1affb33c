"""Which engines work on this host, for tests that choose one themselves."""

from __future__ import annotations

import pytest

from kvmpy.errors import EngineError
from kvmpy.machine.engine import open_engine


def why_not(name: str) -> str:
    """Why an engine (or "auto": any) doesn't work here; empty if it does."""
    try:
        open_engine(name)
    except EngineError as error:
        return str(error)
    return ""


def working() -> list[str]:
    """Those that do."""
    return [name for name in ("kvm", "translate") if not why_not(name)]


def need(name: str, vcpus: int = 1) -> str:
    """Skips the test where an engine doesn't work, or hasn't as many vCPUs; its name."""
    reason = why_not(name)
    if reason:
        pytest.skip(f"engine {name}: {reason}")
    most = open_engine(name).max_vcpus
    if most < vcpus:
        pytest.skip(f"engine {name} has {most} vCPU, {vcpus} are needed")
    return name
