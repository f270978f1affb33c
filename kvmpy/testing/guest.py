"""A guest under test: a machine, ways to put code in it, and what it did."""

from __future__ import annotations

import os

from kvmpy.errors import UsageError
from kvmpy.testing.machine import USUAL_PLACE
from kvmpy.testing.problems import AssemblyError
from kvmpy.testing.serial import SerialLine
from kvmpy.testing.settings import check_address, check_code, check_mode
from kvmpy.testing.where import Caller, caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Any, Self

    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.crash import Crash
    from kvmpy.machine.memory import GuestMemory
    from kvmpy.machine.result import Result
    from kvmpy.testing.build import Program
    from kvmpy.testing.context import Context
    from kvmpy.testing.machine import MachineUnderTest
    from kvmpy.testing.settings import Settings
    from kvmpy.testing.trace import ExitList

SERIAL_PORT, EXIT_PORT = 0x3F8, 0xF4
SERIAL_IRQ = 4
RESET = 0xFFFFFFF0
NOISE = ("Assembler messages:", "In function", "In file included", "note:", "RWX permissions")
"""Lines of a compiler that say where something is, not what."""


class Run:
    """One run of a guest: ``exits``, and all that :class:`~kvmpy.machine.result.Result` has.

    ``serial`` is what the guest sent during this run, as text; ``counts`` the exits by KVM's name of the reason.
    """

    def __init__(self, machine: MachineUnderTest, result: Result, first: int, serial: bytes) -> None:
        self._machine = machine
        self._first = first
        self._end = len(machine.recorder) if machine.recorder is not None else 0
        self._exits: ExitList | None = None
        self.result = result
        self.serial = serial.decode("utf-8", "replace")

    @property
    def exits(self) -> ExitList:
        """Every exit of the run in order, those that C handled included; compare with a list of patterns. UsageError
        if they aren't written down."""
        if self._exits is None:
            self._exits = self._machine.recording().exits(self._first, self._end)
        return self._exits

    @property
    def reason(self) -> str:
        """Why the run ended: a key of :data:`kvmpy.machine.result.REASONS`."""
        return self.result.reason

    @property
    def status(self) -> int | None:
        """The status the guest gave; 0 after a halt, None if it gave none."""
        return self.result.status

    @property
    def crash(self) -> Crash | None:
        """What is known of a guest that couldn't go on."""
        return self.result.crash

    @property
    def counts(self) -> dict[str, int]:
        """Number of exits by KVM's name of the reason."""
        return self.result.exits

    def __repr__(self) -> str:
        return repr(self.result).replace("<Result", "<Run", 1)


