"""The few of pytest's arguments that the light runner knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

KNOWN = "-k EXPRESSION, -x, --maxfail=N, -v, -q, PATH, PATH::TEST"
_WORD = re.compile(r"\(|\)|[^\s()]+")


class Selection(NamedTuple):
    """Which tests to run (``names`` are files or ids), and after how many failures to stop (0: never)."""

    names: tuple[str, ...]
    expression: str
    most_failures: int

    def wants(self, test: str) -> bool:
        """Whether the test with this id is to be run."""
        named = not self.names or any(
            test == name or test.startswith((f"{name}::", f"{name}[")) for name in self.names
        )
        return named and matches(self.expression, test)


def parse(words: Sequence[str], suite: str) -> Selection:
    """Read the arguments. ValueError for one that isn't known."""
    names: list[str] = []
    expression, most = "", 0
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "-k" and rest:
            expression = rest.pop(0)
        elif word.startswith("-k") and len(word) > 2:
            expression = word[2:]
        elif word in ("-x", "--exitfirst"):
            most = 1
        elif word.startswith("--maxfail="):
            most = int(word.removeprefix("--maxfail="))
        elif word.startswith("-"):
            if word.strip("-") not in ("v", "vv", "q", "qq", "verbose", "quiet"):
                raise ValueError(f"this host's runner doesn't know {word}: {KNOWN}")
        elif word.strip("/") != suite:
            names.append(word.removeprefix(f"{suite}/"))
    return Selection(tuple(names), expression, most)


def matches(expression: str, test: str) -> bool:
    """Whether ``test`` satisfies a ``-k`` expression: parts of names with and, or, not and parentheses; any
    case.

    ValueError if the expression isn't one.
    """
    if not expression.strip():
        return True
    lowered = test.lower()
    python = " ".join(
        word if word in ("and", "or", "not", "(", ")") else str(word.lower() in lowered)
        for word in _WORD.findall(expression)
    )
    try:
        return bool(eval(python, {"__builtins__": {}}))  # of nothing but True, False, and the words above
    except SyntaxError:
        raise ValueError(f"-k {expression!r} isn't names with and, or, not and parentheses") from None
