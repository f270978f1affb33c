"""What was seen against what was expected: matching with wildcards, and the two side by side."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Row = tuple[int | None, int | None]

WIDTH = 48
CONTEXT = 3
MOST_ALIGNED = 400
MOST_ROWS = 60


def matches(seen: Sequence[object], expected: Sequence[object]) -> bool:
    """Whether each exit matches its pattern; ``...`` stands for any number of exits."""
    if ... not in [each for each in expected if each is ...]:
        return len(seen) == len(expected) and all(s == e for s, e in zip(seen, expected, strict=True))
    at = wanted = 0
    star, resume = -1, 0
    while at < len(seen):
        if wanted < len(expected) and expected[wanted] is ...:
            star, resume = wanted, at
            wanted += 1
        elif wanted < len(expected) and seen[at] == expected[wanted]:
            at += 1
            wanted += 1
        elif star >= 0:
            resume += 1
            at, wanted = resume, star + 1
        else:
            return False
    return all(each is ... for each in expected[wanted:])


def align(seen: Sequence[object], expected: Sequence[object]) -> list[Row]:
    """Pairs (index seen, index expected) that belong side by side; None where the other has nothing."""
    head = 0
    while head < min(len(seen), len(expected)) and seen[head] == expected[head]:
        head += 1
    tail = 0
    while tail < min(len(seen), len(expected)) - head and seen[-1 - tail] == expected[-1 - tail]:
        tail += 1
    rows: list[Row] = [(i, i) for i in range(head)]
    rows += _middle(seen, expected, head, len(seen) - tail, len(expected) - tail)
    return rows + [(len(seen) - tail + i, len(expected) - tail + i) for i in range(tail)]


def _middle(seen: Sequence[object], expected: Sequence[object], first: int, end: int, stop: int) -> list[Row]:
    """The part that differs, by the cheapest edits; beyond a size only position by position."""
    if end - first > MOST_ALIGNED or stop - first > MOST_ALIGNED:
        count = max(end, stop) - first
        return [
            (first + i if first + i < end else None, first + i if first + i < stop else None)
            for i in range(count)
        ]
    width, height = stop - first, end - first
    cost = [[0] * (width + 1) for _ in range(height + 1)]
    for i in range(height, -1, -1):
        for j in range(width, -1, -1):
            cost[i][j] = _cost(cost, seen, expected, first, i, j, height, width)
    return list(_walk(cost, seen, expected, first, height, width))


def _unlike(one: object, other: object) -> int:
    """A changed exit of the same kind is nearer than one of another: 2 against 3; equal ones cost nothing."""
    if other is ...:
        return 0
    return 0 if one == other else 2 if type(one) is type(other) else 3


def _cost(
    cost: list[list[int]],
    seen: Sequence[object],
    expected: Sequence[object],
    first: int,
    i: int,
    j: int,
    height: int,
    width: int,
) -> int:
    if i == height:
        return 2 * sum(expected[first + k] is not ... for k in range(j, width))
    if j == width:
        return 2 * (height - i)
    wanted = expected[first + j]
    if wanted is ...:
        return min(cost[i + 1][j], cost[i][j + 1])
    return min(cost[i + 1][j + 1] + _unlike(seen[first + i], wanted), cost[i + 1][j] + 2, cost[i][j + 1] + 2)


def _walk(
    cost: list[list[int]],
    seen: Sequence[object],
    expected: Sequence[object],
    first: int,
    height: int,
    width: int,
) -> list[Row]:
    rows: list[Row] = []
    i = j = 0
    while i < height or j < width:
        if i == height:
            rows.append((None, first + j))
            j += 1
        elif j == width:
            rows.append((first + i, None))
            i += 1
        elif expected[first + j] is ...:
            if cost[i][j] == cost[i][j + 1]:
                j += 1
            else:
                rows.append((first + i, first + j))
                i += 1
        elif cost[i][j] == cost[i + 1][j + 1] + _unlike(seen[first + i], expected[first + j]):
            rows.append((first + i, first + j))
            i, j = i + 1, j + 1
        elif cost[i][j] == cost[i + 1][j] + 2:
            rows.append((first + i, None))
            i += 1
        else:
            rows.append((None, first + j))
            j += 1
    return rows


def side_by_side(seen: Sequence[object], expected: Sequence[object]) -> tuple[str, list[str]]:
    """(one line that says where they part, the lines of a table: index, seen, expected, ``!`` where they differ)."""
    rows = align(seen, expected)
    bad = [at for at, (i, j) in enumerate(rows) if not _same(seen, expected, i, j)]
    count = len(expected)
    where = rows[bad[0]] if bad else (0, 0)
    at = where[0] if where[0] is not None else f"the end ({len(seen)})" if bad[0] >= len(seen) else bad[0]
    summary = f"first difference at {at}: {len(seen)} seen, {count} expected"
    shown = sorted({k for b in bad for k in range(max(0, b - CONTEXT), min(len(rows), b + CONTEXT + 1))})
    cells = [
        (i, "-" if i is None else repr(seen[i]), "-" if j is None else _pattern(expected[j]), k in bad)
        for k, (i, j) in enumerate(rows)
        if k in set(shown[:MOST_ROWS])
    ]
    width = min(max([len(cell[1]) for cell in cells] + [4]), WIDTH)
    lines = [f"  {'':>5}  {'seen':<{width}}  expected"]
    before = -1
    for place, (i, left, right, differs) in zip(shown, cells, strict=False):
        if place != before + 1:
            lines.append("      …")
        before = place
        number = "" if i is None else str(i)
        lines.append(f"{'!' if differs else ' '} {number:>5}  {left:<{width}}  {right}")
    if shown and (before != len(rows) - 1 or len(shown) > MOST_ROWS):
        lines.append("      …")
    return summary, lines


def _pattern(expected: object) -> str:
    return "..." if expected is ... else repr(expected)


def _same(seen: Sequence[object], expected: Sequence[object], i: int | None, j: int | None) -> bool:
    if j is not None and expected[j] is ...:
        return True
    return i is not None and j is not None and seen[i] == expected[j]