class Guest:
    """A machine plus a way to put code in it. The fixture ``guest`` makes one; so does :func:`new_guest`.

    The machine is made when it is first needed: ``image("smp-hello")`` gives it what that guest wants.
    """

    def __init__(self, context: Context, make: Callable[..., MachineUnderTest], settings: Settings) -> None:
        self._context = context
        self._make = make
        self._machine: MachineUnderTest | None = None
        self._loaded: str = ""
        self.settings = settings
        self.program: Program | None = None
        self.serial = SerialLine(self.run, self._stop)

    def __repr__(self) -> str:
        return f"<Guest {self._machine!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._machine is None:
            return
        if error is not None:
            self._context.keep_report(self._machine)
        self._machine.close()
        self._context.forget(self._machine)

    # The machine

    @property
    def machine(self) -> MachineUnderTest:
        """The machine; attach devices to its ``ports`` and ``mmio``."""
        return self._need()

    def _need(self, **wishes: Any) -> MachineUnderTest:
        if self._machine is None:
            self._machine = self._make(**wishes)
        return self._machine

    @property
    def memory(self) -> GuestMemory:
        """RAM, by guest physical address."""
        return self.machine.memory

    @property
    def cpus(self) -> list[Cpu]:
        """All vCPUs."""
        return self.machine.cpus

    @property
    def regs(self) -> Any:
        """The first vCPU's registers."""
        return self.machine.cpus[0].regs

    @property
    def ports(self) -> Any:
        """The machine's ports."""
        return self.machine.ports

    @property
    def mmio(self) -> Any:
        """The machine's addresses outside RAM."""
        return self.machine.mmio

    @property
    def symbols(self) -> dict[str, int]:
        """Addresses of the labels (assembly) or functions and variables (C) that were loaded."""
        return self.program.symbols if self.program is not None else {}

    # Code

    def asm(
        self,
        source: str,
        mode: str | None = None,
        at: int | None = None,
        *,
        entry: str | int | None = None,
        **state: Any,
    ) -> Program:
        """Assembles (GNU as syntax, through the C preprocessor) and loads ``source``, to start in ``mode``.

        ``mode`` "real", "protected" or "long" (the marker's, else long); ``at`` the guest physical address, by default
        0x1000 in real mode, else 1 MiB; ``entry`` a label or address, by default the first instruction or ``_start``.
        ``state`` goes to the mode's entry state (:mod:`kvmpy.x86.entry`): ``ring=3``, ``regs={"rax": 1}``,
        ``idt={14: "page_fault"}`` with labels or addresses, ``interrupts=True``, …

        ``#include "kvmpy.h"`` gives ``ASSERT``, ``ASSERT_EQ`` and the like. Raises AssemblyError with the line of the
        test file; ImageError if it doesn't fit into memory; UsageError if the guest has a program already.
        """
        __tracebackhide__ = True
        return self._compiled("asm", source, mode, at, entry, state)

    def c(self, source: str, *, at: int | None = None, **state: Any) -> Program:
        """Compiles and loads freestanding C for long mode; ``main``'s result is the guest's exit status.

        ``#include "kvmpy.h"`` gives assertions, ``inb``, ``outb``, ``print`` and a few more. Raises as :meth:`asm`.
        """
        __tracebackhide__ = True
        return self._compiled("c", source, "long", at, None, state)

    def code(
        self,
        code: bytes,
        mode: str | None = None,
        at: int | None = None,
        *,
        entry: int | None = None,
        **state: Any,
    ) -> Program:
        """Loads machine code as it is; the parameters are those of :meth:`asm`."""
        __tracebackhide__ = True
        from kvmpy.testing.build import Program

        mode, at = self._place(mode, at)
        check_code(code, at)
        program = Program(bytes(code), at, at if entry is None else entry)
        self._load(program, mode, caller(), state)
        return program

    def image(self, image: str | os.PathLike[str], **options: Any) -> Any:
        """Loads a bundled guest by name, or an image file (its path as it is, or from the test file's directory).

        The machine gets the devices of a PC and, unless the marker says otherwise, the vCPUs and interrupt controllers
        that a bundled guest asks for. ``options`` as for :meth:`Machine.load`. Raises ImageError.
        """
        __tracebackhide__ = True
        where = os.fspath(image)
        self._once(caller(), f"image {where!r}")
        beside = os.path.join(os.path.dirname(self._context.path), where)
        if not os.path.exists(where) and os.path.exists(beside):
            where = beside
        machine = self._need(**_needs(where))
        self._attach_devices("pc")
        machine.load_options = {"image": where, **options}
        return machine.load(where, **options)

    def _place(self, mode: str | None, at: int | None) -> tuple[str, int]:
        mode = mode or self.settings.mode or "long"
        check_mode(mode)
        at = USUAL_PLACE[mode] if at is None else at
        check_address(at)
        return mode, at

    def _compiled(
        self,
        language: str,
        source: str,
        mode: str | None,
        at: int | None,
        entry: str | int | None,
        state: dict[str, Any],
    ) -> Program:
        __tracebackhide__ = True
        mode, at = self._place(mode, at)
        if not isinstance(source, str):
            raise UsageError(f"source is {type(source).__name__}: it must be text; guest.code() takes bytes")
        place = caller()
        try:
            program = self._context.builder.build(language, source, mode, at)
        except AssemblyError as error:
            raise AssemblyError(_explain(str(error), language, source, place)) from None
        if entry is not None:
            program = _entering(program, entry)
        self._load(program, mode, place, state)
        return program

    def _once(self, place: Caller, what: str) -> None:
        __tracebackhide__ = True
        if self._loaded:
            raise UsageError(
                f"{place}: this guest holds {self._loaded} already: put both into one program, or use new_guest()"
                " for a second machine"
            )
        self._loaded = f"{what} ({place})"

    def _load(self, program: Program, mode: str, place: Caller, state: dict[str, Any]) -> None:
        __tracebackhide__ = True
        self._once(place, "a program")
        machine = self.machine
        self._attach_devices("serial")
        self.program = program
        machine.programs.append(program)
        machine.load_options = {"mode": mode, **state}
        if program.assertions:
            from kvmpy.testing.assertions import AssertionPort

            AssertionPort(machine, program, place)
        if state:
            from kvmpy.testing.entry import load

            load(machine, program, mode, state)
        else:
            machine.load(
                program.data,
                format="flat",
                mode=mode,
                load_address=program.at,
                entry=program.entry,
                name=str(place),
            )

    def _attach_devices(self, usual: str) -> None:
        devices = self.settings.devices or usual
        self.machine.serial = self.serial
        if devices == "pc":
            from kvmpy.machine.pc import Pc

            self.serial.connect(Pc(self.machine, self.serial.feed).serial.receive)
        elif devices == "serial":
            self._attach_serial()

    def _attach_serial(self) -> None:
        from kvmpy.devices.exit_port import ExitPort
        from kvmpy.devices.serial import Serial

        machine = self.machine
        serial = Serial(
            self.serial.feed, lambda level: machine.set_irq(SERIAL_IRQ, level), lock=machine.guard
        )
        machine.ports.attach(SERIAL_PORT, serial.LENGTH, serial)
        machine.ports.attach(
            EXIT_PORT, ExitPort.LENGTH, ExitPort(lambda status: machine.stop(status, "exit"))
        )
        self.serial.connect(serial.receive)

    # Running

    def run(
        self,
        timeout: float | None = None,
        max_exits: int | None = None,
        until: Iterable[int | str] = (),
    ) -> Run:
        """Runs the guest until it halts, exits or crashes, or a limit is reached: see :meth:`Machine.run`.

        May be called again to go on. Without a timeout of its own a guest that doesn't end raises GuestHang when the
        test's limit is reached; GuestAssertion if an ``ASSERT`` in it doesn't hold; what a handler raises comes out.
        """
        __tracebackhide__ = True
        machine = self.machine
        if not self._loaded and _untouched(machine):
            raise UsageError(
                f"{caller()}: the guest has no program: call guest.asm(), code(), c() or image()"
            )
        recorder = machine.recorder
        first = len(recorder) if recorder is not None else 0
        sent = len(self.serial.data)
        result = machine.run(timeout, max_exits, until)
        return Run(machine, result, first, self.serial.data[sent:])

    def send(self, data: str | bytes) -> None:
        """Types into the guest's serial port."""
        self.serial.send(data)

    def _stop(self) -> None:
        self.machine.stop()

    @property
    def trace(self) -> ExitList:
        """Every exit so far, over all runs."""
        return self.machine.trace


