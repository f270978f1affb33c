"""The command line that runs a failed test's guest again, without pytest."""

from __future__ import annotations

import os
from shlex import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmpy.testing.build import Program
    from kvmpy.testing.context import Context
    from kvmpy.testing.machine import MachineUnderTest

SCRIPT = '''\
"""The guest of {nodeid}, without what the test attached to the machine."""
import kvmpy
from kvmpy.testing.entry import build
from kvmpy.boot import Chunk, Payload

data = open({path!r}, "rb").read()
with kvmpy.Machine(**{machine!r}) as machine:
    kvmpy.Pc(machine)
    low = next(slot.size for slot in machine.memory.slots if slot.gpa == 0)
    entry = build({mode!r}, {entry:#x}, memory_size=low, avoid=[({at:#x}, len(data))], **{state!r})
    machine.load(Payload("flat", [Chunk({at:#x}, data)], entry))
    result = machine.run(timeout={timeout})
    print(result)
    print(machine.cpus[0].regs)
'''


def command(context: Context, machine: MachineUnderTest) -> str:
    """Shell commands, one a line."""
    lines = []
    if "image" in machine.load_options:
        lines.append(_run(context, machine, str(machine.load_options["image"]), machine.load_options))
    elif machine.programs and not context.many_examples:
        lines.append(_program(context, machine, machine.programs[0]))
    if lines and _handlers(machine):
        lines[0] += f"\n  (without what the test attached: {_handlers(machine)})"
    lines.append(
        f"pytest {quote(context.nodeid)}" + (f" --kvmpy-engine={context.engine}" if context.engine else "")
    )
    return "\n".join(lines)


def as_test(context: Context, machine: MachineUnderTest) -> str:
    """What the test did with this machine as a test of its own; "" if the plugin loaded nothing into it."""
    if not machine.programs:
        return ""
    program = machine.programs[0]
    options = {**machine.load_options, "at": program.at}
    if program.entry != program.at:
        options["entry"] = program.entry
    words = ", ".join(
        f"{name}={value!r}" for name, value in sorted(options.items(), key=lambda each: each[0] != "mode")
    )
    settings = {key: value for key, value in machine.settings.items() if key not in ("engine", "backing")}
    marker = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return (
        "import pytest\n"
        "from kvmpy.testing import *\n\n"
        f"@pytest.mark.kvmpy({marker}, engine={machine.engine.name!r})\n"
        "def test_again(guest):\n"
        f'    guest.code(bytes.fromhex("{program.data.hex()}"), {words})\n'
        f"    assert guest.run().exits == {machine.trace!r}"
    )


def _program(context: Context, machine: MachineUnderTest, program: Program) -> str:
    path = _file(context, program)
    options: dict[str, Any] = {**machine.load_options}
    mode = options.pop("mode")
    if options:
        return f"python {quote(_script(context, machine, program, path, mode, options))}"
    flat = {"format": "flat", "mode": mode, "load_address": hex(program.at)}
    if program.entry != program.at:
        flat["entry"] = hex(program.entry)
    return _run(context, machine, path, flat)


def _file(context: Context, program: Program) -> str:
    """The program as a file, which stays in the cache."""
    if program.path:
        return program.path
    from hashlib import sha256

    return _keep(context, f"{sha256(program.data).hexdigest()[:24]}.bin", program.data)


def _keep(context: Context, name: str, data: bytes) -> str:
    directory = context.builder.directory
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, name)
    with open(f"{path}.{os.getpid()}", "wb") as file:
        file.write(data)
    os.replace(file.name, path)
    return path


def _script(
    context: Context, machine: MachineUnderTest, program: Program, path: str, mode: str, state: dict[str, Any]
) -> str:
    """A start that ``kvmpy run`` has no options for, as a few lines of Python."""
    from hashlib import sha256

    from kvmpy.testing.entry import resolve

    text = SCRIPT.format(
        nodeid=context.nodeid, path=path, machine=_machine(machine), mode=mode, entry=program.entry, at=program.at,
        state=resolve(program, state), timeout=context.budget.seconds if context.budget.is_limited else None,
    )  # fmt: skip
    return _keep(context, f"run-{sha256(text.encode()).hexdigest()[:16]}.py", text.encode())


def _machine(machine: MachineUnderTest) -> dict[str, Any]:
    settings = {key: value for key, value in machine.settings.items() if key != "backing"}
    return {**settings, "engine": machine.engine.name, "rescue": machine.rescues}


def _run(context: Context, machine: MachineUnderTest, image: str, options: dict[str, Any]) -> str:
    words = ["kvmpy", "run", os.path.relpath(image) if os.path.exists(image) else image]
    for name in ("format", "mode", "load_address", "entry", "append"):
        value = options.get(name)
        if value:
            words += [f"--{name.replace('_', '-')}", hex(value) if isinstance(value, int) else str(value)]
    settings = _machine(machine)
    words += ["--memory", str(settings["memory"]), "--cpus", str(settings.get("cpus", 1))]
    words += ["--engine", settings["engine"], "--irqchip", settings.get("irqchip", "none")]
    if settings.get("strict"):
        words.append("--strict")
    if machine.engine.rescuable:
        words.append("--rescue" if settings["rescue"] else "--no-rescue")
    if context.budget.is_limited:
        words += ["--timeout", f"{context.budget.seconds:g}"]
    words += ["--trace", "trace.jsonl"]
    return " ".join(map(quote, words))


def _handlers(machine: MachineUnderTest) -> str:
    """Ranges of the test's own: those that a PC doesn't have."""
    own = [
        f"{range_.space.name} {range_}"
        for range_ in machine.places()
        if not type(range_.owner).__module__.startswith(
            ("kvmpy.devices.", "kvmpy.testing.", "kvmpy.machine.pc")
        )
    ]
    return ", ".join(own[:4]) + (", …" if len(own) > 4 else "")
