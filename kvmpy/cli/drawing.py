"""Tables and styled text as a string: rich draws, and whoever writes it handles a stream that can't be written."""

from __future__ import annotations

import io

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from rich.console import RenderableType

PIPE_WIDTH = 200
"""Columns where there is no terminal of some width: nothing is broken in two."""


def draw(stream: TextIO, *what: RenderableType) -> str:
    """``what``, one below the other, as it looks best on ``stream``: as wide as it if it is a terminal, and styled."""
    from rich.console import Console

    terminal = stream.isatty()
    paper = io.StringIO()
    console = Console(
        file=paper, force_terminal=terminal, width=None if terminal else PIPE_WIDTH, highlight=False
    )
    for one in what:
        console.print(one)
    return "\n".join(line.rstrip(" ") for line in paper.getvalue().split("\n"))
