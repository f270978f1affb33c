"""scripts/hostlab isn't part of the installed package: it is found from the root of the source tree."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture
def root() -> Path:
    """The root of the source tree."""
    return ROOT


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache. Returns the directory that hosts uses instead."""
    monkeypatch.setenv("KVMPY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hosts"
