"""A bar on stderr that shows how far something is; nothing where stderr is no terminal."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self


class Bar:
    """A context manager. The screen is only touched by :meth:`show`, never while something is measured."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def show(self, share: float | None, what: str = "") -> None:
        """Moves the bar to ``share``, 0 to 1, or None where nobody knows how much there is; ``what`` is going on."""
        if self._bar is None:
            return
        words = what if share is None else f"{share:4.0%} {what}"
        total = None if share is None else 1.0
        self._bar.update(self._task, total=total, completed=share or 0.0, description=words)
        self._bar.refresh()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        return self

    def __exit__(self, *details: object) -> None:
        if self._bar is not None:
            self._bar.stop()
