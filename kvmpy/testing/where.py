"""From a line of guest source to the line of the test file it stands in."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FrameType

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Caller:
    """The place in a test that called into kvmpy: ``path``, and the call's first and last line."""

    __slots__ = ("_code", "_instruction", "_line", "path")

    def __init__(self, path: str, line: int, code: CodeType | None = None, instruction: int = -1) -> None:
        self.path = path
        self._line = line
        self._code = code
        self._instruction = instruction

    def _span(self) -> tuple[int, int]:
        """First and last line of the call; looked up when somebody wants to know, for it takes a while."""
        if self._code is not None:
            from itertools import islice

            at = self._instruction // 2
            for line, end, _, _ in islice(self._code.co_positions(), at, at + 1):
                return line or self._line, end or self._line
        return self._line, self._line

    @property
    def line(self) -> int:
        """The call's first line."""
        return self._span()[0]

    @property
    def end(self) -> int:
        """Its last line."""
        return self._span()[1]

    def __str__(self) -> str:
        return f"{short(self.path)}:{self.line}"

    def lines(self) -> list[str]:
        """The file's lines; none if it can't be read."""
        import linecache

        return linecache.getlines(self.path)

    def of_source(self, source: str, line: int) -> int | None:
        """The file's line where line ``line`` (from 1) of ``source`` stands; None if it isn't written there."""
        text = "".join(self.lines())
        if source and "\n" in source.strip("\n"):
            at = text.find(source, _offset(text, self.line))
            if at < 0:
                at = text.find(source)
            if at >= 0:
                return text.count("\n", 0, at) + line
        return self._like(source, line)

    def _like(self, source: str, line: int) -> int | None:
        """The only line of the call that holds the same words (the text may be indented or escaped otherwise)."""
        parts = source.splitlines()
        wanted = parts[line - 1].strip() if 0 < line <= len(parts) else ""
        lines = self.lines()
        found = [at for at in range(self.line, self.end + 1) if wanted and wanted in lines[at - 1]]
        if not found and wanted:
            found = [at for at, written in enumerate(lines, 1) if wanted in written]
        return found[0] if len(found) == 1 else None

    def describe(self, source: str, line: int) -> str:
        """``test_x.py:12`` for a line of source, or the call's place and the line in the source."""
        found = self.of_source(source, line)
        return f"{short(self.path)}:{found}" if found else f"{self}, line {line} of the source"


def _offset(text: str, line: int) -> int:
    at = 0
    for _ in range(line - 1):
        at = text.find("\n", at) + 1
    return at


def short(path: str) -> str:
    """The path relative to the working directory where that is shorter."""
    try:
        relative = os.path.relpath(path)
    except ValueError:
        return path
    return relative if len(relative) < len(path) else path


def caller() -> Caller:
    """The nearest frame that isn't kvmpy's own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is None:
        return Caller("?", 0)
    return Caller(frame.f_code.co_filename, frame.f_lineno, frame.f_code, frame.f_lasti)
