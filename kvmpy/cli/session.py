"""A run of ``kvmpy run``: from the options to the machine, to the guest's end, to what is left behind."""

from __future__ import annotations

import os
from contextlib import ExitStack

from kvmpy.cli import CRASH, LIMIT
from kvmpy.cli.messages import say, write
from kvmpy.cli.signals import Signals
from kvmpy.cli.terminal import Console
from kvmpy.errors import EngineError, ImageError, UsageError
from kvmpy.machine.engine import open_engine
from kvmpy.machine.machine import Machine
from kvmpy.machine.pc import Pc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from kvmpy.boot.bundled import Bundled
    from kvmpy.boot.payload import Payload
    from kvmpy.cli.report import WholeFile
    from kvmpy.machine.result import Result

GUEST_STATUS_LIMIT = 119
HISTORY = 16
"""Exits kept for the crash report."""


class Session:
    """One guest run for somebody at the command line. ``options`` are those of ``kvmpy run`` by name."""

    def __init__(self, image: str, options: dict[str, Any]) -> None:
        self.image = image
        self.options = options
        self.signals = Signals()

    def run(self) -> int:
        """Runs the guest; the exit status. What can't be is a KvmpyError before the guest starts."""
        with ExitStack() as stack:
            stack.enter_context(self.signals)
            console = Console(self.options["serial"])
            self._check_outputs()
            guest = self._bundled()
            data = None if guest else _read(self.image, "")
            report = self._open("report_path", stack)
            machine = stack.enter_context(self._machine(guest, data))
            pc = Pc(
                machine, console.write, append=self.options["append"], qemu_exit=self.options["qemu_exit"]
            )
            if self.options.get("paravirt") or (guest is not None and guest.needs["paravirt"]):
                from kvmpy.machine.paravirt import Paravirt

                Paravirt(machine, console.write, lambda status: pc.exit.write(0, status, 4))
            if self.options.get("persona"):
                from kvmpy.machine.personas import choose

                choose(machine, self.options["persona"])
            payload = machine.load(self.image if data is None else data, **self._boot_options())
            self._remark_on(machine, payload)
            console.receive, console.quit = pc.serial.receive, machine.stop
            result = self._execute(machine, console)
            self._tell(machine, result)
            if report is not None:
                self._write_report(report, machine, payload, result)
            return self._status(result)

    # Before

    def _check_outputs(self) -> None:
        """Two outputs to one plain file would destroy each other."""
        serial = self.options["serial"]
        named = {
            "--report": self.options["report_path"],
            "--trace": self.options["trace_path"],
            "--serial": serial[5:] if serial.startswith("file:") else None,
        }
        seen: dict[str, str] = {}
        for option, path in named.items():
            if path is None or (os.path.exists(path) and not os.path.isfile(path)):
                continue
            real = os.path.realpath(path)
            if real in seen:
                raise UsageError(f"{seen[real]} and {option} are the same file, {path}: give two")
            seen[real] = option

    def _open(self, option: str, stack: ExitStack) -> WholeFile | None:
        """The file an option names, opened before the guest starts: a wrong path shows now, not in an hour."""
        path = self.options[option]
        if path is None:
            return None
        from kvmpy.cli.report import WholeFile

        return stack.enter_context(WholeFile(path, "--" + option.removesuffix("_path")))

    def _bundled(self) -> Bundled | None:
        """A bundled guest, unless there is a file of that name or the name is a path."""
        image = self.image
        if os.sep in image or (os.path.exists(image) and not os.path.isdir(image)):
            return None
        from kvmpy.boot.bundled import find

        try:
            return find(image)
        except ImageError as error:
            if os.path.isdir(image):
                return None
            raise ImageError(f"there is no file {image!r}, and {error}") from None

    def _machine(self, guest: Bundled | None, data: bytes | None) -> Machine:
        options = self.options
        cpus = options["cpus"] if options["cpus"] is not None else guest.needs["cpus"] if guest else 1
        irqchip = self._irqchip(guest, data, cpus)
        return Machine(
            options["memory"],
            cpus,
            options["engine"],
            irqchip=irqchip,
            strict=options["strict"],
            history=HISTORY,
            rescue=options.get("rescue"),
        )

    def _irqchip(self, guest: Bundled | None, data: bytes | None, cpus: int) -> str:
        """A guest that comes as flat bytes and ends with HLT wants none; firmware and kernels expect a PC's, wherever
        the engine has it."""
        chosen = str(self.options["irqchip"])
        if chosen != "auto":
            return chosen
        if cpus == 1 and not self._wants_irqchip(guest, data):
            return "none"
        return "kernel" if open_engine(self.options["engine"]).in_kernel or cpus > 1 else "user"

    def _wants_irqchip(self, guest: Bundled | None, data: bytes | None) -> bool:
        if guest is not None:
            return bool(guest.needs["irqchip"] != "none")
        from kvmpy.boot import recognise

        return (self.options["format_"] or recognise(data or b"\0")) != "flat"

    def _boot_options(self) -> dict[str, Any]:
        options = self.options
        chosen: dict[str, Any] = {
            "name": os.path.basename(self.image),
            "append": options["append"],
            "modules": list(self._modules()),
        }
        for key, option in (
            ("format", "format_"),
            ("mode", "mode"),
            ("entry", "entry"),
            ("load_address", "load_address"),
        ):
            if options[option] is not None:
                chosen[key] = options[option]
        if options["initrd"] is not None:
            chosen["initrd"] = _read(options["initrd"], "--initrd ")
        return chosen

    def _modules(self) -> Iterator[tuple[str, bytes, str]]:
        for text in self.options["modules"]:
            path, _, arguments = text.partition(" ")
            yield path, _read(path, "--module "), arguments

    def _remark_on(self, machine: Machine, payload: Payload) -> None:
        if self.options["quiet"]:
            return
        if self.options["engine"] == "auto" and machine.engine.name != "kvm":
            say(f"running with binary translation, which is slower: {_why_no_kvm()}")
        for note in payload.notes:
            say(note)

    # The guest

    def _execute(self, machine: Machine, console: Console) -> Result:
        with ExitStack() as stack:
            tracer = None
            file = self._open("trace_path", stack)
            if file is not None:
                from kvmpy.cli.report import Tracer

                tracer = Tracer(machine, file)
            self.signals.machine = machine
            with console:
                result = machine.run(self.options["timeout"], self.options["max_exits"])
            if tracer is not None:
                tracer.finish()
                if result.crash is not None:
                    result.crash.history = list(tracer.last[result.crash.vcpu])
            return result

    # After

    def _tell(self, machine: Machine, result: Result) -> None:
        if result.crash is not None:
            from kvmpy.cli.crash_report import render

            write(render(machine, result.crash))
        if self.options["stats"]:
            from kvmpy.cli.report import print_stats

            print_stats(result)

    def _write_report(self, file: WholeFile, machine: Machine, payload: Payload, result: Result) -> None:
        from json import dumps

        from kvmpy.cli.report import report

        given = {
            key.removesuffix("_path").rstrip("_"): value
            for key, value in self.options.items()
            if value not in (None, False, (), "")
        }
        file.write(dumps(report(machine, self.image, payload, result, given), indent=2) + "\n")

    def _status(self, result: Result) -> int:
        if result.crash is not None:
            return CRASH
        if self.signals.caught:
            return self.signals.status
        if result.reason in ("timeout", "max-exits"):
            by_time = result.reason == "timeout"
            limit = f"{self.options['timeout']:g} s" if by_time else f"{self.options['max_exits']} exits"
            say(f"the guest was stopped after {limit}" + (f": {result.detail}" if result.detail else ""))
            return LIMIT
        if result.status is None:
            return 0
        if self.options["qemu_exit"] and result.reason == "exit":
            return result.status & 0xFF
        if result.status > GUEST_STATUS_LIMIT:
            say(f"the guest's status {result.status} is given as {GUEST_STATUS_LIMIT}")
            return GUEST_STATUS_LIMIT
        return result.status


def _read(path: str, option: str) -> bytes:
    from kvmpy.boot import read

    try:
        return read(path)
    except ImageError as error:
        raise ImageError(f"{option}{error}") from None


def _why_no_kvm() -> str:
    try:
        open_engine("kvm")
    except EngineError as error:
        return str(error)
    return "kvm wasn't chosen"
