"""What paravirtual guests ask for: the hypercalls of guest_images/lib/paravirt.inc, and a worker for several ways.

==========  ================  ===================================================================================
hypercall   arguments         does
==========  ================  ===================================================================================
0x6b760001  address, length   prints that text; gives its length. At most 64 KiB: else -KVM_E2BIG
0x6b760002  address, length   shares a ring of text: 32-bit words HEAD (the guest's) and TAIL (the host's), then
                              ``length`` bytes, a power of two; both count bytes and go on for ever
0x6b760003                    prints what is in the ring, TAIL to HEAD; gives how many bytes
0x6b760004  status            ends the guest, as the exit port does
0x6b760005                    nanoseconds of the host's monotonic clock since the machine was made
0x6b760006  number            adds a number: the worker's register ITEM
0x6b760007  address, entries  shares a ring of numbers: HEAD and TAIL as above, then 32-bit ``entries``, a power of two.
                              Writing to 0xfea01000 says that HEAD moved
==========  ================  ===================================================================================

The worker (:mod:`kvmpy.devices.worker`) is at ports 0x5c0-0x5cf and at 0xfea00000, its interrupt is line 5. The bell of
its ring is an ioeventfd where the engine has them: the vCPU goes on at once, and another thread does the work.
"""

from __future__ import annotations

import os
import threading
import time

from kvmpy.devices.worker import Worker
from kvmpy.errors import BusError, GuestMemoryError, KvmpyError
from kvmpy.machine.hypercalls import KVM_E2BIG, KVM_EINVAL, Call, Refused
from kvmpy.machine.kernel_places import Eventfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.machine.machine import Machine
    from kvmpy.machine.memory import GuestMemory

FIRST = 0x6B760000
PRINT, SHARE_TEXT, TAKE_TEXT, END, TIME, ADD, SHARE_WORK = range(FIRST + 1, FIRST + 8)
LONGEST = 1 << 16
WORKER_PORTS, WORKER_MEMORY, WORK_DOORBELL, WORKER_IRQ = 0x5C0, 0xFEA00000, 0xFEA01000, 5
HEADER = 8
MASK = 0xFFFFFFFF
PATIENCE = 0.05
"""Seconds between two looks at whether the machine still runs."""


class SharedRing:
    """A ring in guest memory that the guest fills and the host empties: HEAD, TAIL, then ``size`` bytes."""

    def __init__(self, memory: GuestMemory, gpa: int, size: int) -> None:
        self._memory = memory
        self._gpa = gpa
        self._size = size

    def take(self, unit: int = 1) -> bytes:
        """What is between TAIL and HEAD, counted in units of so many bytes; TAIL is HEAD then.

        -KVM_EINVAL for a guest that claims to have put in more than there is room for.
        """
        count = self._size // unit
        head, tail = self._memory.read_u32(self._gpa), self._memory.read_u32(self._gpa + 4)
        waiting = head - tail & MASK
        if waiting > count:
            raise Refused(KVM_EINVAL)
        start = tail % count * unit
        data = self._memory.read(self._gpa + HEADER, self._size)
        taken = (data[start:] + data[:start])[: waiting * unit]
        self._memory.write_u32(self._gpa + 4, head)
        return taken


class Paravirt:
    """Puts all of it on a machine; before its first run, for CPUID to say so.

    ``output(bytes)`` takes what guests print; ``on_exit(status)`` ends them, as the exit port would.
    """

    def __init__(
        self,
        machine: Machine,
        output: Callable[[bytes], None],
        on_exit: Callable[[int], None] | None = None,
    ) -> None:
        self.machine = machine
        self.output = output
        self._on_exit = on_exit or (lambda status: machine.stop(status, "exit"))
        self._began = time.monotonic_ns()
        self._text: SharedRing | None = None
        self._work: SharedRing | None = None
        self._working = threading.Lock()
        self.worker = Worker(_later, self._irq, self._collect)
        machine.ports.attach(WORKER_PORTS, Worker.LENGTH, self.worker)
        machine.mmio.attach(WORKER_MEMORY, Worker.LENGTH, self.worker)
        self.doorbell = self._doorbell()
        for nr, handler in (
            (PRINT, self._print),
            (SHARE_TEXT, self._share_text),
            (TAKE_TEXT, self._take_text),
            (END, self._end),
            (TIME, self._time),
            (ADD, self._add),
            (SHARE_WORK, self._share_work),
        ):
            machine.hypercall(nr)(handler)
        if not machine.engine.in_kernel:
            from kvmpy.machine.pvclock import Clocks

            self.clocks = Clocks(machine)

    def _irq(self, level: bool) -> None:
        """From a timer's thread too, when the machine may be gone."""
        try:
            self.machine.set_irq(WORKER_IRQ, level)
        except (KvmpyError, OSError, ValueError):
            if self.machine.running:
                raise

    def _doorbell(self) -> Eventfd:
        """In the kernel if it can be there, else in Python."""
        try:
            owner: Eventfd = self.machine.mmio.eventfd(WORK_DOORBELL, 4)
        except BusError:
            owner = Eventfd(4)
            self.machine.mmio.attach(WORK_DOORBELL, 4, owner)
        return owner

    # Text

    def _print(self, call: Call) -> int:
        text = call.read(*call.args[:2], most=LONGEST)
        if text:
            self.output(text)
        return len(text)

    def _share_text(self, call: Call) -> None:
        self._text = _shared(call, call.args[1])

    def _take_text(self, call: Call) -> int:
        if self._text is None:
            raise Refused(KVM_EINVAL)
        text = self._text.take()
        if text:
            self.output(text)
        return len(text)

    def _end(self, call: Call) -> None:
        self._on_exit(call.args[0] & MASK)

    def _time(self, call: Call) -> int:
        return time.monotonic_ns() - self._began

    # Work

    def _add(self, call: Call) -> None:
        self.worker.add(call.args[0])

    def _share_work(self, call: Call) -> None:
        if call.args[1] > LONGEST:
            raise Refused(KVM_E2BIG)
        self._work = _shared(call, 4 * call.args[1])
        threading.Thread(target=self._serve, name="worker", daemon=True).start()

    def _serve(self) -> None:
        """The other thread: waits for the doorbell for as long as the machine runs."""
        import select

        try:
            bell = os.dup(self.doorbell.fileno())  # its own, which nobody closes under it
        except OSError:
            return
        try:
            poll = select.poll()
            poll.register(bell, select.POLLIN)
            while self.machine.running:
                if poll.poll(PATIENCE * 1000):
                    self._collect()
        finally:
            os.close(bell)

    def _collect(self) -> None:
        """Takes all numbers out of the ring. From either thread: the machine's memory is there while it runs."""
        with self._working:
            ring = self._work
            if ring is None:
                return
            self.doorbell.take()
            try:
                data = ring.take(4)
            except (Refused, GuestMemoryError, ValueError):
                return  # nobody is there to be told; or the machine was closed meanwhile
            for at in range(0, len(data), 4):
                self.worker.add(int.from_bytes(data[at : at + 4], "little"))


def _shared(call: Call, size: int) -> SharedRing:
    """The ring at the call's first argument. Refused: not a power of two, not aligned, not in memory."""
    if size > LONGEST:
        raise Refused(KVM_E2BIG)
    if size < 4 or size & (size - 1):
        raise Refused(KVM_EINVAL)
    call.check(call.args[0], HEADER + size, alignment=8)
    return SharedRing(call.cpu.machine.memory, call.args[0], size)


def _later(seconds: float, function: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()
