"""Handlers that fail, and native ones: what run() raises, and how the machine goes on."""

from __future__ import annotations

import dis
import gc
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmpy._native import ffi, lib
from kvmpy.errors import BusError, DeviceError, UsageError
from kvmpy.machine import loop
from kvmpy.machine.engine_stub import StubEngine, StubExit, memory_read, memory_write, port_read, port_write
from kvmpy.machine.machine import Machine
from kvmpy.machine.rules import Drop, Latch, Native, Registers

ROOT = Path(__file__).resolve().parents[3]
HLT = 5


def machine(*script: StubExit, **options: Any) -> Machine:
    return Machine("4K", engine=StubEngine(script), **options)


def answers(made: Machine) -> list[bytes]:
    engine = made.engine
    assert isinstance(engine, StubEngine)
    return engine.answers()


class Trouble(Exception):
    pass


class Device:
    """Fails as often as it is told, then works."""

    name = "device"

    def __init__(self, failures: int = 1) -> None:
        self.failures = failures
        self.calls: list[tuple[Any, ...]] = []

    def _call(self, *what: Any) -> None:
        self.calls.append(what)
        if self.failures:
            self.failures -= 1
            raise Trouble("no")

    def read(self, offset: int, size: int) -> int:
        self._call("read", offset, size)
        return 0x42

    def write(self, offset: int, value: int, size: int) -> None:
        self._call("write", offset, value, size)


def says(what: str, kind: type[Exception] = BusError) -> pytest.RaisesExc[Exception]:
    return pytest.raises(kind, match="^" + re.escape(what))


# Exceptions


@pytest.mark.parametrize(
    ("exit_", "note", "call"),
    [
        (port_write(0x81, b"\x05\x06"), "2 byte write of 0x605, port 0x81", ("write", 1, 0x605, 2)),
        (port_read(0x80), "1 byte read, port 0x80", ("read", 0, 1)),
        (
            memory_write(0x9004, b"\x01\x00\x00\x00"),
            "4 byte write of 0x1, MMIO address 0x9004",
            ("write", 4, 1, 4),
        ),
        (memory_read(0x9000, 8), "8 byte read, MMIO address 0x9000", ("read", 0, 8)),
    ],
)
def test_the_exception_arrives_unchanged_with_the_exit(
    exit_: StubExit, note: str, call: tuple[Any, ...]
) -> None:
    with machine(exit_) as made:
        device = Device()
        made.ports.attach(0x80, 4, device)
        made.mmio.attach(0x9000, 8, device)
        with pytest.raises(Trouble) as caught:
            made.run()
        assert caught.value.args == ("no",)
        assert caught.value.__notes__ == [f"at {note} on vCPU 0"]
        assert device.calls == [call]
        assert made.cpus[0].regs.rip == 0
        assert made.run().reason == "halt"
        assert device.calls == [call, call]
        if not exit_.is_write:
            assert answers(made)[0] == (0x42).to_bytes(exit_.size, "little")


def test_skip_drops_a_write_and_reads_all_ones() -> None:
    with machine(port_write(0x80, b"\x05"), port_read(0x80, 2)) as made:
        device = Device(failures=2)
        made.ports.attach(0x80, 4, device)
        for _ in range(2):
            with pytest.raises(Trouble):
                made.run()
            made.skip()
        assert made.run().reason == "halt"
        assert device.calls == [("write", 0, 5, 1), ("read", 0, 2)]
        assert answers(made)[1] == b"\xff\xff"
        assert made.ports[0x80].count == 2


def test_skip_where_there_is_nothing_to_skip() -> None:
    with machine(port_write(0x80, b"\x05")) as made:
        with says("vCPU 0 isn't stopped at an exit that a handler failed at", UsageError):
            made.skip()
        made.run()
        with says("vCPU 0 isn't stopped at an exit", UsageError):
            made.skip()


def test_a_string_goes_on_where_it_failed() -> None:
    with machine(port_write(0x80, b"abcdef", 1), port_read(0x81, 1, 4)) as made:
        taken: list[int] = []

        @made.ports.on_write(0x80)
        def write(offset: int, value: int, size: int) -> None:
            if len(taken) == 3 and not failed:
                failed.append(value)
                raise Trouble
            taken.append(value)

        @made.ports.on_read(0x81)
        def read(offset: int, size: int) -> int:
            given.append(0)
            if len(given) == 2:
                raise Trouble
            return len(given)

        failed: list[int] = []
        given: list[int] = []
        with pytest.raises(Trouble):
            made.run()
        with pytest.raises(Trouble):
            made.run()
        made.skip()  # the second of four reads
        made.run()
        assert bytes(taken) == b"abcdef"
        assert answers(made)[1] == b"\x01\xff\x03\x04"


