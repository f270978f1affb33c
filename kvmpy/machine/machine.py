"""The machine: memory, buses, vCPUs and their life, on whatever engine is underneath."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time

from kvmpy._native import ffi, lib
from kvmpy.errors import UsageError
from kvmpy.machine import exits, loop
from kvmpy.machine.bus import Bus
from kvmpy.machine.cpu import Cpu, kick
from kvmpy.machine.engine import open_engine
from kvmpy.machine.memory import GuestMemory
from kvmpy.machine.result import REASONS, Ending, Result
from kvmpy.machine.ring import Ring
from kvmpy.machine.sizes import memory_size
from kvmpy.owned import Owned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from kvmpy.boot.payload import Payload
    from kvmpy.machine.backing import Backing
    from kvmpy.machine.bus import Range
    from kvmpy.machine.dirty import Dirty
    from kvmpy.machine.engine import Engine
    from kvmpy.machine.exits import Exit
    from kvmpy.machine.hypercalls import Handler, Hypercalls
    from kvmpy.machine.interrupts import Interrupts
    from kvmpy.machine.rescue import Rescue
    from kvmpy.machine.ring import Record
    from kvmpy.machine.threads import VcpuThreads
    from kvmpy.machine.timers import Timers
    from kvmpy.x86.cpuid import CpuidTable

    ExitHandler = Callable[[Exit], object]

IRQCHIPS = ("none", "user", "kernel", "split")
MAX_CPUS = 255
DEFAULT_RING = 1 << 16
TICK = 0.02
"""Seconds between two looks at whether halted vCPUs can ever wake up again, or whether a signal came."""


class Machine(Owned):
    """A virtual machine.

    ``memory``   bytes, or text such as "64M"; whole pages of 4 KiB. Above 3 GiB it goes on at 4 GiB
    ``cpus``     vCPUs, 1 to 255, and no more than the engine has
    ``engine``   "kvm", "translate", or "auto": the first that works here; or an engine object
    ``irqchip``  "none": HLT ends the run; "user": PIC, I/O APIC, local APIC and PIT in Python, on any engine, for one
                 vCPU (:mod:`kvmpy.machine.interrupts`); "kernel": all that in the kernel; "split": only the local
                 APICs there. More than one vCPU started by INIT/SIPI needs one of the latter
    ``strict``   an access to a port or address that nobody owns ends the run instead of reading all ones
    ``history``  how many of the last exits of each vCPU to keep for crash reports
    ``dirty_ring``  entries of each vCPU's ring of dirty pages (a power of two, 256 to 65536), for :meth:`track_dirty`;
                 0: the kernel keeps bitmaps
    ``rescue``   instructions that KVM gives up on are carried out by the translate engine (docs/rescue.md). None: where
                 both engines work; True: or EngineError, or UsageError on another engine than kvm; False: such an
                 instruction ends the run. ``rescues`` says whether it is on
    ``backing``  makes the RAM: called with (size, offset modulo 2 MiB), gives a :mod:`kvmpy.machine.backing`

    A context manager; ``close()`` twice is fine.

    Raises UsageError for a size or number that can't be, EngineError if no engine works here.
    """

    def __init__(
        self,
        memory: int | str = "64M",
        cpus: int = 1,
        engine: str | Engine = "auto",
        *,
        irqchip: str = "none",
        strict: bool = False,
        history: int = 0,
        dirty_ring: int = 0,
        rescue: bool | None = None,
        backing: Callable[[int, int], Backing] | None = None,
    ) -> None:
        self._closed = True
        size = memory_size(memory)
        if irqchip not in IRQCHIPS:
            raise UsageError(f"irqchip {irqchip!r}: one of {', '.join(IRQCHIPS)}")
        self.engine = open_engine(engine)
        limit = min(MAX_CPUS, self.engine.max_vcpus)
        if not 1 <= cpus <= limit:
            raise UsageError(
                f"{cpus} vCPUs: the {self.engine.name} engine on this host can have 1 to {limit}"
            )
        if irqchip == "user" and cpus > 1:
            raise UsageError(
                f"irqchip 'user' with {cpus} vCPUs: the interrupt controllers in user space serve one;"
                " take irqchip='kernel' on the kvm engine, or cpus=1"
            )
        if rescue:
            check_rescue(self.engine)
        self.irqchip = irqchip
        self.ending: Ending | None = None
        self.guard = threading.RLock()
        self._life = threading.RLock()  # for what other threads may do at any time: stop, against close
        self.exit_handlers: dict[int, ExitHandler] = {}
        self.hypercall_registry: Hypercalls | None = None
        self.interrupts: Interrupts | None = None
        self._timers: Timers | None = None
        self.cpus: list[Cpu] = []
        self._running = False
        self._rings: list[Ring] = []
        self._ring_sink: Callable[[Cpu], None] | None = None
        self._halted: set[int] = set()
        self._all_halted = False
        self._cpu_time = 0.0
        self._threads: VcpuThreads | None = None
        self.rescues = rescue is not False and self.engine.rescuable
        self._rescue: Rescue | None = None
        self._gate: Any = ffi.NULL
        self.bus = Bus()
        self.memory = GuestMemory()
        self.vm: Any = None
        self._closed = False
        try:
            self._build(size, cpus, strict, history, dirty_ring, backing)
        except BaseException:
            self.close()
            raise

    def _build(self, size: int, cpus: int, strict: bool, history: int, dirty_ring: int, backing: Any) -> None:
        self.vm = self.engine.create_vm("none" if self.irqchip == "user" else self.irqchip)
        if dirty_ring:
            self.vm.enable_dirty_ring(dirty_ring)
        self._dirty_ring = dirty_ring
        self.memory.add_ram(size, backing)
        self.memory.connect(self.vm.map_memory)
        self.vm.follow(self.memory)
        for index in range(cpus):
            self.cpus.append(Cpu(self, index, self.vm.create_vcpu(index)))
        self.bus.vcpus = [cpu.native for cpu in self.cpus]
        self.bus.need_rings = self._need_rings
        if self.rescues:
            self._install_rescue()
        if self.engine.in_kernel:
            from kvmpy.machine.kernel_places import KernelPlaces

            self.bus.kernel = KernelPlaces(self.bus, self.vm, self.cpus[0].vcpu)
        if self.irqchip == "user":
            from kvmpy.machine.interrupts import Interrupts

            self.interrupts = Interrupts(self)
        if strict:
            self.bus.strict(self._strict_read, self._strict_write)
        if history:
            self.log(history, "last")

    @property
    def ports(self) -> Any:
        """The port I/O space, 0x0 to 0xffff: see :class:`~kvmpy.machine.bus.Space`."""
        return self.bus.ports

    @property
    def mmio(self) -> Any:
        """Guest physical addresses outside RAM."""
        return self.bus.mmio

    @property
    def msrs(self) -> Any:
        """MSRs whose accesses leave the guest: attach an owner to an index as to a port. Accesses are 8 bytes."""
        return self.bus.msrs

    @property
    def hypercalls(self) -> Any:
        """Hypercall numbers whose VMCALL or VMMCALL a rule answers: an owner's ``read`` gives what the guest finds in
        RAX. Those with arguments, pointers and error codes are :meth:`hypercall`'s."""
        return self.bus.hypercalls

    def hypercall(self, nr: int) -> Callable[[Handler], Handler]:
        """Decorator: ``function(call)`` serves the guest's hypercall ``nr`` and returns what it finds in RAX.

        See :mod:`kvmpy.machine.hypercalls` for the convention, the error codes and how guests get there. UsageError for
        a number that is taken.
        """

        def attach(function: Handler) -> Handler:
            if self.hypercall_registry is None:
                from kvmpy.machine.hypercalls import Hypercalls

                self.hypercall_registry = Hypercalls(self)
            self.hypercall_registry.add(nr, function)
            return function

        return attach

    @property
    def timers(self) -> Timers:
        """What devices wait for in host time: see :class:`~kvmpy.machine.timers.Timers`."""
        if self._timers is None:
            from kvmpy.machine.timers import Timers

            self._timers = Timers(self.cpus[0])
        return self._timers

    def places(self) -> list[Range]:
        """Every range: its ``space``, ``name``, ``owner``, ``place`` and ``count``."""
        return [range_ for space in self.bus.spaces for range_ in space]

    @property
    def running(self) -> bool:
        """Whether run() is at work, in whatever thread."""
        return self._running

    # Life

    @property
    def closed(self) -> bool:
        """Whether close() was called, or the machine never came to be."""
        return self._closed

    def close(self) -> None:
        """Ends and frees everything: vCPUs first, memory last. A second time does nothing."""
        with self._life:
            if self._closed:
                return
            if self._running:
                raise UsageError("the machine is running: stop() it before it is closed")
            self._closed = True
            if self._rescue is not None:
                self._rescue.close()
            self.bus.close()
            for cpu in self.cpus:
                cpu.close()
        if self.vm is not None:
            self.vm.close()
        self.memory.disconnect()
        self.memory.close()
        for ring in self._rings:
            ring.close()
        lib.kvmpy_gate_free(self._gate)
        self._gate = ffi.NULL

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self._running else "stopped"
        return f"<Machine {self.engine.name}, {len(self.cpus)} vCPU, {self.memory.size >> 20} MiB, {state}>"

    # Loading

    def load(self, image: object, **options: Any) -> Payload:
        """Loads a guest: a bundled guest's name, a path, bytes, or a Payload; returns the Payload.

        ``options`` are those of :class:`kvmpy.boot.payload.BootOptions` (``mode``, ``entry``, ``append``, …). Puts
        the first vCPU at the entry state. Raises ImageError, UsageError.
        """
        from kvmpy.machine.loading import load

        return load(self, image, **options)

    def default_cpuid(self, index: int) -> CpuidTable:
        """What a vCPU's CPUID says unless it is edited: all that the engine can do on this host."""
        table: CpuidTable = self.engine.cpuid(index, len(self.cpus))
        if self.irqchip in ("none", "user"):
            from kvmpy.x86.persona import limit

            limit(table, apic=False, hypercalls=True)
        return table if self.interrupts is None else self.interrupts.edit_cpuid(table)

    def set_default_cpuid(self, cpu: Cpu) -> None:
        """The same, without the table in between."""
        if self.interrupts is None:
            self.engine.set_default_cpuid(cpu.vcpu, cpu.index, len(self.cpus))
        else:
            cpu.vcpu.set_cpuid2(self.default_cpuid(cpu.index).entries())

    def track_dirty(self) -> Dirty:
        """Logs what the guest writes from now on: see :class:`~kvmpy.machine.dirty.Dirty`. Raises UsageError."""
        from kvmpy.machine.dirty import Dirty

        if not self.engine.in_kernel:
            raise UsageError(f"the {self.engine.name} engine keeps no log of dirty pages")
        return Dirty(self, self._dirty_ring)

    # Running

    def run(
        self,
        timeout: float | None = None,
        max_exits: int | None = None,
        until: Iterable[int | str] = (),
    ) -> Result:
        """Runs the guest until it ends, ``timeout`` seconds are over, ``max_exits`` exits (of each vCPU) have been
        handled, one of a reason in ``until`` has ("IO", 6, …), or :meth:`stop` is called; may be called again to go on.

        An exception in a handler stops the machine at that exit and comes out unchanged, with a note that says where;
        running again retries the access, :meth:`skip` goes past it.

        Raises UsageError: closed, already running, a timeout that isn't positive.
        """
        began = time.monotonic()
        check_limits(timeout, max_exits)
        mask = sum(1 << number for number in {_reason(reason) for reason in until})
        with self._life:
            self._check_can_run()
            self.ending = None
            self._running = True
        try:
            self._prepare(max_exits, mask)
            before = self._counters()
            if len(self.cpus) == 1:
                self._run_here(self.cpus[0], timeout)
            else:
                self._run_threads(timeout)
            if self.bus.native.coalesced:
                self.drain_coalesced()
        finally:
            self._running = False
        assert self.ending is not None
        return self._result(self.ending, before, time.monotonic() - began)

    def _prepare(self, max_exits: int | None, until: int) -> None:
        self._halted.clear()
        self._all_halted = False
        self._cpu_time = 0.0
        self.bus.publish()
        self.vm.before_run()
        for cpu in self.cpus:
            cpu.idle = False
            cpu.set_up()
            lib.kvmpy_vcpu_begin(cpu.native, max_exits if max_exits is not None else (1 << 64) - 1, until)
        if self.interrupts is not None:
            self.interrupts.start()

    def _check_can_run(self) -> None:
        if self._closed:
            raise UsageError("the machine is closed: it can't run any more")
        if self._running:
            raise UsageError("the machine is running already, in another thread or below this handler")

    @property
    def _sleeps_in_kernel(self) -> bool:
        """A vCPU that halts stays in the kernel, and one has to look whether it can ever wake up."""
        return self.irqchip in ("kernel", "split")

    @property
    def _wants_ticks(self) -> bool:
        """Whether this thread's vCPU has to come back every TICK. One whose engine is in this process doesn't leave its
        guest for a signal as KVM_RUN does, and Python can only handle signals on the main thread, between two of its
        own instructions."""
        if len(self.cpus) > 1:
            return False
        on_main_thread = threading.current_thread() is threading.main_thread()
        return self._sleeps_in_kernel or (not self.engine.in_kernel and on_main_thread)

    def _run_here(self, cpu: Cpu, timeout: float | None) -> None:
        deadline = time.monotonic_ns() + int(timeout * 1e9) if timeout is not None else 0
        tick = int(TICK * 1e9) if self._wants_ticks else 0
        clock = time.thread_time()
        timers = self._timers if cpu.index == 0 else None
        try:
            if timers is not None:
                timers.start()
            error = lib.kvmpy_thread_enter(cpu.native, deadline, tick)
            if error == -errno.EBUSY:
                raise UsageError("a handler of another machine runs on this thread: run this one on its own")
            if error:
                raise OSError(-error, f"vCPU {cpu.index} can't run on this thread: {os.strerror(-error)}")
            loop.dispatch(self, cpu)
        finally:
            if timers is not None:
                timers.stop()
            lib.kvmpy_thread_leave(cpu.native)
            with self._life:
                self._cpu_time += time.thread_time() - clock

    def run_vcpu(self, cpu: Cpu) -> None:
        """Runs a vCPU on the calling thread until the machine has an ending; for kvmpy.machine.threads."""
        self._run_here(cpu, None)

    def _run_threads(self, timeout: float | None) -> None:
        from kvmpy.machine.threads import VcpuThreads

        deadline = time.monotonic() + timeout if timeout is not None else None
        active = [cpu for cpu in self.cpus if not cpu.parked]
        self._threads = VcpuThreads(self, active, TICK if self._sleeps_in_kernel else None)
        self._threads.run(deadline)

    # Ending

    def stop(self, status: int | None = None, reason: str = "stopped") -> None:
        """Ends the run, from any thread, handler or signal handler; without a run it does nothing."""
        if self._running:
            self.end(reason, status)

    def end(
        self,
        reason: str,
        status: int | None = None,
        cpu: Cpu | None = None,
        detail: str = "",
        crash: Any = None,
    ) -> None:
        """The first ending counts; every vCPU leaves its guest."""
        assert reason in REASONS, reason
        with self._life:
            if self.ending is None:
                self.ending = Ending(reason, status, None if cpu is None else cpu.index, detail, crash)
            for other in self.cpus:
                kick(other, lib.KVMPY_KICK_STOP)
        if self._threads is not None:
            self._threads.wake()

    def crash(self, cpu: Cpu, what: str, reason: str = "crash", remark: str = "") -> None:
        """Ends the run because ``cpu`` can't go on; keeps what a report needs."""
        from kvmpy.machine.crash import Crash

        self.end(reason, cpu=cpu, detail=what, crash=Crash(cpu, what, self.history(cpu), remark))

    # Rescue

    def _install_rescue(self) -> None:
        """From now on C looks whether KVM gave up on an instruction; all else is made when it has."""
        if len(self.cpus) > 1:
            self._gate = lib.kvmpy_gate_new([cpu.native for cpu in self.cpus], len(self.cpus))
            if self._gate == ffi.NULL:
                raise MemoryError("no memory for a machine of several vCPUs")
        for cpu in self.cpus:
            lib.kvmpy_rescue_install(cpu.native, self._gate)

    def rescue(self) -> Rescue:
        """What carries out instructions in KVM's place; for the run loop."""
        if self._rescue is None:
            from kvmpy.machine.rescue import Rescue

            self._rescue = Rescue(self)
        return self._rescue

    def why_not_rescued(self, cpu: Cpu) -> str:
        """Why the instruction that KVM has just given up on wasn't rescued; "" where there is no such thing."""
        if self._rescue is not None:
            return self._rescue.why_not(cpu)
        return "rescue is switched off" if self.engine.rescuable else ""

    def halted(self, cpu: Cpu) -> None:
        """A vCPU halted, and only another one can wake it: when all have, the run ends.

        Without interrupt controllers none can. With them each is looked at in turn, and one that slept may have been
        woken by another that fell asleep before its turn came: so it takes a second look at all of them.
        """
        if self.interrupts is not None and self.interrupts.wakes():
            cpu.halted = True
            self.interrupts.deliver()
            return
        self._halted.add(cpu.index)
        cpu.idle = self.irqchip == "none"
        if not all(other.index in self._halted or other.parked for other in self.cpus):
            return
        if cpu.idle or len(self.cpus) == 1 or self._all_halted:
            self.end("halt", status=0, cpu=cpu)
        self._halted.clear()
        self._all_halted = True

    def tick(self, cpu: Cpu) -> None:
        """A look at a vCPU whose interrupts come from the kernel: HLT with interrupts off is for ever."""
        if not self._sleeps_in_kernel:
            return
        if cpu.asleep_for_good():
            self.halted(cpu)
        else:
            self._halted.discard(cpu.index)
            self._all_halted = False

    def skip(self, cpu: int = 0) -> None:
        """Goes past the access at which a handler raised: a write is dropped, a read gives all ones.

        Raises UsageError if the vCPU isn't stopped at one.
        """
        if not 0 <= cpu < len(self.cpus):
            raise UsageError(f"there is no vCPU {cpu}: the machine has {len(self.cpus)}, from 0 on")
        if not loop.skip(self, self.cpus[cpu]):
            raise UsageError(f"vCPU {cpu} isn't stopped at an exit that a handler failed at")

    # Exits

    def on_exit(self, reason: int | str) -> Callable[[ExitHandler], ExitHandler]:
        """Decorator: ``function(exit)`` is called for exits of that reason ("HLT", "DEBUG", 8, …) instead of the
        default; if it returns NotImplemented, the default happens after all. Ports and MMIO are the buses'."""
        number = _reason(reason)

        def attach(function: ExitHandler) -> ExitHandler:
            self.exit_handlers[number] = function
            return function

        return attach

    def _strict_read(self, offset: int, size: int) -> int:
        self._unowned()
        return (1 << (8 * size)) - 1

    def _strict_write(self, offset: int, value: int, size: int) -> None:
        self._unowned()

    def _unowned(self) -> None:
        cpu = self.current_cpu()
        what = f"{loop.describe_access(cpu)}, at rip {cpu.regs.rip:#x}: nobody owns it (strict)"
        self.crash(cpu, what, "unowned")

    def current_cpu(self) -> Cpu:
        """The vCPU whose access the calling handler serves. UsageError outside handlers."""
        native = lib.kvmpy_thread_vcpu()
        for cpu in self.cpus:
            if cpu.native is not None and cpu.native == native:
                return cpu
        raise UsageError("no vCPU runs on this thread: only handlers can ask which one it is")

    def set_irq(self, line: int, level: bool) -> None:
        """The level of an interrupt line (0-15 as on a PC, up to 23 of the I/O APIC); nothing without an irqchip."""
        if self.interrupts is not None:
            self.interrupts.set_line(line, level)
        elif self.irqchip != "none":
            self.vm.set_irq(line, level)

    # Rings

    def log(
        self,
        capacity: int,
        mode: str = "counted",
        everything: bool = True,
        sink: Callable[[Cpu], None] | None = None,
    ) -> None:
        """Gives each vCPU a ring of ``capacity`` records (see :mod:`kvmpy.machine.ring`), which stays for good.

        ``everything`` logs every exit, otherwise only those of ranges whose place is "ring". ``sink(cpu)`` is called
        when a lossless ring is full and must drain it; without one the run ends with "ring-full".
        """
        if self._closed or self._running:
            raise UsageError("rings are set up before the machine runs, and not after it is closed")
        rings = [Ring(capacity, mode) for _ in self.cpus]
        for cpu, ring in zip(self.cpus, rings, strict=True):
            lib.kvmpy_vcpu_log(cpu.native, ring.native, everything)
        for old in self._rings:
            old.close()
        self._rings, self._ring_sink = rings, sink

    def _need_rings(self) -> None:
        """A range's place is "ring" and nobody said what ring: a counted one for each vCPU."""
        if not self._rings:
            self._rings = [Ring(DEFAULT_RING) for _ in self.cpus]
            for cpu, ring in zip(self.cpus, self._rings, strict=True):
                lib.kvmpy_vcpu_log(cpu.native, ring.native, False)

    def records(self) -> list[Record]:
        """Drains all rings; the records of all vCPUs by their time."""
        return sorted((record for ring in self._rings for record in ring.records()), key=lambda r: r.tsc)

    @property
    def rings(self) -> list[Ring]:
        """One for each vCPU, or none."""
        return self._rings

    def history(self, cpu: Cpu) -> list[Record]:
        """The last exits of a vCPU, taken out of its ring."""
        return list(self._rings[cpu.index].records()) if self._rings else []

    def ring_full(self, cpu: Cpu) -> None:
        """A lossless ring is full: the sink drains it, or the run ends."""
        if self._ring_sink is not None:
            self._ring_sink(cpu)
        else:
            self.end("ring-full", cpu=cpu)

    def drain_coalesced(self) -> None:
        """Hands writes that the kernel kept to their owners, in order: on a vCPU's thread, or when none runs."""
        with self.guard, self.bus.lock:
            self.bus.kernel_places().deliver()

    # Results

    def _counters(self) -> tuple[dict[int, int], dict[int, int], dict[str, int]]:
        exits_: dict[int, int] = {}
        for cpu in self.cpus:
            for reason, count in enumerate(cpu.native.exits):
                if count:
                    exits_[reason] = exits_.get(reason, 0) + count
        ids = (*range(lib.KVMPY_UNOWNED, lib.KVMPY_UNOWNED + lib.KVMPY_SPACES), *self.bus.by_id)
        rescued = self._rescue.counts() if self._rescue is not None else {}
        return exits_, {id_: self.bus.count(id_) for id_ in ids}, rescued

    def _result(self, ending: Ending, before: Any, wall: float) -> Result:
        exits_, counts, rescued = self._counters()
        for now, then in ((exits_, before[0]), (counts, before[1]), (rescued, before[2])):
            for key in then:
                now[key] -= then[key]
        ranges = [
            (range_.space.name, range_.name, range_.first, range_.last, range_.place, counts[id_])
            for id_, range_ in list(self.bus.by_id.items())
            if counts.get(id_)
        ]
        unowned = sum(counts[lib.KVMPY_UNOWNED + space] for space in range(lib.KVMPY_SPACES))
        named = {exits.name_of(reason): count for reason, count in exits_.items() if count}
        rescued = {name: count for name, count in rescued.items() if count}
        return Result(ending, named, ranges, unowned, wall, self._cpu_time, peak_memory(), rescued)


def check_rescue(engine: Engine) -> None:
    """Whether instructions of this engine can be rescued: EngineError or UsageError if not."""
    if not engine.rescuable:
        raise UsageError(
            f"rescue: the {engine.name} engine leaves no instruction to another one; it is for engine='kvm'"
        )
    from kvmpy.translate.library import find

    find()


def check_limits(timeout: float | None, max_exits: int | None) -> None:
    """Raises UsageError unless these can end a run: seconds above 0, 1 exit or more; None is no limit."""
    if timeout is not None and not 0 < timeout < 1e9:
        raise UsageError(f"timeout of {timeout} seconds: it must be more than 0 and less than 1e9")
    if max_exits is not None and not 0 < max_exits < 1 << 63:
        raise UsageError(f"max_exits of {max_exits}: it must be at least 1")


def _reason(name: int | str) -> int:
    """The number of an exit reason given as such or by KVM's name."""
    if isinstance(name, int) and 0 <= name < lib.KVMPY_REASONS:
        return name
    for reason, view in exits.VIEWS.items():
        if view.name == name:
            return reason
    raise UsageError(
        f"exit reason {name!r} is unknown: one of {', '.join(v.name for v in exits.VIEWS.values())}"
    )


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
