"""Port I/O: every width, strings, and who may do it."""

from __future__ import annotations

from typing import Any

from devices import Recorder, bytes_at
from guests import make, start, to_halt
from listing import ORIGIN, Code, code
from suite import Host, cases

from kvmpy.machine.machine import Machine
from kvmpy.x86 import entry

PORT = 0x300
RAX = 0x1122334455667788
GP = 13
DF = 1 << 10

OUTS = {
    "8": (
        code(
            64,
            """
            ee      out dx, al
            e6 32   out 0x32, al
            f4      hlt
            """,
        ),
        1,
    ),
    "16": (
        code(
            64,
            """
            66 ef      out dx, ax
            66 e7 32   out 0x32, ax
            f4         hlt
            """,
        ),
        2,
    ),
    "32": (
        code(
            64,
            """
            ef      out dx, eax
            e7 32   out 0x32, eax
            f4      hlt
            """,
        ),
        4,
    ),
}
INS = {
    "8": (
        code(
            64,
            """
            ec         in al, dx
            48 89 c1   mov rcx, rax
            e4 32      in al, 0x32
            f4         hlt
            """,
        ),
        1,
    ),
    "16": (
        code(
            64,
            """
            66 ed      in ax, dx
            48 89 c1   mov rcx, rax
            66 e5 32   in ax, 0x32
            f4         hlt
            """,
        ),
        2,
    ),
    "32": (
        code(
            64,
            """
            ed         in eax, dx
            48 89 c1   mov rcx, rax
            e5 32      in eax, 0x32
            f4         hlt
            """,
        ),
        4,
    ),
}


def facing(host: Host, what: Code, offset: int = 0, **registers: int) -> tuple[Machine, Recorder]:
    """A guest with DX at ``offset`` into a device of 16 ports."""
    machine = make(host, what, registers={"rax": RAX, "rdx": PORT + offset, **registers})
    device = Recorder()
    machine.ports.attach(PORT, 16, device)
    return machine, device


def low(value: int, size: int) -> int:
    return value & (1 << 8 * size) - 1


def merged(value: int, size: int) -> int:
    """RAX after an IN of ``value``: 32 bits clear the upper half, fewer leave the rest."""
    return value if size == 4 else RAX & ~low(-1, size) | value


@cases(**OUTS)
def test_port_writes_of_every_width_and_alignment(host: Host, case: tuple[Code, int]) -> None:
    what, size = case
    machine, device = facing(host, what)
    immediate = Recorder()
    machine.ports.attach(0x32, 4, immediate)
    for offset in range(5):
        device.seen.clear()
        immediate.seen.clear()
        machine.cpus[0].regs.update({"rip": ORIGIN, "rdx": PORT + offset})
        to_halt(machine)
        assert device.seen == [("write", offset, low(RAX, size), size)]
        assert immediate.seen == [("write", 0, low(RAX, size), size)]


@cases(**INS)
def test_port_reads_of_every_width_and_alignment(host: Host, case: tuple[Code, int]) -> None:
    what, size = case
    machine, device = facing(host, what)
    machine.ports.attach(0x32, 4, Recorder())
    for offset in range(5):
        device.seen.clear()
        machine.cpus[0].regs.update({"rip": ORIGIN, "rdx": PORT + offset, "rax": RAX})
        to_halt(machine)
        assert device.seen == [("read", offset, size)]
        regs = machine.cpus[0].regs
        assert regs.rcx == merged(int.from_bytes(bytes_at(offset, size), "little"), size)
        assert regs.rax == merged(int.from_bytes(bytes_at(0, size), "little"), size)


@cases(out=OUTS["32"][0], in_=INS["32"][0])
def test_a_port_access_that_crosses_the_end_of_a_device(host: Host, case: Code) -> None:
    """The bytes that are the device's reach it, the others nobody."""
    machine, device = facing(host, case, 14)
    machine.ports.drop(0x32, 4)
    to_halt(machine)
    if case is OUTS["32"][0]:
        assert device.bytes_written() == [(14, 0x88), (15, 0x77)]
    else:
        assert device.bytes_read() == [14, 15]
        expected = int.from_bytes(bytes_at(14, 2) + b"\xff\xff", "little")
        assert machine.cpus[0].regs.rcx == expected


REP_OUTS = {
    "8": (code(64, "f3 6e   rep outsb\nf4   hlt"), 1),
    "16": (code(64, "66 f3 6f   rep outsw\nf4   hlt"), 2),
    "32": (code(64, "f3 6f   rep outsd\nf4   hlt"), 4),
}
REP_INS = {
    "8": (code(64, "f3 6c   rep insb\nf4   hlt"), 1),
    "16": (code(64, "66 f3 6d   rep insw\nf4   hlt"), 2),
    "32": (code(64, "f3 6d   rep insd\nf4   hlt"), 4),
}
ACROSS = 0x6000 - 12
"""Where strings begin: the third element of 32 bits ends at the end of a page."""