def test_a_string_that_is_taken_whole_is_skipped_whole() -> None:
    class Port:
        def __init__(self) -> None:
            self.seen: list[bytes] = []

        def write(self, offset: int, value: int, size: int) -> None:
            self.seen.append(bytes([value]))

        def write_string(self, offset: int, data: bytes, size: int) -> None:
            self.seen.append(data)
            raise Trouble

    with machine(port_write(0x80, b"abc", 1), port_write(0x80, b"d")) as made:
        port = Port()
        made.ports.attach(0x80, 1, port)
        with pytest.raises(Trouble) as caught:
            made.run()
        assert "at 1 byte write of 0x61, port 0x80 on vCPU 0" in caught.value.__notes__
        made.skip()
        made.run()
        assert port.seen == [b"abc", b"d"]
        assert made.ports[0x80].count == 4


def test_exit_handlers_fail_like_any_other() -> None:
    with machine() as made:
        halts = []

        @made.on_exit("HLT")
        def halt(exit_: Any) -> object:
            halts.append(exit_.name)
            if len(halts) == 1:
                raise Trouble
            return NotImplemented

        with pytest.raises(Trouble) as caught:
            made.run()
        assert caught.value.__notes__ == ["at HLT on vCPU 0"]
        assert made.run().reason == "halt"
        assert halts == ["HLT", "HLT"]


