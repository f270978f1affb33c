"""An instruction that has accessed MMIO before does it in the same way again, whichever way the engine has for that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from kvmpy.machine.machine import Machine

Machines = Callable[..., Machine]

pytestmark = pytest.mark.kvmpy(memory="2M", mode="long", trace=False, timeout=math.inf)
LONG_ENOUGH = 60.0
ADDRESS, DATA, PORT, PASSES = 0xFE000000, 0x8000, 0x10, 4

# rbx: MMIO; rsi: memory; rdi: set before each. What accesses it makes is for the first pass to show.
INSTRUCTIONS = {
    "mov %al, (%rbx)": "8803",
    "mov %rax, 8(%rbx)": "48894308",
    "mov 16(%rbx), %cx": "668b4b10",
    "movzbl 3(%rbx), %ecx": "0fb64b03",
    "movsbl 3(%rbx), %ecx": "0fbe4b03",
    "movslq 4(%rbx), %rcx": "48634b04",
    "add %eax, (%rbx)": "0103",
    "add (%rbx), %ecx": "030b",
    "lock add %eax, 4(%rbx)": "f0014304",
    "xchg %eax, %ecx, twice through MMIO": "870b870b",
    "notl (%rbx)": "f713",
    "movl $5, (%rbx); movl $6, 4(%rbx)": "c70305000000c7430406000000",
    "push of MMIO": "ff7308",
    "pop to MMIO": "5058508f4308",
    "movsl from MMIO": "56578b3e488d33bf00900000a55f5e",
    "rep movsb to MMIO": "5651488d7b20b904000000f3a4595e",
    "cmpxchg %ecx, (%rbx)": "0fb10b",
    "mov %eax, 1(%rbx)": "894301",
    "mov 6(%rbx), %rcx": "488b4b06",
    "mov %eax, 0xffe(%rbx)": "8983fe0f0000",
}


def program(what: str) -> bytes:
    """PASSES times: the instructions between two OUTs to PORT, from the same registers each time."""
    start = (
        "48bb" + ADDRESS.to_bytes(8, "little").hex()  # movabs $ADDRESS, %rbx
        + "be" + DATA.to_bytes(4, "little").hex()  # mov $DATA, %esi
        + "b844332211" + "b988776655"  # mov $0x11223344, %eax; mov $0x55667788, %ecx
    )  # fmt: skip
    body = bytes.fromhex(start + what + "e610")  # out %al, $0x10
    again = b"\x41\xff\xcf" + b"\x0f\x85" + (-(len(body) + 9)).to_bytes(4, "little", signed=True)
    return bytes.fromhex("41bf") + PASSES.to_bytes(4, "little") + body + again + b"\xf4"


class Recorder:
    """Owns the range; each read gives what the address says. What it saw, pass by pass."""

    def __init__(self, at_each: Callable[[], object]) -> None:
        self.passes: list[list[tuple[Any, ...]]] = [[]]
        self.at_each = at_each

    def read(self, offset: int, size: int) -> int:
        self.passes[-1].append(("read", offset, size))
        self.at_each()
        return int.from_bytes(bytes((offset + i) % 251 + 1 for i in range(size)), "little")

    def write(self, offset: int, value: int, size: int) -> None:
        self.passes[-1].append(("write", offset, value, size))
        self.at_each()


def run(machines: Machines, what: str, disturb: str) -> tuple[list[list[tuple[Any, ...]]], list[int]]:
    machine = machines(program(INSTRUCTIONS[what]))
    machine.memory.write(DATA, bytes(range(0x30, 0x50)))
    cpu = machine.cpus[0]

    def at_each() -> None:
        if disturb == "registers":
            cpu.regs.r14 += 1  # the vCPU leaves the instruction, and begins it again
        elif disturb == "stop":
            machine.stop()

    device = Recorder(at_each)
    results = []
    machine.mmio.attach(ADDRESS, 0x2000, device)

    @machine.ports.on_write(PORT)
    def out(offset: int, value: int, size: int) -> None:
        results.append(cpu.regs.rcx)
        device.passes.append([])

    while (result := machine.run(timeout=LONG_ENOUGH)).reason == "stopped":
        pass
    assert result.reason == "halt", result
    assert device.passes.pop() == []
    return device.passes, results


@pytest.mark.parametrize("disturb", ["nothing", "registers", "stop"])
@pytest.mark.parametrize("what", INSTRUCTIONS)
def test_every_pass_is_like_the_first(machines: Machines, what: str, disturb: str) -> None:
    passes, results = run(machines, what, disturb)
    assert len(passes) == len(results) == PASSES and passes[0]
    assert passes == PASSES * passes[:1]
    assert results == PASSES * results[:1]


def test_engines_make_the_same_accesses(machines: Machines) -> None:
    """Pinned, so that both engines are held to the same; accesses across two pages come in parts."""
    expected = {
        "mov %rax, 8(%rbx)": [("write", 8, 0x11223344, 8)],
        "movsbl 3(%rbx), %ecx": [("read", 3, 1)],
        "add %eax, (%rbx)": [("read", 0, 4), ("write", 0, 0x04030201 + 0x11223344, 4)],
        "movl $5, (%rbx); movl $6, 4(%rbx)": [("write", 0, 5, 4), ("write", 4, 6, 4)],
        "rep movsb to MMIO": [("write", 0x20 + i, 0x30 + i, 1) for i in range(4)],
        "mov %eax, 1(%rbx)": [("write", 1, 0x11223344, 4)],
        "mov %eax, 0xffe(%rbx)": [("write", 0xFFE, 0x3344, 2), ("write", 0x1000, 0x1122, 2)],
    }
    for what, accesses in expected.items():
        assert run(machines, what, "nothing")[0][-1] == accesses, what
