"""Gives the suite under pytest the meaning that scripts/hostlab/inside/light.py gives it without."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import suite  # noqa: E402  found by the line above

from scripts.hostlab.inside.facts import gather  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "hosts: what a host with hardware virtualization must do (scripts/hosts)"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    if HERE in item.path.parents:
        item.add_marker("hosts")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found: dict[str, object] | None = getattr(metafunc.function, "cases", None)
    if found is not None:
        metafunc.parametrize("case", list(found.values()), ids=list(found))


@pytest.fixture(scope="session")
def facts() -> dict[str, Any]:
    return gather()


@pytest.fixture
def host(request: pytest.FixtureRequest, facts: dict[str, Any]) -> Iterator[suite.Host]:
    reason = suite.missing(request.function, facts)
    if reason:
        pytest.skip(reason)
    with suite.Host(facts) as host:
        yield host


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    except suite.Skip as reason:
        pytest.skip(str(reason))
