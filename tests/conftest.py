"""Fixtures for the command line: run as a program of its own, on pipes or on a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of a test.
settings.register_profile("kvmpy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvmpy")

PROGRAM = [sys.executable, "-m", "kvmpy"]
LONG_ENOUGH = 120.0  # seconds; only a program that hangs takes that long


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the tests take minutes: only who asks for them by ``-m mutation`` gets them."""
    if "mutation" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("mutation")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("mutation")]


class Command:
    """``command("run", "long-hello")`` runs kvmpy to its end; a CompletedProcess with bytes."""

    program = PROGRAM

    def __call__(self, *args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.run([*PROGRAM, *args], timeout=LONG_ENOUGH, **options)

    def shell(self, script: str, *args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """The same from a shell, where "$@" is the command: for what only redirections can say."""
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.run(["sh", "-c", script, "sh", *PROGRAM, *args], timeout=LONG_ENOUGH, **options)

    def start(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        """Starts it and doesn't wait."""
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.Popen([*PROGRAM, *args], **options)


class Terminal:
    """kvmpy on a terminal that it controls, as a shell would have started it."""

    def __init__(self, *args: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = self.mode()
        self.output = b""
        # setsid -c makes the terminal on stdin the controlling one, so that Ctrl-C is a signal.
        self.process = subprocess.Popen(
            ["setsid", "-c", *PROGRAM, *args], stdin=self.slave, stdout=self.slave, stderr=self.slave
        )

    def mode(self) -> list[Any]:
        """The terminal's attributes, to be compared."""
        return termios.tcgetattr(self.slave)

    @property
    def is_raw(self) -> bool:
        return not self.mode()[3] & (termios.ICANON | termios.ECHO)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, text: bytes) -> None:
        """Waits for the output to contain ``text``."""
        self._until(lambda: text in self.output, f"{text!r} wasn't printed")

    def until_raw(self, raw: bool = True) -> None:
        """Waits for the terminal to become raw, or not raw."""
        self._until(lambda: self.is_raw is raw, f"the terminal is raw: {self.is_raw}")

    def wait(self) -> int:
        """Waits for the program to end; its status."""
        self._until(lambda: self.process.poll() is not None, "it didn't end")
        self._drain(0.0)
        return self.process.wait()

    def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + LONG_ENOUGH
        while not condition():
            assert time.monotonic() < deadline, f"{otherwise}; the output is {self.output!r}"
            self._drain(0.01)

    def _drain(self, seconds: float) -> None:
        while select.select([self.master], [], [], seconds)[0]:
            self.output += os.read(self.master, 65536)
            seconds = 0.0

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def command() -> Command:
    """kvmpy as a program."""
    return Command()


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """``terminal("run", …)`` starts kvmpy on a terminal of its own."""
    started: list[Terminal] = []

    def start(*args: str) -> Terminal:
        started.append(Terminal(*args))
        return started[-1]

    yield start
    for one in started:
        one.close()