def test_an_exit_that_is_skipped() -> None:
    with machine() as made:
        made.on_exit(HLT)(lambda exit_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            made.run()
        made.skip()
        del made.exit_handlers[HLT]
        result = made.run()
        assert (result.reason, result.exits) == ("halt", {"HLT": 1})


def test_a_handlers_own_type_error_isnt_its_answers() -> None:
    with machine(port_read(0x80), port_read(0x81)) as made:
        made.ports.on_read(0x80)(lambda offset: 0)  # type: ignore[arg-type,misc]
        made.ports.on_read(0x81)(lambda offset, size: [][0])
        with pytest.raises(TypeError, match="positional argument"):
            made.run()
        made.skip()
        with pytest.raises(IndexError):
            made.run()


@pytest.mark.parametrize("answer", [None, -1, 0x100, 1 << 64, "x", 1.5, b"a"])
@pytest.mark.parametrize("exit_", [port_read(0x80), port_read(0x80, 1, 2), memory_read(0x80, 1)])
def test_answers_that_are_none(answer: Any, exit_: StubExit) -> None:
    with machine(exit_) as made:
        replies = [answer, 0x11, 0x22]
        for space in (made.ports, made.mmio):
            space.on_read(0x80, name="bad")(lambda offset, size: replies.pop(0))
        with says(
            "read handler of 0x80-0x80 (bad): its answer must be an integer from 0 to 0xff", DeviceError
        ) as e:
            made.run()
        assert len(e.value.__notes__) == 1 and "1 byte read" in e.value.__notes__[0]
        made.run()
        assert answers(made)[0] == b"\x11\x22"[: exit_.count]


def test_answers_may_be_of_any_integer_kind() -> None:
    class Number:
        def __index__(self) -> int:
            return 7

    with machine(port_read(0x80), port_read(0x80, 1, 2)) as made:
        made.ports.on_read(0x80)(lambda offset, size: Number())  # type: ignore[arg-type,return-value]
        made.run()
        assert answers(made) == [b"\x07", b"\x07\x07"]


@pytest.mark.parametrize("answer", [b"", b"abc", b"abcde", 4, None, "abcd", [1, 2, 3, 4]])
def test_a_string_of_the_wrong_length(answer: Any) -> None:
    class Port:
        name = "port"

        def read(self, offset: int, size: int) -> int:
            return 0

        def read_string(self, offset: int, size: int, count: int) -> Any:
            return answer

    with machine(port_read(0x80, 2, 2)) as made:
        made.ports.attach(0x80, 2, Port())
        with says("read_string of 0x80-0x81 (port): it gave", DeviceError):
            made.run()
        made.skip()
        made.run()
        assert answers(made)[0] == b"\xff" * 4


# Signals: a handler of one that raises must not cost an exit, nor have one handled twice


@pytest.mark.parametrize("function", [loop.dispatch, loop._serve, loop._serve_in_turn])
def test_wherever_a_signal_is_looked_for_its_exception_is_caught(function: Callable[..., Any]) -> None:
    """A jump back that the compiler put outside of the try would lose the exit that has just come."""
    code = dis.Bytecode(function)
    jumps = [step.offset for step in code if "JUMP_BACKWARD" in step.opname]
    assert jumps
    assert all(any(entry.start <= at < entry.end for entry in code.exception_entries) for at in jumps)


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="not the main thread")
@pytest.mark.parametrize("kind", ["write", "read", "string", "whole", "native", "mixed"])
def test_no_exit_is_lost_or_done_twice_when_a_signal_handler_raises(kind: str, library: str) -> None:
    count = 8_000
    script = {
        "write": [port_write(0x80, b"x")],
        "read": [port_read(0x80)],
        "string": [port_write(0x80, b"abc", 1)],
        "whole": [port_write(0x80, b"abc", 1), port_read(0x80, 1, 3)],
        "native": [port_write(0x80, b"x")],
        "mixed": [port_write(0x80, b"x"), port_read(0x81), memory_read(0x80, 3), memory_write(0x80, b"x")],
    }[kind]
    seen = [0]

    class Counter:
        def read(self, offset: int, size: int) -> int:
            seen[0] += 1
            return 0

        def write(self, offset: int, value: int, size: int) -> None:
            seen[0] += 1

    class Whole(Counter):
        def read_string(self, offset: int, size: int, count: int) -> bytes:
            answer = bytes(size * count)
            seen[0] += count  # last, and nothing is called after it: nobody could come in between
            return answer

        def write_string(self, offset: int, data: bytes, size: int) -> None:
            seen[0] += len(data)

    def interrupt(number: int, frame: object) -> None:
        raise Trouble

    engine = StubEngine(script, repeat=count - 1)
    old = signal.signal(signal.SIGALRM, interrupt)
    interrupts = 0
    gc.collect()
    gc.disable()  # what a finalizer raises, nobody gets
    try:
        with Machine("4K", engine=engine) as made:
            if kind == "native":
                made.ports.attach(0x7F, 2, Counter(), rule=Native(f"{library}:passes_odd")).place = "c"
            else:
                made.ports.attach(0x80, 1, Whole() if kind == "whole" else Counter())
            made.ports.attach(0x81, 1, Counter())
            made.mmio.attach(0x80, 4, Counter())
            while True:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0002 + interrupts % 7 * 0.0001)
                    result = made.run()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    break
                except Trouble:
                    interrupts += 1
            assert result.reason == "halt"
            # A counter that was interrupted before it counted is asked again, so it must come out exactly.
            counts = [made.ports[0x80].count, made.ports[0x81].count, made.mmio[0x80].count]
            assert counts[0] == count * sum(
                exit_.count for exit_ in script if (exit_.reason, exit_.address) == (2, 0x80)
            )
            assert counts[1:] == ([count, 4 * count] if kind == "mixed" else [0, 0])
            assert seen[0] == sum(counts)
            assert interrupts > 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        gc.enable()


# Native handlers

SOURCE = """
#include <errno.h>
#include <kvmpy_handler.h>

const uint32_t kvmpy_handler_abi = ABI;

struct seen { uint64_t count, last[8]; };

int remember(void *context, struct kvmpy_handler_access *access)
{
	struct seen *seen = context;

	seen->count++;
	seen->last[0] = access->address;
	seen->last[1] = access->offset;
	seen->last[2] = access->value;
	seen->last[3] = access->size;
	seen->last[4] = access->is_write;
	seen->last[5] = access->vcpu;
	seen->last[6] = access->space;
	if (!access->is_write)
		access->value = 0x1122334455667788;
	return KVMPY_HANDLED;
}

int fails(void *context, struct kvmpy_handler_access *access)
{
	uint64_t *left = context;

	access->value = 9;
	if (!*left)
		return KVMPY_HANDLED;
	--*left;
	return -EIO;
}

int passes_odd(void *context, struct kvmpy_handler_access *access)
{
	access->value = 7;
	return access->value & access->offset & 1 ? KVMPY_PASS : KVMPY_HANDLED;
}

int passes_every_other(void *context, struct kvmpy_handler_access *access)
{
	return ++*(uint64_t *)context & 1 ? KVMPY_HANDLED : KVMPY_PASS;
}
"""


