"""Golden traces: every exit of a test, kept in a file beside it.

``golden/NAME.trace`` in the test file's directory: an exit a line, as it is written in a test. Lines may be made looser
by hand (``In(0x60, ANY)``, ``...``); an update leaves a file alone that matches.
"""

from __future__ import annotations

import os

from kvmpy.testing import diff
from kvmpy.testing.exits import parse
from kvmpy.testing.problems import GoldenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.testing.trace import ExitList

HEADER = "# kvmpy golden trace, version 1"
UPDATE = "--kvmpy-update-golden"


class Golden:
    """Compares with ``guest.trace`` or any list of exits."""

    def __init__(self, name: str, path: str, update: bool) -> None:
        self.name = name
        self.path = path
        self._update = update

    def __repr__(self) -> str:
        return f"golden({self.name!r})"

    def expected(self) -> list[object]:
        """The file's exits. Raises GoldenError: missing, damaged."""
        from kvmpy.testing.where import short

        where = short(self.path)
        try:
            with open(self.path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            raise GoldenError(
                f"golden trace {self.name!r} doesn't exist ({where}): run the test once with {UPDATE}"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise GoldenError(f"golden trace {where} can't be read: {error}") from None
        if not lines or lines[0] != HEADER:
            raise GoldenError(
                f"golden trace {where} is damaged: its first line isn't {HEADER!r}; run with {UPDATE}"
            )
        return [_line(where, number, line) for number, line in enumerate(lines[1:], 2) if line.strip()]

    def compare(self, seen: ExitList) -> bool:
        """Whether ``seen`` matches; with the update option it does afterwards."""
        __tracebackhide__ = True
        try:
            if diff.matches(seen, self.expected()):
                return True
        except GoldenError:
            if not self._update:
                raise
        if not self._update:
            return False
        self._write(seen)
        return True

    def __eq__(self, other: object) -> bool:
        from kvmpy.testing.trace import ExitList

        return self.compare(other) if isinstance(other, ExitList) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def _write(self, seen: ExitList) -> None:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        part = f"{self.path}.{os.getpid()}.part"
        with open(part, "w", encoding="utf-8") as file:
            file.write("\n".join([HEADER, *map(repr, seen)]) + "\n")
        os.replace(part, self.path)


def _line(where: str, number: int, line: str) -> object:
    if line.strip() == "...":
        return ...
    try:
        return parse(line)
    except ValueError as error:
        raise GoldenError(f"golden trace {where}:{number} is damaged: {error}; run with {UPDATE}") from None


def golden(name: str) -> Golden:
    """The golden trace ``name`` of the running test's directory: ``assert guest.trace == golden("boot")``.

    Raises UsageError outside a test, and for a name that isn't a plain file name.
    """
    from kvmpy.errors import UsageError
    from kvmpy.testing.context import current

    if not name or os.path.basename(name) != name or name.startswith("."):
        raise UsageError(f"golden trace {name!r}: a plain name, without directories")
    return current().golden(name)
