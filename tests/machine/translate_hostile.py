"""Random bytes as guests of the translate engine: ``translate_hostile.py BITS RING FIRST COUNT``.

Prints each seed before it is tried (the last one printed is the one that crashed or hung) and, at the end, how the
guests ended and by how many bytes the process grew in the second half.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter

from test_translate_events import HANDLERS, VECTORS, handlers, state
from translate_rig import HLT, INTERNAL_ERROR, IO, MMIO, ORIGIN, SHUTDOWN, SIZE, Guest, entry_state

from kvmpy._native import lib

DEADLINE_NS = 3_000_000
MOST_EXITS = 500
READONLY = 2  # KVM_MEM_READONLY
EACH = (
    40  # so many guests in a row find the same slots, every fourth time with their code in read-only memory
)
REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
# What is likelier than other bytes to confuse a translator: system instructions, far transfers, prefixes, VEX.
SPICES = bytes.fromhex(
    "0ff10f000f010f220f230f300f32cdcf9deaffcbf3f066678ed9dbc5c4f46c6feceee6fb0f050f070f340f350fa20fc70fae9ac80f380f3a628fababf0b3"
)


def noise(source: random.Random) -> bytes:
    """256 bytes of code: plain noise, or noise with spices."""
    if source.random() < 0.25:
        return source.randbytes(256)
    code = b""
    while len(code) < 256:
        at = source.randrange(len(SPICES) - 1)
        code += SPICES[at : at + source.randrange(1, 3)] + source.randbytes(source.randrange(4))
    return code[:256]


def split(guest: Guest, code_flags: int) -> None:
    """Memory in three slots, the one with the code writable or not. It takes longer than most guests run."""
    first, end = ORIGIN, ORIGIN + 0x1000
    for slot, gpa, size, flags in (
        (0, 0, first, 0),
        (1, first, end - first, code_flags),
        (2, end, SIZE - end, 0),
    ):
        guest.vm.set_user_memory_region(slot, gpa, size, guest.address + gpa, flags)


def prepare(guest: Guest, source: random.Random, ring: int) -> None:
    """A new guest in old memory: with handlers for its exceptions or without."""
    guest.memory[:0x60000] = bytes(0x60000)
    if ring or source.random() < 0.6:
        guest.load(entry_state(16) if guest.bits == 16 else state(guest.bits, ring, ports=True))
        for vector in VECTORS if guest.bits == 16 else ():
            guest.write(
                vector * 4, (vector * 32).to_bytes(2, "little") + (HANDLERS >> 4).to_bytes(2, "little")
            )
    else:
        guest.load(entry_state(guest.bits))
    guest.write(HANDLERS, CODE[guest.bits])
    guest.write(ORIGIN, noise(source))
    guest.vm.wrote(0, SIZE)
    values = {
        name: source.getrandbits(64) if source.random() < 0.3 else source.randrange(SIZE)
        for name in REGISTERS
    }
    guest.set(**values)
    events = guest.vcpu.get_vcpu_events()
    events.interrupt.injected = events.exception.injected = events.nmi.pending = events.nmi.masked = 0
    guest.vcpu.set_vcpu_events(events)


def run(guest: Guest, source: random.Random) -> str:
    """To an end, or to the deadline."""
    for _ in range(MOST_EXITS):
        if guest.vcpu.enter():
            lib.kvmpy_take_kick(guest.vcpu.state)
            return "deadline"
        reason = guest.run.exit_reason
        if reason == HLT and guest.run.ready_for_interrupt_injection:
            guest.vcpu.interrupt(0x20)
        elif reason == HLT:
            return "halt"
        elif reason in (SHUTDOWN, INTERNAL_ERROR):
            return {SHUTDOWN: "shutdown", INTERNAL_ERROR: "error"}[reason]
        elif reason == IO and not guest.run.io.direction:
            guest.answer(source.randbytes(len(guest.port_data)))
        elif reason == MMIO and not guest.run.mmio.is_write:
            guest.answer(source.randbytes(8))
    return "exits"


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def main(bits: int, ring: int, first: int, count: int) -> None:
    ends: Counter[str] = Counter()
    slowest, halfway = 0.0, 0
    with Guest(b"\xf4", bits) as guest:
        for seed in range(first, first + count):
            print(seed, file=sys.stderr, flush=True)
            if not seed % EACH or seed == first:
                split(guest, READONLY if seed // EACH % 4 == 3 else 0)
            source = random.Random(f"{bits} {ring} {seed}")
            prepare(guest, source, ring)
            began = time.monotonic()
            lib.kvmpy_thread_enter(guest.vcpu.state, time.monotonic_ns() + DEADLINE_NS, 0)
            ends[run(guest, source)] += 1
            lib.kvmpy_thread_leave(guest.vcpu.state)
            guest.run.immediate_exit = 0
            slowest = max(slowest, time.monotonic() - began)
            if seed == first + count // 2:
                halfway = resident()
    print({"ends": dict(ends), "slowest": round(slowest, 3), "grew": resident() - halfway})


if __name__ == "__main__":
    CODE = {bits: handlers(bits) for bits in (16, 32, 64)}
    main(*map(int, sys.argv[1:]))