@cases(**REP_OUTS)
def test_string_output(host: Host, case: tuple[Code, int]) -> None:
    what, size = case
    text = bytes(range(0x40, 0x60))
    machine, device = facing(host, what, rsi=ACROSS, rcx=len(text) // size)
    machine.memory.write(ACROSS, text)
    to_halt(machine)
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    assert device.seen == [("write", 0, int.from_bytes(part, "little"), size) for part in parts]
    regs = machine.cpus[0].regs
    assert (regs.rsi, regs.rcx) == (ACROSS + len(text), 0)


@cases(**REP_INS)
def test_string_input(host: Host, case: tuple[Code, int]) -> None:
    what, size = case
    count = 32 // size
    machine, device = facing(host, what, 4, rdi=ACROSS, rcx=count)
    to_halt(machine)
    assert device.seen == [("read", 4, size)] * count
    assert machine.memory.read(ACROSS, 32) == bytes_at(4, size) * count
    regs = machine.cpus[0].regs
    assert (regs.rdi, regs.rcx) == (ACROSS + 32, 0)


def test_string_output_backwards(host: Host) -> None:
    machine, device = facing(host, REP_OUTS["8"][0], rsi=0x5003, rcx=4, rflags=DF | 2)
    machine.memory.write(0x5000, b"dcba")
    to_halt(machine)
    assert bytes(access[2] for access in device.seen) == b"abcd"
    assert machine.cpus[0].regs.rsi == 0x4FFF


@cases(out=REP_OUTS["8"][0], in_=REP_INS["8"][0])
def test_a_string_of_no_elements_is_no_access(host: Host, case: Code) -> None:
    machine, device = facing(host, case, rcx=0, rsi=0x5000, rdi=0x5000)
    assert dict(to_halt(machine).exits) == {"HLT": 1}
    assert device.seen == []


class Tape:
    """Takes strings whole."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, offset: int, value: int, size: int) -> None:
        self.data += value.to_bytes(size, "little")

    def write_string(self, offset: int, data: bytes, size: int) -> None:
        self.data += data

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.read_string(offset, size, 1), "little")

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        found = bytes(self.data[: size * count])
        del self.data[: size * count]
        return found


def test_strings_longer_than_a_page(host: Host) -> None:
    text = bytes(n * 7 & 0xFF for n in range(0x1404))
    tape = Tape()
    machine = make(host, REP_OUTS["32"][0], registers={"rdx": PORT, "rsi": ACROSS, "rcx": len(text) // 4})
    machine.memory.write(ACROSS, text)
    machine.ports.attach(PORT, 4, tape)
    to_halt(machine)
    assert tape.data == text
    machine = make(host, REP_INS["32"][0], registers={"rdx": PORT, "rdi": ACROSS, "rcx": len(text) // 4})
    machine.ports.attach(PORT, 4, tape)
    to_halt(machine)
    assert machine.memory.read(ACROSS, len(text)) == text
    assert not tape.data


SHIFTED = {
    16: code(16, "f3 6e   rep outsb\nf4   hlt"),
    32: code(32, "f3 6e   rep outsb\nf4   hlt"),
}


@cases(*SHIFTED)
def test_string_output_in_other_modes(host: Host, case: int) -> None:
    machine, device = facing(host, SHIFTED[case], rsi=0x5000, rcx=3)
    machine.memory.write(0x5000, b"old")
    to_halt(machine)
    assert bytes(access[2] for access in device.seen) == b"old"


USER = code(
    64,
    """
      e6 e9            out 0xe9, al
      e6 80            out 0x80, al
      e6 81            out 0x81, al
      f4               hlt
    gp:
      5b               pop rbx
      59               pop rcx
      bf 6b 00 00 00   mov edi, 0x6b
      f4               hlt
    """,
)


def test_ring_3_has_the_ports_of_its_bitmap(host: Host) -> None:
    """SDM vol. 1 ch. 19.5.2: another port is a general protection fault, and no access."""
    host.avoid("amd", because="QEMU's TCG has no ports for ring 3 of a guest whose TSS is busy, as all are")
    machine = make(host, USER, handlers={GP: "gp"}, ring=3)
    state = entry.long_mode(
        ORIGIN,
        memory_size=machine.memory.size,
        ring=3,
        ports=[range(0x80, 0x81), range(0xE9, 0xEA)],
        idt={GP: USER.at["gp"]},
    )
    start(machine, state)
    seen: list[Any] = []
    machine.ports.on_write(0x80, 2)(lambda *what: seen.append(what))
    machine.ports.on_write(0xE9)(lambda *what: seen.append(what))
    to_halt(machine)
    assert [access[0] for access in seen] == [0, 0]
    regs = machine.cpus[0].regs
    assert (regs.rdi, regs.rcx) == (0x6B, ORIGIN + 4)
