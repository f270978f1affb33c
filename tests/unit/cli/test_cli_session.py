"""kvmpy.cli.session and kvmpy.cli.signals where a real run can't get at will."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from kvmpy.cli import session
from kvmpy.cli.session import Session
from kvmpy.cli.signals import Signals


def remarks(capfd: pytest.CaptureFixture[str], used: str, notes: tuple[str, ...] = (), **options: Any) -> str:
    machine: Any = SimpleNamespace(engine=SimpleNamespace(name=used))
    payload: Any = SimpleNamespace(notes=notes)
    Session("image", {"quiet": False, "engine": "auto", **options})._remark_on(machine, payload)
    return capfd.readouterr().err


def test_translation_is_remarked_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_why_no_kvm", lambda: "/dev/kvm doesn't exist: load KVM")
    said = "kvmpy: running with binary translation, which is slower: /dev/kvm doesn't exist: load KVM\n"
    assert remarks(capfd, "translate") == said
    assert remarks(capfd, "translate", quiet=True) == ""
    assert remarks(capfd, "translate", engine="translate") == ""
    assert remarks(capfd, "kvm") == ""
    assert remarks(capfd, "kvm", ("a note",)) == "kvmpy: a note\n"


class FakeMachine:
    def __init__(self, running: bool) -> None:
        self.running = running
        self.stopped = 0

    def stop(self) -> None:
        self.stopped += 1


def test_the_first_signal_stops_the_guest_and_the_second_the_program() -> None:
    with Signals() as signals:
        machine: Any = FakeMachine(running=True)
        signals.machine = machine
        signal.raise_signal(signal.SIGINT)
        assert (machine.stopped, signals.status) == (1, 130)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert machine.stopped == 1


@pytest.mark.parametrize("machine", [None, FakeMachine(running=False)])
def test_a_signal_outside_a_run_ends_the_program(machine: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, Signals() as signals:
        signals.machine = machine
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
