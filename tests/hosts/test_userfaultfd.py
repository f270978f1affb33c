"""Memory that a thread of the host brings page by page, when the guest first touches it."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import threading

from guests import listen, make, to_exit, to_halt
from later import Later
from listing import code
from suite import Host, skip

from kvmpy._native import ffi, lib
from kvmpy.machine.machine import Machine

PAGE = 4096
AT, PAGES = 0x40000, 4
UFFDIO_COPY = 0xC028AA03
PAGEFAULT = 0x12
MESSAGE = struct.Struct("<B7xQQQ")  # struct uffd_msg: event, flags, address
COPY = struct.Struct("<QQQQq")  # struct uffdio_copy: to, from, length, mode, copied

READS = code(
    64,
    """
      bb 00 00 04 00      mov ebx, 0x40000
      b9 04 00 00 00      mov ecx, 4
    again:
      8b 43 08            mov eax, [rbx + 8]
      e7 e9               out 0xe9, eax
      81 c3 00 10 00 00   add ebx, 0x1000
      ff c9               dec ecx
      75 f1               jnz again
      f4                  hlt
    """,
)
WRITES = code(
    64,
    """
      c6 04 25 00 00 04 00 77   mov byte ptr [0x40000], 0x77
      8b 04 25 00 00 04 00      mov eax, [0x40000]
      e7 e9                     out 0xe9, eax
      f4                        hlt
    """,
)


class Pager:
    """Brings the pages from AT on: each is full of its number, or comes when ``hold`` is released."""

    def __init__(self, host: Host, machine: Machine) -> None:
        self.served: list[int] = []
        self.hold = threading.Event()
        self.hold.set()
        self.asked = threading.Event()
        self.base = machine.memory.address(AT, PAGES * PAGE)
        self._fd = lib.kvmpy_uffd_open()
        if self._fd < 0:
            skip(
                f"userfaultfd: {os.strerror(-self._fd)}; /proc/sys/vm/unprivileged_userfaultfd and the rights decide"
            )
        host.defer(os.close, self._fd)
        error = lib.kvmpy_uffd_register(self._fd, ffi.cast("void *", self.base), PAGES * PAGE)
        assert not error, os.strerror(-error)
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        host.defer(self.end)

    def _serve(self) -> None:
        while not self._over:
            if select.select([self._fd], [], [], 0.02)[0]:
                self._bring(os.read(self._fd, 32))

    def _bring(self, message: bytes) -> None:
        event, _, address, _ = MESSAGE.unpack(message)
        assert event == PAGEFAULT
        self.asked.set()
        self.hold.wait(5)
        number = (address - self.base) // PAGE
        page = ffi.new("uint32_t[]", [0x1000 + number] * (PAGE // 4))
        where = int(ffi.cast("uintptr_t", page))
        try:
            fcntl.ioctl(self._fd, UFFDIO_COPY, COPY.pack(self.base + number * PAGE, where, PAGE, 0, 0))
        except OSError as error:  # asked for twice, by a thread that a signal took out of its wait
            assert error.errno == errno.EEXIST
            return
        self.served.append(number)

    def end(self) -> None:
        """No more pages."""
        self._over = True
        self.hold.set()
        self._thread.join()


def test_pages_come_when_they_are_touched(host: Host) -> None:
    machine = make(host, READS)
    said = listen(machine)
    pager = Pager(host, machine)
    to_halt(machine)
    assert said == [0x1000, 0x1001, 0x1002, 0x1003]
    pager.end()
    assert pager.served == [0, 1, 2, 3]


def test_a_write_finds_the_page_that_was_brought(host: Host) -> None:
    machine = make(host, WRITES)
    said = listen(machine)
    pager = Pager(host, machine)
    to_halt(machine)
    assert said == [0x1077]
    pager.end()
    assert pager.served == [0]


def test_a_stop_while_a_page_is_missing_loses_nothing(host: Host) -> None:
    machine = make(host, READS)
    said = listen(machine)
    pager = Pager(host, machine)
    pager.hold.clear()
    Later(host, 0.3, pager.hold.set)
    assert machine.run(timeout=0.1).reason == "timeout"
    assert pager.asked.is_set()
    assert said == []
    to_halt(machine)
    assert said == [0x1000, 0x1001, 0x1002, 0x1003]


FIRST = code(
    64,
    """
      8b 04 25 08 00 04 00   mov eax, [0x40008]
      e7 e9                  out 0xe9, eax
    """,
)


def test_a_vcpu_that_waits_for_a_page_can_be_stopped(host: Host) -> None:
    if kernel(host) < (6, 2):
        skip(
            f"Linux {host.facts['kernel']}: a vCPU that waits for a page hears no signal, from 6.2 on it does"
        )
    # In ring 3 under kvm_pvm: for ring 0 its emulator reads the memory, and that hears none either.
    machine = make(host, FIRST, ring=3 if host.module == "kvm_pvm" else 0)
    said = listen(machine)
    pager = Pager(host, machine)
    pager.hold.clear()
    assert machine.run(timeout=0.1).reason == "timeout"
    assert pager.asked.is_set()
    assert pager.served == [], "the run was over before the page came"
    pager.hold.set()
    to_exit(machine, "IO")
    assert said == [0x1000]


def kernel(host: Host) -> tuple[int, int]:
    """The version of the host's Linux: (6, 1)."""
    major, minor = host.facts["kernel"].split(".")[:2]
    return int(major), int(minor)