def compile_library(where: Path, source: str, name: str = "handlers.so") -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build a native handler with")
    path = where / name
    (where / "handlers.c").write_text(source)
    command = [compiler, "-shared", "-fPIC", "-w", "-I", str(ROOT / "native"), "-o", str(path)]
    subprocess.run([*command, str(where / "handlers.c")], check=True)
    return str(path)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = tmp_path_factory.mktemp("native")
    return compile_library(where, SOURCE.replace("ABI;", f"{lib.KVMPY_HANDLER_ABI};"))


def test_a_native_handler_sees_the_access(library: str) -> None:
    seen = ffi.new("uint64_t[9]")
    script = [
        port_write(0x82, b"\x05\x06"),
        port_read(0x81),
        memory_read(0x9008, 8),
        memory_write(0x9003, b"\x07"),
    ]
    expected = [
        [1, 0x82, 2, 0x605, 2, 1, 0, 0],
        [2, 0x81, 1, 0, 1, 0, 0, 0],
        [3, 0x9008, 8, 0, 8, 0, 0, 1],
        [4, 0x9003, 3, 7, 1, 1, 0, 1],
    ]
    with machine(*script) as made:
        made.ports.native(0x80, 4, f"{library}:remember", seen)
        made.mmio.native(0x9000, 16, f"{library}:remember", seen)
        for values in expected:
            assert made.run(max_exits=1).reason == "max-exits"
            assert list(seen)[:8] == values
        made.run()
        assert answers(made)[1:3] == [b"\x88", bytes.fromhex("8877665544332211")]


def test_a_native_handler_that_fails_is_asked_again(library: str) -> None:
    left = ffi.new("uint64_t *", 2)
    with machine(port_read(0x80), port_read(0x80)) as made:
        made.ports.native(0x80, 1, f"{library}:fails", left, name="broken")
        for _ in range(2):
            with says("native handler of 0x80-0x80 (broken): returned -5 (Input/output error)") as caught:
                made.run()
            assert caught.value.__notes__ == ["at 1 byte read, port 0x80 on vCPU 0"]
        assert made.run().reason == "halt"
        assert answers(made) == [b"\x09", b"\x09"]
        assert made.ports[0x80].count == 2


@pytest.mark.parametrize("exit_", [port_read(0x80, 2), port_read(0x80, 2, 3), memory_read(0x80, 2)])
def test_a_native_handler_that_fails_is_skipped(library: str, exit_: StubExit) -> None:
    left = ffi.new("uint64_t *", 1)
    with machine(exit_) as made:
        for space in (made.ports, made.mmio):
            space.native(0x80, 2, f"{library}:fails", left)
        with pytest.raises(BusError, match="Input/output error"):
            made.run()
        made.skip()
        assert made.run().reason == "halt"
        assert answers(made)[0] == b"\xff\xff" + b"\x09\x00" * (exit_.count - 1)


def test_a_failing_native_write_tells_the_value(library: str) -> None:
    with machine(port_write(0x80, b"\x34\x12")) as made:
        made.ports.native(0x80, 2, f"{library}:fails", ffi.new("uint64_t *", 1))
        with pytest.raises(BusError) as caught:
            made.run()
        assert "at 2 byte write of 0x1234, port 0x80 on vCPU 0" in caught.value.__notes__


def test_a_native_handler_passes_single_accesses_to_python(library: str) -> None:
    device = Device(failures=0)
    with machine(*[port_read(0x80 + n) for n in range(4)]) as made:
        rule = Native(f"{library}:passes_odd")
        made.ports.attach(0x80, 4, device, rule=rule).place = "c"
        made.run()
        assert device.calls == [("read", 1, 1), ("read", 3, 1)]
        assert answers(made) == [b"\x07", b"\x42", b"\x07", b"\x42"]


def test_of_a_string_only_what_was_passed_on_reaches_python(library: str) -> None:
    class Port:
        def __init__(self) -> None:
            self.seen = b""

        def write(self, offset: int, value: int, size: int) -> None:
            self.seen += bytes([value])

        def write_string(self, offset: int, data: bytes, size: int) -> None:
            raise AssertionError("the native handler passed on single bytes")

    with machine(port_write(0x80, b"abcdef", 1)) as made:
        port = Port()
        rule = Native(f"{library}:passes_every_other", ffi.new("uint64_t *"))
        made.ports.attach(0x80, 1, port, rule=rule).place = "c"
        made.run()
        assert port.seen == b"bdf"
        assert made.ports[0x80].count == 6


