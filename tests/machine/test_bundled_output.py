"""Every bundled guest prints what it should, gives the status it should, and ends the way its metadata says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from expected_outputs import CPUS, EXPECTED, INPUT, MEMORY

from kvmpy.boot import bundled
from kvmpy.machine.machine import Machine
from kvmpy.machine.paravirt import Paravirt
from kvmpy.machine.pc import Pc
from kvmpy.machine.result import Result

REASONS = {"halt": "halt", "exit": "exit", "crash": "crash", "never": "timeout"}
LONG_ENOUGH = 60.0  # seconds; hundreds of times what a guest takes: only a guest that hangs gets there


pytestmark = pytest.mark.kvmpy(timeout=2 * LONG_ENOUGH)
Machines = Callable[..., Machine]


def _run(
    name: str,
    machines: Machines,
    *,
    memory: int = MEMORY,
    cpus: int | None = None,
    timeout: float = LONG_ENOUGH,
) -> tuple[bytes, Result]:
    """Run a guest on the machine that its metadata asks for; what it printed, and how it ended."""
    output = bytearray()
    wanted = bundled.find(name).needs["irqchip"]
    irqchip = "any" if wanted == "kernel" else wanted
    machine = machines(memory=memory, cpus=cpus or CPUS.get(name, 1), irqchip=irqchip)
    pc = Pc(machine, output.extend)
    if bundled.find(name).needs["paravirt"]:
        Paravirt(machine, output.extend)
    machine.load(name)
    pc.serial.receive(INPUT.get(name, b""))
    result = machine.run(timeout=timeout)
    return bytes(output), result


def _check(name: str, machines: Machines) -> None:
    expected, status, ends = EXPECTED[name]
    assert bundled.find(name).needs["ends"] == ends
    assert bundled.find(name).needs["status"] == status
    output, result = _run(name, machines, timeout=0.2 if ends == "never" else LONG_ENOUGH)
    assert output == expected
    assert (result.reason, result.status) == (REASONS[ends], status)


def test_every_guest_is_pinned() -> None:
    assert set(EXPECTED) == {guest.name for guest in bundled.names()}


@pytest.mark.parametrize("name", EXPECTED)
def test_output(name: str, machines: Machines) -> None:
    _check(name, machines)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in ("spin", "memory-walk")])
def test_the_least_memory_is_enough(name: str, machines: Machines) -> None:
    output, _ = _run(name, machines, memory=bundled.find(name).needs["memory"])
    assert output == EXPECTED[name][0]


@pytest.mark.parametrize(("memory", "pages"), [("2M", 512), ("16M", 4096), ("17M", 4352), ("100M", 25600)])
def test_memory_walk_writes_all_there_is(machines: Machines, memory: str, pages: int) -> None:
    size = int(memory[:-1])
    output, _ = _run("memory-walk", machines, memory=size << 20)
    assert output == f"{pages} pages written, {size} MiB\n".encode()


@pytest.mark.threads
@pytest.mark.parametrize("cpus", [1, 2, 8])
def test_smp_hello_starts_as_many_as_there_are(machines: Machines, cpus: int) -> None:
    output, result = _run("smp-hello", machines, cpus=cpus)
    lines = output.decode().splitlines()
    assert lines[0] == "CPU 0 started the machine"
    assert lines[1:] == [f"CPU {n} was started by INIT and SIPI" for n in range(1, cpus)]
    assert result.reason == "exit"


@pytest.mark.parametrize(
    ("sent", "printed"),
    [
        (b"\n", b"\n0 bytes"),
        (b"\x04", b"\n0 bytes"),
        (b"two words\r", b"two words\n9 bytes"),
        (b"cut\x04off", b"cut\n3 bytes"),
        (b"x" * 300 + b"\n", b"x" * 300 + b"\n300 bytes"),
    ],
)
def test_real_echo_ends_at_enter_or_ctrl_d(
    machines: Machines, sent: bytes, printed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INPUT, "real-echo", sent)
    output, result = _run("real-echo", machines)
    assert output == b"Type a line: " + printed + b" came by interrupt\n"
    assert result.reason == "exit"


def test_exit_storm_takes_the_number_from_edi(machines: Machines) -> None:
    output = bytearray()
    machine = machines(memory=MEMORY)
    Pc(machine, output.extend)
    machine.load("exit-storm")
    machine.cpus[0].regs.rdi = 123
    result = machine.run(timeout=LONG_ENOUGH)
    assert output == b"123 port writes done\n"
    assert result.exits["IO"] < 200
