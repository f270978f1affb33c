"""What people read: the header, compared exits, and what the report of a failed test says of its machines."""

from __future__ import annotations

from kvmpy.testing import diff
from kvmpy.testing.exits import from_record
from kvmpy.testing.golden_trace import Golden
from kvmpy.testing.machine import HISTORY, MachineUnderTest
from kvmpy.testing.trace import ExitList

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmpy.machine.crash import Crash
    from kvmpy.testing.context import Context

ROWS = (("rax", "rbx", "rcx", "rdx"), ("rsi", "rdi", "rbp", "rsp"), ("r8", "r9", "r10", "r11"),
        ("r12", "r13", "r14", "r15"), ("rip", "rflags"))  # fmt: skip
SERIAL_LINES = 20
INSTRUCTIONS = 3


def header(engines: Sequence[str]) -> str:
    """One line: version, engines, technique, host."""
    import kvmpy
    from kvmpy.errors import EngineError
    from kvmpy.machine.engine import open_engine
    from kvmpy.testing.settings import host_facts

    facts = host_facts()
    parts = []
    for name in engines:
        try:
            opened = open_engine(name).name
        except EngineError:
            parts.append(f"{name} (doesn't work here)")
            continue
        technique = f"{facts.technique}" if opened == "kvm" else "binary translation"
        parts.append(f"{name if name == opened else f'{name} = {opened}'} ({technique})")
    model = " ".join(str(facts.model or "unknown processor").split())
    return f"kvmpy {kvmpy.__version__}: engine {', '.join(parts)}; {model}, Linux {facts.kernel}"


# Comparisons


def explain(left: object, right: object) -> list[str] | None:
    """Lines for ``left == right`` that isn't; None if neither is a list of exits. No line has a % or a line's end."""
    seen, expected = (left, right) if isinstance(left, ExitList) else (right, left)
    if not isinstance(seen, ExitList):
        return None
    title = "exits"
    if isinstance(expected, Golden):
        title = f"exits and golden trace {expected.name!r}"
        expected = expected.expected()
    if not isinstance(expected, (list, tuple)):
        return None
    summary, table = diff.side_by_side(seen, expected)
    lines = [f"{title} differ, {summary}", *table]
    if isinstance(expected, list) and title != "exits":
        lines.append("  (--kvmpy-update-golden writes what was seen)")
    return lines + _state(seen.machine)


def _state(machine: object) -> list[str]:
    """The first vCPU's registers, the code at RIP and the serial output, for the end of a comparison."""
    if not isinstance(machine, MachineUnderTest) or machine.closed:
        return []
    index = machine.result.vcpu if machine.result is not None and machine.result.vcpu is not None else 0
    lines = ["", *registers(machine, index)]
    serial = machine.serial_text()
    if serial:
        lines += ["", "serial output:", *(f"  {line!r}" for line in serial.splitlines()[-SERIAL_LINES:])]
    return lines


# Sections of a failed test's report


def all_sections(context: Context) -> list[tuple[str, str]]:
    """(title, text) for each part; of machines that are closed only what was kept."""
    found = list(context.reports)
    for machine in context.machines:
        if not machine.closed:
            found += sections(context, machine)
    return found


def sections(context: Context, machine: MachineUnderTest) -> list[tuple[str, str]]:
    """What is known of one machine. Never raises: a report must not hide the failure."""
    from kvmpy.testing.reproduce import as_test, command

    found: list[tuple[str, str]] = []
    number = context.machines.index(machine) if machine in context.machines else 0
    name = "kvmpy" if number == 0 else f"kvmpy machine {number}"
    for title, part in (
        ("how the run ended", _ending),
        ("last exits", _last_exits),
        ("vCPUs", _all_registers),
        ("serial output", _serial),
        ("to run it again", lambda machine: command(context, machine)),
        ("as a test of its own", lambda machine: as_test(context, machine) if context.many_examples else ""),
    ):
        try:
            text = part(machine)
        except Exception as error:
            text = f"(not known: {type(error).__name__}: {error})"
        if text:
            found.append((f"{name}: {title}", text))
    return found


def _ending(machine: MachineUnderTest) -> str:
    return repr(machine.result) if machine.result is not None else "it never ran, or its run was cut short"


def _last_exits(machine: MachineUnderTest) -> str:
    recorder = machine.recorder
    if recorder is None or not recorder.active:
        return ""
    recorder.collect()
    lines = []
    for cpu in machine.cpus:
        last = recorder.last(cpu.index, HISTORY)
        lines += [f"vCPU {cpu.index}: {from_record(record)!r}" for record in last]
    total = len(recorder)
    return "\n".join([f"{total} in all, the last of each vCPU:", *lines]) if total else "none"


def _all_registers(machine: MachineUnderTest) -> str:
    return "\n".join(line for cpu in machine.cpus for line in [*registers(machine, cpu.index), ""]).rstrip()


def registers(machine: MachineUnderTest, vcpu: int) -> list[str]:
    """A vCPU's registers and the code it is at."""
    from kvmpy.machine.crash import Crash
    from kvmpy.machine.disassembly import disassemble

    ended = machine.result.crash if machine.result is not None else None
    state: Crash = ended if ended is not None and ended.vcpu == vcpu else Crash(machine.cpus[vcpu], "", [])
    lines = [f"vCPU {vcpu}, {state.mode}-bit code at {state.code_at:#x}{_near(machine, state.code_at)}:"]
    if state.remark:
        lines.append(f"  {state.remark}")
    code = disassemble(state.code, state.code_at, state.mode)
    lines += [f"    {line}" for line in code[:INSTRUCTIONS]]
    for row in ROWS:
        lines.append("  " + "  ".join(f"{name:>6} {state.registers[name]:016x}" for name in row))
    lines.append("  " + "  ".join(f"{name} {value:x}" for name, value in state.system.items()))
    segments = ("cs", "ss", "ds", "tr")
    lines.append("  " + "  ".join(f"{name} {state.segments[name][0]:04x}" for name in segments))
    return lines


def _near(machine: MachineUnderTest, address: int) -> str:
    for program in machine.programs:
        name = program.symbol_near(address)
        if name:
            return f" ({name})"
    return ""


def _serial(machine: MachineUnderTest) -> str:
    return machine.serial_text()