def test_a_table_that_changes_within_a_string(library: str) -> None:
    """The first word goes to a port of two bytes; then there are two of one byte, and the rest is divided."""
    with machine(port_write(0x80, b"abcdef", 2)) as made:
        made.log(64)
        seen: list[tuple[int, int]] = []

        def write(offset: int, value: int, size: int) -> None:
            seen.append((value, size))
            if size == 2:
                made.ports.detach(wide)
                made.ports.on_write(0x80)(write)

        rule = Native(f"{library}:passes_odd")
        wide = made.ports.attach(0x7F, 3, type("Wide", (), {"write": staticmethod(write)})(), rule=rule)
        wide.place = "c"
        result = made.run()
        assert seen == [(int.from_bytes(b"ab", "little"), 2), (ord("c"), 1), (ord("e"), 1)]
        assert (wide.count, made.ports[0x80].count, result.unowned) == (1, 2, 2)
        logged = [(r.address, r.size, r.value) for r in made.records() if r.space == 0]
        assert logged[0] == (0x80, 2, int.from_bytes(b"ab", "little"))
        assert logged[1:] == [(0x80 + n % 2, 1, byte) for n, byte in enumerate(b"cdef")]


def test_a_native_handler_that_passes_with_nobody_behind(library: str) -> None:
    with machine(port_read(0x81), port_write(0x81, b"x")) as made:
        made.ports.native(0x80, 2, f"{library}:passes_odd")
        assert made.run().reason == "halt"
        assert answers(made)[0] == b"\xff"


def test_a_native_handler_by_address_and_by_object(library: str) -> None:
    handle = lib.kvmpy_library_open(library.encode())
    address = int(ffi.cast("uintptr_t", lib.kvmpy_library_symbol(handle, b"remember")))
    cfunc = type("CFunc", (), {"address": address})()
    for function in (address, cfunc, ffi.cast("kvmpy_handler *", address)):
        seen = ffi.new("uint64_t[9]")
        with machine(port_write(0x80, b"\x05")) as made:
            made.ports.native(0x80, 1, function, int(ffi.cast("uintptr_t", seen)))
            made.run()
            assert (seen[0], seen[3]) == (1, 5)


def test_libraries_that_cant_be_used(tmp_path: Path, library: str) -> None:
    other = compile_library(tmp_path, SOURCE.replace("ABI;", "77;"), "other.so")
    none = compile_library(tmp_path, "int remember(void) { return 0; }", "none.so")
    text = tmp_path / "text.so"
    text.write_text("not a library")
    missing = tmp_path / "missing.so"
    for where, message in (
        (f"{missing}:f", f"native handler {missing}:f: {missing}: cannot open shared object file"),
        (f"{text}:f", f"native handler {text}:f: {text}: "),
        (f"{library}:nothing", f"native handler {library}:nothing: the library has no symbol 'nothing'"),
        (f"{other}:remember", f"native handler {other}:remember: built for ABI 77, this kvmpy has "),
        (
            f"{none}:remember",
            f"native handler {none}:remember: the library has no symbol 'kvmpy_handler_abi'",
        ),
        (library, f"native handler '{library}': say 'path/to/library.so:symbol'"),
        (":f", "native handler ':f': say 'path/to/library.so:symbol'"),
        ("x.so:", "native handler 'x.so:': say 'path/to/library.so:symbol'"),
    ):
        with machine() as made:
            with says(message):
                made.ports.native(0x80, 1, where)
            assert len(made.ports) == 0


def test_a_library_next_to_us(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(library).parent)
    assert Native("handlers.so:remember").kind == "native"


# Several vCPUs


def test_what_was_left_to_do_waits_for_the_next_run_if_this_one_is_over_already() -> None:
    """As for a vCPU whose thread begins when another vCPU has ended the run."""
    with machine(port_write(0x80, b"x")) as made:
        device = Device()
        made.ports.attach(0x80, 1, device)
        with pytest.raises(Trouble):
            made.run()
        made.end("stopped")
        loop.dispatch(made, made.cpus[0])
        made.run()
        assert device.calls == [("write", 0, ord("x"), 1)] * 2


def run_until(made: Machine, wanted: Callable[[], bool]) -> list[BaseException]:
    """Runs again after each exception, as long as there are any."""
    errors: list[BaseException] = []
    while not wanted():
        try:
            made.run()
        except Trouble as error:
            errors.append(error)
    return errors


