"""The bar on stderr: on a terminal only, with a share where there is one."""

from __future__ import annotations

import io
import sys

import pytest

from kvmpy.cli.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with Bar() as bar:
        bar.show(0.5, "round 1")
        bar.show(None, "64 exits")
    shown = screen.getvalue()
    assert "50% round 1" in shown
    assert "64 exits" in shown and "% 64 exits" not in shown


def test_a_file_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bar() as bar:
        bar.show(0.5, "round 1")
    assert screen.getvalue() == ""
