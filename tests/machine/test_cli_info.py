"""kvmpy info on the host the tests run on: it never fails, and says what the kernel says."""

from __future__ import annotations

import json
import os
from typing import Any

from engines import why_not

from kvmpy.machine.host import GROUPS, facts
from kvmpy.machine.host_capabilities import USED


def test_json(command: Any) -> None:
    result = command("info", "--json")
    assert (result.returncode, result.stderr) == (0, b"")
    said = json.loads(result.stdout)
    assert said["schema"] == 1
    assert list(said) == ["schema", "kvmpy", *GROUPS]
    assert said["engines"]["kvm"]["value"] is (not why_not("kvm"))
    assert said["engines"]["translate"]["value"] is (not why_not("translate"))
    assert said["host"]["kernel"]["value"] == os.uname().release
    assert set(said["capabilities"]) == set(USED)
    assert said["permissions"]["kvm_access"]["value"] is os.access("/dev/kvm", os.R_OK | os.W_OK)
    assert said["memory"]["memory"]["value"] > 1 << 20
    for group in GROUPS:
        assert all(fact["source"] for fact in said[group].values())


def test_table(command: Any) -> None:
    result = command("info")
    assert (result.returncode, result.stderr) == (0, b"")
    text = result.stdout.decode()
    for title in GROUPS.values():
        assert f"\n{title}\n" in text
    for fact in facts():
        if fact.group == "capabilities":
            assert f"\n  {fact.name} " in text
    assert "\x1b" not in text


def test_a_terminal_gets_its_own_width(terminal: Any) -> None:
    screen = terminal("info")
    assert screen.wait() == 0
    assert max(map(len, screen.output.decode().replace("\x1b[", "").split("\r\n"))) < 140


def test_kvm_gone(command: Any) -> None:
    """Without a /dev/kvm it says so, and succeeds; only root can take it away."""
    script = 'mount --bind /dev/null /dev/kvm && exec "$@"'
    result = command.shell(f"unshare -m sh -c '{script}' sh \"$@\"", "info", "--json")
    if result.returncode != 0 and not result.stdout:
        import pytest

        pytest.skip(f"/dev/kvm can't be hidden here: {result.stderr.decode().strip()}")
    said = json.loads(result.stdout)
    assert result.returncode == 0
    assert said["engines"]["kvm"]["value"] is False
    assert "isn't KVM" in said["engines"]["kvm"]["source"]
    assert said["capabilities"]["irqchip"]["source"] == "KVM can't be asked"


def test_facts_leave_nothing_open() -> None:
    facts()
    before = sorted(os.listdir("/proc/self/fd"))
    facts()
    assert sorted(os.listdir("/proc/self/fd")) == before