def test_each_vcpu_has_its_own_trouble() -> None:
    engine = StubEngine([port_write(0x80, b"x")])
    with Machine("4K", 3, engine=engine, irqchip="kernel") as made:
        calls: list[str] = []

        @made.ports.on_write(0x80)
        def write(offset: int, value: int, size: int) -> None:
            calls.append(threading.current_thread().name)
            if calls.count(calls[-1]) == 1:
                raise Trouble(calls[-1])

        made.on_exit("HLT")(lambda exit_: made.halted(exit_.cpu))
        errors = run_until(made, lambda: made.ending is not None and made.ending.reason == "halt")
        assert sorted(calls) == [f"vCPU {n}" for n in (0, 0, 1, 1, 2, 2)]
        assert made.ports[0x80].count == 3
        notes = "\n".join(note for error in errors for note in error.__notes__)
        assert all(f"on vCPU {n}" in notes for n in range(3))


def test_handlers_of_several_vcpus_take_turns() -> None:
    engine = StubEngine([port_write(0x80, b"x")], repeat=300)
    with Machine("4K", 2, engine=engine) as made:
        for cpu in made.cpus:
            cpu.parked = False
        inside: list[int] = []

        @made.ports.on_write(0x80)
        def write(offset: int, value: int, size: int) -> None:
            inside.append(1)
            assert len(inside) == 1
            sum(range(50))
            inside.pop()

        assert made.run().reason == "halt"
        assert made.ports[0x80].count == 602


# Registers that begin in the middle of a guest's access: nothing outside them is touched


def test_c_never_reaches_beyond_its_registers() -> None:
    script = [
        port_write(0xFFFF, b"\xaa\xbb"),
        port_write(0xFFFF, b"\xaa\xbb\xcc\xdd", 2),
        port_read(0xFFFE, 4),
    ]
    memory = bytearray(b"\x11" * 64)
    with machine(*script) as made:
        rule = Registers(2, memory, readable=b"\xff\xff", writable=b"\xff\xff")
        made.ports.attach(0xFFFE, 2, rule)
        made.run()
        assert memory == b"\x11\xcc" + b"\x11" * 62
        assert answers(made)[2] == b"\x11\xcc\xff\xff"


def test_a_device_behind_a_rule_keeps_it_after_failing() -> None:
    with machine(port_write(0x80, b"x"), port_write(0x80, b"y")) as made:
        device = Device()
        range_ = made.ports.attach(0x80, 1, device, rule=Drop())
        with pytest.raises(Trouble):
            made.run()
        range_.place = "c"
        assert made.run().reason == "halt"
        # The access at which it failed is still the device's.
        assert device.calls == [("write", 0, ord("x"), 1)] * 2
        assert range_.count == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Native(-5), "native handler: give 'library.so:symbol', a cffi function pointer"),
        (lambda: Native(1 << 70), "native handler: give 'library.so:symbol', a cffi function pointer"),
        (lambda: Native(4096, "x"), "native handler: context 'x': it is an address or a cffi pointer"),
        (lambda: Latch(1 << 40), "latch of 1099511627776 bytes: 1 to 16777216 are possible"),
        (lambda: Latch(-1), "latch of -1 bytes"),
        (lambda: Latch(1, 300), "latch: fill 0x12c isn't a byte"),
    ],
)
def test_rules_that_cant_be(make: Callable[[], object], words: str) -> None:
    with says(words, BusError):
        make()


def test_what_is_no_rule_leaves_the_old_one() -> None:
    with machine(port_write(0x80, b"x")) as made:
        range_ = made.ports.drop(0x80)
        rule = range_.rule
        for wrong in ("drop", None):
            with says(f"0x80-0x80 (drop): {wrong!r} isn't a rule: take Drop()"):
                range_.rule = wrong  # type: ignore[assignment]
        assert range_.rule is rule
        assert made.run().reason == "halt"


def test_what_a_machine_hasnt_is_an_error_of_its_own() -> None:
    made = machine()
    with says("there is no vCPU 7: the machine has 1, from 0 on", UsageError):
        made.skip(7)
    for records in ("x", 1.5, None):
        with says(f"a ring of {records!r} records: 1 to", UsageError):
            made.log(records)  # type: ignore[arg-type]
    made.close()
    with says("rings are set up before the machine runs, and not after it is closed", UsageError):
        made.log(16)
