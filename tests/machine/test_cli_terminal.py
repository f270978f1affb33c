"""kvmpy run on a terminal: what is typed reaches the guest, and the terminal is afterwards as it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from engines import need

Start = Callable[..., Any]


@pytest.fixture(params=["kvm", "translate"])
def engine(request: pytest.FixtureRequest) -> str:
    return need(request.param)


@pytest.fixture
def spinning(terminal: Start, engine: str) -> Any:
    """A guest that never ends, on a terminal in raw mode."""
    screen = terminal("run", "spin", "--engine", engine)
    screen.until_raw()
    return screen


def test_what_is_typed_reaches_the_guest(terminal: Start, engine: str) -> None:
    screen = terminal("run", "real-echo", "--engine", engine)
    screen.read_until(b"Type a line: ")
    screen.until_raw()
    screen.type(b"hello\r")
    assert screen.wait() == 0
    assert screen.output == b"Type a line: hello\r\n5 bytes came by interrupt\r\n"
    assert screen.mode() == screen.before


def test_ctrl_a_introduces_commands(terminal: Start, engine: str) -> None:
    screen = terminal("run", "real-echo", "--engine", engine)
    screen.read_until(b"Type a line: ")
    screen.until_raw()
    screen.type(b"\x01h")
    screen.read_until(b"Ctrl-A x: quit")
    screen.type(
        b"a\x01ab\x01c\x01zc\r"
    )  # Ctrl-A itself and Ctrl-C reach the guest, an unknown command doesn't
    assert screen.wait() == 0
    assert screen.output.endswith(b"a\x01b\x03c\r\n5 bytes came by interrupt\r\n")


@pytest.mark.parametrize("keys", [b"\x01x", b"\x01X"])
def test_ctrl_a_x_quits(spinning: Any, keys: bytes) -> None:
    spinning.type(keys)
    assert spinning.wait() == 0
    assert spinning.mode() == spinning.before


def test_ctrl_c(spinning: Any) -> None:
    spinning.type(b"\x03")
    assert spinning.wait() == 130
    assert spinning.mode() == spinning.before
    assert b"Traceback" not in spinning.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals(spinning: Any, number: signal.Signals) -> None:
    os.kill(spinning.process.pid, number)
    assert spinning.wait() == 128 + number
    assert spinning.mode() == spinning.before
    assert b"Traceback" not in spinning.output


def test_several_vcpus_stop_too(terminal: Start, engine: str) -> None:
    need(engine, vcpus=3)
    screen = terminal("run", "real-echo", "--cpus", "3", "--engine", engine)
    screen.read_until(b"Type a line: ")
    screen.until_raw()
    screen.type(b"\x03")
    assert screen.wait() == 130
    assert screen.mode() == screen.before


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(spinning: Any) -> None:
    spinning.type(b"\x1a")
    spinning.until_raw(False)
    assert spinning.mode() == spinning.before
    _, status = os.waitpid(spinning.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(spinning.process.pid, signal.SIGCONT)
    spinning.until_raw()
    spinning.type(b"\x01x")
    assert spinning.wait() == 0
    assert spinning.mode() == spinning.before


def test_crash(terminal: Start, engine: str) -> None:
    screen = terminal("run", "crash", "--engine", engine)
    assert screen.wait() == 120
    assert screen.mode() == screen.before
    assert b"About to crash\r\nkvmpy: vCPU 0 can't go on: " in screen.output


def test_half_a_line_is_finished(terminal: Start, engine: str) -> None:
    screen = terminal("run", "long-hello", "--engine", engine, "--max-exits", "3")
    assert screen.wait() == 124
    assert screen.mode() == screen.before
    assert screen.output == b"H\r\nkvmpy: the guest was stopped after 3 exits\r\n"


def test_timeout(terminal: Start, engine: str) -> None:
    screen = terminal("run", "spin", "--engine", engine, "--timeout", "0.5")
    assert screen.wait() == 124
    assert screen.mode() == screen.before


def test_bad_image(terminal: Start) -> None:
    screen = terminal("run", "./nothing")
    assert screen.wait() == 2
    assert screen.mode() == screen.before


def test_serial_elsewhere_leaves_the_terminal_alone(terminal: Start, engine: str) -> None:
    screen = terminal("run", "real-echo", "--engine", engine, "--serial", "none", "--timeout", "0.3")
    assert screen.wait() == 124
    assert screen.mode() == screen.before
    assert screen.output == b"kvmpy: the guest was stopped after 0.3 s\r\n"


def test_serial_on_a_pty_of_its_own(terminal: Start, engine: str) -> None:
    screen = terminal("run", "real-echo", "--engine", engine, "--serial", "pty")
    screen.read_until(b"the serial port is /dev/pts/")
    screen.read_until(b"\n")
    name = screen.output.split(b"serial port is ")[1].split(b"\r\n")[0]
    with open(os.open(name, os.O_RDWR | os.O_NOCTTY), "rb+", buffering=0) as port:
        printed = b""
        while len(printed) < 13:
            printed += port.read(13)
        assert printed == b"Type a line: "
        port.write(b"x\r")
        assert screen.wait() == 0
