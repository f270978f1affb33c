"""The examples of docs/testing.md run as they stand, on every engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
HEAD = "```python head\n"
EXAMPLES = {
    "test_counts": (),
    "test_a_device_adds": (),
    "test_an_interrupt_arrives": (),
    "test_a_write_to_nowhere_is_a_page_fault": (),
    "test_a_latch_keeps_what_was_written": (),
    "test_dirty_registers_reach_the_guest": ("translate",),
    "test_patterns": (),
    "test_echo": (),
}
"""Name -> engines that it isn't for."""


def blocks() -> tuple[str, list[str]]:
    text = PAGE.read_text(encoding="utf-8")
    head = text.partition(HEAD)[2].partition("```")[0]
    return head, re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def test_every_block_is_known() -> None:
    _, found = blocks()
    assert [re.search(r"def (test_\w+)", block)[1] for block in found] == list(EXAMPLES)  # type: ignore[index]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, kvmpy_engine: str, pytester: pytest.Pytester) -> None:
    if kvmpy_engine in EXAMPLES[name]:
        pytest.skip(f"for other engines than {kvmpy_engine}")
    head, found = blocks()
    source = next(block for block in found if f"def {name}(" in block)
    pytester.makepyfile(test_page=head + source)
    result = pytester.runpytest_inprocess(
        f"--kvmpy-engine={kvmpy_engine}", "-rs", "-p", "no:hypothesispytest"
    )
    outcomes = result.parseoutcomes()
    reason = next((line for line in result.outlines if line.startswith("SKIPPED")), "")
    if outcomes.get("skipped") and "interrupt controllers" in reason:
        pytest.skip(reason)
    assert outcomes.get("passed") == 1 and not outcomes.get("failed"), result.stdout.str()
