"""What every bundled guest prints on the serial port, its status, and how it ends.

``MEMORY`` and ``CPUS`` are what they were run with, ``INPUT`` is what they were sent.
"""

from __future__ import annotations

MEMORY = 64 << 20
CPUS = {"smp-hello": 3}
INPUT = {"real-echo": b"hello\r"}

LINES = b"""\
A guest that prints through hardware pays by the byte.
Each byte is written to a register of a chip
that nobody has built for thirty years,
and before it the guest asks the chip if it is ready.
It always is: there is no chip, only a program,
which the processor has to be handed to and back.
A guest that knows this hands over a whole line,
or leaves everything where the host can see it
and rings once. What comes out is the same;
what it costs isn't.
"""

# name: (output, guest status, ends)
EXPECTED: dict[str, tuple[bytes, int | None, str]] = {
    "real-hello": (b"Hello from real mode\n", 0, "halt"),
    "real-echo": (b"Type a line: hello\n5 bytes came by interrupt\n", 0, "exit"),
    "real-irq": (b"Tick 1\nTick 2\nTick 3\nTick 4\nTick 5\n", 0, "exit"),
    "protected-hello": (b"Hello from protected mode\n", 0, "halt"),
    "long-hello": (b"Hello from long mode\n", 0, "halt"),
    "long-user": (
        b"ring 0: starting a program in ring 3\n"
        b"3 is the ring that asks to print 6171\n"
        b"3 is the ring that asks to print 261\n"
        b"ring 0: page fault at 0x00100000, error code 5\n",
        0,
        "halt",
    ),
    "long-exceptions": (
        b"#DE divide error\n"
        b"#BP breakpoint\n"
        b"#UD undefined opcode\n"
        b"#GP general protection, error code 0\n"
        b"#PF page fault, error code 6, address 0xdeadb000\n"
        b"All caught\n",
        0,
        "halt",
    ),
    "mode-switch": (
        b"Real mode: 16 bits, segments of 64 KiB\n"
        b"Protected mode: 32 bits, segments from a table\n"
        b"Long mode: 64 bits, everything paged\n",
        0,
        "halt",
    ),
    "smp-hello": (
        b"CPU 0 started the machine\n"
        b"CPU 1 was started by INIT and SIPI\n"
        b"CPU 2 was started by INIT and SIPI\n",
        0,
        "exit",
    ),
    "sieve": (b"78498 primes below 1000000\n", 0, "halt"),
    "memory-walk": (b"16384 pages written, 64 MiB\n", 0, "halt"),
    "exit-storm": (b"10000 port writes done\n", 0, "halt"),
    "crash": (b"About to crash\n", None, "crash"),
    "spin": (b"", None, "never"),
    "console-uart": (LINES, 0, "halt"),
    "console-hypercall": (LINES, 0, "halt"),
    "console-ring": (LINES, 0, "halt"),
    "time-rtc": (b"steady\n", 0, "exit"),
    "time-pit": (b"steady\n", 0, "exit"),
    "time-pvclock": (b"steady\n", 0, "exit"),
    "work-pio": (b"right\n", 0, "halt"),
    "work-mmio": (b"right\n", 0, "halt"),
    "work-eventfd": (b"right\n", 0, "halt"),
    "work-hypercall": (b"right\n", 0, "halt"),
    "wait-poll": (b"done\n", 0, "exit"),
    "wait-hlt": (b"done\n", 0, "exit"),
}
