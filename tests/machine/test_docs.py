"""The examples in docs/ run as they stand."""

from __future__ import annotations

from pathlib import Path

from engines import need

DOCS = Path(__file__).parents[2] / "docs"


def examples(page: str) -> str:
    """All Python blocks of a page, one after the other, at the lines they have there."""
    lines = []
    inside = False
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines)


def test_fast_path_examples() -> None:

    need("kvm")
    source = examples("fast-path.md")
    assert source.count("kvmpy.Machine(") == 5
    exec(compile(source, str(DOCS / "fast-path.md"), "exec"), {"__name__": "fast_path"})


def test_rescue_examples() -> None:
    source = examples("rescue.md")
    assert source.count("kvmpy.Machine(") == 1
    exec(compile(source, str(DOCS / "rescue.md"), "exec"), {"__name__": "rescue"})


def test_paravirtual_examples() -> None:
    source = examples("paravirtual.md")
    assert source.count("kvmpy.Machine(") == 2
    exec(compile(source, str(DOCS / "paravirtual.md"), "exec"), {"__name__": "paravirtual"})