def _needs(where: str) -> dict[str, Any]:
    """What a bundled guest wants of its machine; nothing is known of a file."""
    if os.sep in where or os.path.exists(where):
        return {}
    from kvmpy.boot.bundled import find

    needs = find(where).needs
    return {"cpus": needs["cpus"], "irqchip": "any" if needs["irqchip"] == "kernel" else needs["irqchip"]}


def _untouched(machine: MachineUnderTest) -> bool:
    """The first vCPU is as after a reset, and there is nothing where it would start."""
    cpu = machine.cpus[0]
    start = cpu.sregs.cs.base + cpu.regs.rip
    return start == RESET and RESET not in machine.memory


def _entering(program: Program, entry: str | int) -> Program:
    """The same program, started elsewhere."""
    from kvmpy.testing.build import Program

    if isinstance(entry, str):
        if entry not in program.symbols:
            raise UsageError(
                f"entry {entry!r} is no label of the program: {', '.join(program.symbols) or 'there are none'}"
            )
        entry = program.symbols[entry]
    return Program(
        program.data, program.at, entry, symbols=program.symbols, assertions=program.assertions,
        language=program.language, source=program.source, path=program.path,
    )  # fmt: skip


def _explain(said: str, language: str, source: str, place: Caller) -> str:
    """The compiler's message with the test file's lines in place of the source's."""
    import re

    lines = []
    errors = "error:" in said.lower()
    for line in said.splitlines():
        if line.startswith((" ", "collect2:")) or any(word in line for word in NOISE):
            continue
        if errors and "warning:" in line:
            continue
        found = re.match(rf"{language}:(\d+):(?:\d+:)? *(.*)", line)
        if found:
            lines.append(f"{place.describe(source, int(found[1]))}: {found[2]}")
        else:
            lines.append(f"{place}: {re.sub(r'^.*?guest.o:', '', line)}")
    return "\n".join(lines[:8]) or f"{place}: {said}"
