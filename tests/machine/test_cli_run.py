"""kvmpy run as a program: what it prints, its exit status, the files it leaves, and one line for all that is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import need

from kvmpy.boot import bundled
from kvmpy.machine.sizes import host_memory

HLT = b"\xf4"


@pytest.fixture(params=["kvm", "translate"])
def engine(request: pytest.FixtureRequest) -> str:
    return need(request.param)


@pytest.fixture
def any_engine() -> None:
    need("auto")


def one_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """The only thing said on stderr, without what marks it as kvmpy's."""
    text = result.stderr.decode()
    assert text.startswith("kvmpy: ") and text.endswith("\n") and text.count("\n") == 1, text
    return text.removeprefix("kvmpy: ").rstrip("\n")


# Ends


@pytest.mark.parametrize(
    ("image", "status", "output"),
    [
        ("long-hello", 0, b"Hello from long mode\n"),
        ("smp-hello", 0, b"CPU 0 started the machine\nCPU 1 was started by INIT and SIPI\n"),
    ],
)
def test_guest_runs(command: Any, engine: str, image: str, status: int, output: bytes) -> None:
    need(engine, vcpus=2 if image == "smp-hello" else 1)
    result = command("run", image, "--engine", engine)
    assert (result.returncode, result.stdout, result.stderr) == (status, output, b"")


def test_piped_input_reaches_the_guest(command: Any, engine: str) -> None:
    result = command("run", "real-echo", "--engine", engine, input=b"piped\n")
    assert result.stdout == b"Type a line: piped\n5 bytes came by interrupt\n"
    assert result.returncode == 0


def exit_guest(status: int) -> bytes:
    """Real-mode code that writes a status to the 32-bit exit port."""
    return b"\x66\xb8" + struct.pack("<I", status) + b"\x66\xe7\xf4" + HLT


@pytest.mark.parametrize(
    ("given", "option", "status"),
    [(0, [], 0), (7, [], 7), (119, [], 119), (120, [], 119), (1 << 31, [], 119),
     (0, ["--qemu-exit"], 1), (3, ["--qemu-exit"], 7)],
)  # fmt: skip
def test_the_guest_chooses_the_status(
    command: Any, engine: str, tmp_path: Path, given: int, option: list[str], status: int
) -> None:
    (tmp_path / "exit.bin").write_bytes(exit_guest(given))
    result = command(
        "run", str(tmp_path / "exit.bin"), "--format", "flat", "--mode", "real", "--engine", engine, *option
    )
    assert result.returncode == status
    if given > 119:
        assert one_line(result) == f"the guest's status {given} is given as 119"
    else:
        assert result.stderr == b""


def test_timeout(command: Any, engine: str) -> None:
    result = command("run", "spin", "--timeout", "0.25", "--engine", engine)
    assert result.returncode == 124
    assert one_line(result) == "the guest was stopped after 0.25 s"


def test_max_exits(command: Any, engine: str) -> None:
    result = command("run", "exit-storm", "--max-exits", "100", "--engine", engine)
    assert result.returncode == 124
    assert one_line(result) == "the guest was stopped after 100 exits"


def test_crash_report(command: Any, engine: str) -> None:
    result = command("run", "crash", "--engine", engine)
    report = result.stderr.decode()
    assert result.returncode == 120
    assert result.stdout == b"About to crash\n"
    assert report.startswith("kvmpy: vCPU 0 can't go on: ")
    for part in ("rip 0000000000100017", "64-bit code at 0x100017", "0f 0b", "last exits:", "0x0a (serial)"):
        assert part in report, part


def test_strict_names_the_access(command: Any, engine: str, tmp_path: Path) -> None:
    (tmp_path / "stray.bin").write_bytes(b"\xba\x34\x12\xec" + HLT)  # mov dx, 0x1234; in al, dx
    arguments = ["run", str(tmp_path / "stray.bin"), "--format", "flat", "--mode", "real", "--engine", engine]
    assert command(*arguments).returncode == 0
    result = command(*arguments, "--strict")
    assert result.returncode == 120
    assert b"1 byte read, port 0x1234, at rip 0x" in result.stderr.splitlines()[0]


# What is left behind


def test_report(command: Any, engine: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    result = command("run", "exit-storm", "--engine", engine, "--report", str(path))
    assert (result.returncode, result.stderr) == (0, b"")
    report = json.loads(path.read_text())
    assert report["schema"] == 1
    assert (report["image"], report["format"], report["mode"]) == ("exit-storm", "flat", "long")
    assert (report["engine"], report["result"], report["guest_status"]) == (engine, "halt", 0)
    assert report["exits"]["IO"] >= 10_000
    assert report["options"]["report"] == str(path)
    assert report["host"]["kernel"] == os.uname().release
    assert report["peak_memory"] > 1 << 20
    assert report["wall_seconds"] > 0 and report["cpu_seconds"] > 0
    assert os.listdir(tmp_path) == ["report.json"]


def test_report_of_a_crash(command: Any, engine: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert command("run", "crash", "--engine", engine, "--report", str(path)).returncode == 120
    crash = json.loads(path.read_text())["crash"]
    assert crash["code_at"] == crash["registers"]["rip"] == 0x100017
    assert crash["code"].startswith("0f0b")


def test_trace_has_every_exit(command: Any, engine: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    result = command("run", "long-hello", "--engine", engine, "--trace", str(path))
    assert (result.returncode, result.stderr) == (0, b"")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    written = bytes(
        line["value"] for line in lines if line.get("address") == 0x3F8 and line["direction"] == "write"
    )
    assert written == b"Hello from long mode\n"
    assert lines[-1]["exit"] == "HLT"
    assert [line["tsc"] for line in lines] == sorted(line["tsc"] for line in lines)


def test_trace_longer_than_the_ring(command: Any, engine: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    assert command("run", "exit-storm", "--engine", engine, "--trace", str(path)).returncode == 0
    assert len(path.read_text().splitlines()) >= 10_000


def test_stats(command: Any, engine: str) -> None:
    result = command("run", "long-hello", "--engine", engine, "--stats")
    rows = [line.split() for line in result.stderr.decode().splitlines()]
    assert ["42", "IO"] in rows
    assert ["42", "serial", "0x3f8-0x3ff", "python"] in rows
    assert ["1", "HLT"] in rows


def test_serial_to_a_file(command: Any, engine: str, tmp_path: Path) -> None:
    path = tmp_path / "serial"
    result = command("run", "long-hello", "--engine", engine, "--serial", f"file:{path}")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert path.read_bytes() == b"Hello from long mode\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("cpus", ["1", "3"])
def test_a_signal_stops_the_guest_and_the_report_is_whole(
    command: Any, engine: str, tmp_path: Path, number: signal.Signals, cpus: str
) -> None:
    need(engine, vcpus=int(cpus))
    report, trace = tmp_path / "report", tmp_path / "trace"
    with command.start(
        "run", "real-echo", "--engine", engine, "--cpus", cpus, "--report", str(report), "--trace", str(trace),
        stdin=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.read(13) == b"Type a line: "
        process.send_signal(number)
        assert process.wait() == 128 + number
        assert process.stderr.read() == b""
    assert json.loads(report.read_text())["result"] == "stopped"
    assert [json.loads(line) for line in trace.read_text().splitlines()]
    assert sorted(os.listdir(tmp_path)) == ["report", "trace"]


def test_nohup_is_heeded(command: Any, engine: str) -> None:
    script = 'trap "" HUP; exec "$@"'
    with subprocess.Popen(
        ["sh", "-c", script, "sh", *command.program, "run", "real-echo", "--engine", engine],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.read(13) == b"Type a line: "
        process.send_signal(signal.SIGHUP)
        process.stdin.write(b"still here\n")
        process.stdin.flush()
        assert process.wait() == 0


# What is wrong with an image


def elf(machine: int = 62, entry: int = 0x100000, segments: list[tuple[int, bytes]] | None = None) -> bytes:
    """An ELF64 executable with the given (address, contents)."""
    segments = segments if segments is not None else [(0x100000, HLT * 16)]
    table, body = b"", b""
    for address, data in segments:
        offset = 64 + 56 * len(segments) + len(body)
        table += struct.pack("<IIQQQQQQ", 1, 7, offset, address, address, len(data), len(data), 1)
        body += data
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    return header + table + body


MULTIBOOT = struct.pack("<III", 0x1BADB002, 0, 0x1234) + bytes(64)
BAD_IMAGES = {
    "empty": (b"", "the image is empty (0 bytes)"),
    "truncated": (elf()[:-8], "truncated: it ends at byte 136, the file has 128 bytes"),
    "truncated header": (elf()[:40], "truncated ELF file: 40 bytes"),
    "larger than memory": (HLT * (3 << 20), "lies outside memory (RAM: 0x0-0x1fffff)"),
    "for another machine": (elf(machine=183), "ELF file for another machine (AARCH64)"),
    "overlapping": (elf(segments=[(0x100000, HLT * 64), (0x100010, HLT * 64)]), "0x100010-0x10004f overlaps"),
    "outside memory": (elf(entry=1 << 30, segments=[(1 << 30, HLT * 64)]), "0x40000000-0x4000003f lies"),
    "entry outside": (elf(entry=0x200000), "the ELF entry point 0x200000 lies in none of its segments"),
    "bad checksum": (MULTIBOOT, "bad checksum: 0x1234 instead of 0xe4524ffe"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_image(command: Any, any_engine: None, tmp_path: Path, name: str) -> None:
    data, words = BAD_IMAGES[name]
    path = tmp_path / "image"
    path.write_bytes(data)
    result = command("run", str(path), "--memory", "2M", "--report", str(tmp_path / "report"))
    assert result.returncode == 2
    assert words in one_line(result)
    assert os.listdir(tmp_path) == ["image"]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("./nothing-here", "./nothing-here: the image can't be read: No such file or directory"),
        ("long-helo", "there is no file 'long-helo', and no bundled guest is called 'long-helo': did you mean"
         " 'long-hello'?"),
        ("", "no bundled guest is called ''"),
        ("/", "/: an image must be a plain file, this is a directory"),
        ("/dev/zero", "an image must be a plain file, this is a device"),
    ],
)  # fmt: skip
def test_no_image(command: Any, any_engine: None, image: str, words: str) -> None:
    result = command("run", image)
    assert result.returncode == 2
    assert words in one_line(result)


def test_a_directory_doesnt_hide_a_guest(command: Any, any_engine: None, tmp_path: Path) -> None:
    (tmp_path / "long-hello").mkdir()
    assert command("run", "long-hello", cwd=tmp_path).stdout == b"Hello from long mode\n"


# What is wrong with options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "0"], "memory: 0 is too small; the least is one page of 4096 bytes"),
        (["--memory", "-4096"], "memory: -4096 is too small"),
        (["--memory", "5000"], "memory: 5000 is not a multiple of the page size 4096"),
        (["--memory", "64"], "64M would be megabytes"),
        (["--memory", "lots"], "memory: 'lots' is not a size"),
        (["--memory", str((host_memory() >> 12 << 12) + 4096)], "this host has; ask for less"),
        (["--cpus", "0"], "0 vCPUs: the "),
        (["--cpus", "5000"], "5000 vCPUs: the "),
        (["--cpus", "two"], "'two' is not a valid integer"),
        (["--timeout", "0"], "timeout of 0.0 seconds: it must be more than 0"),
        (["--timeout", "nan"], "timeout of nan seconds"),
        (["--max-exits", "0"], "max_exits of 0: it must be at least 1"),
        (["--engine", "qemu"], "'qemu' is not one of 'auto', 'kvm', 'translate'"),
        (["--format", "elff"], "image format 'elff' is unknown (did you mean elf?)"),
        (["--format", "elf"], "long-hello: "),
        (["--mode", "virtual"], "'virtual' is not one of 'real', 'protected', 'long'"),
        (["--entry", "main"], "'main' isn't an address"),
        (["--entry", "0x100000000000"], "entry 0x100000000000 lies outside memory (RAM: 0x0-0x3ffffff)"),
        (["--serial", "com1"], "--serial 'com1': one of stdio, none, file:PATH, pty"),
        (["--serial", "file:/nowhere/at/all"], "--serial file:/nowhere/at/all: No such file or directory"),
        (["--report", "/nowhere/at/all"], "--report /nowhere/at/all: it can't be written: No such file"),
        (["--trace", "/nowhere/at/all"], "--trace /nowhere/at/all: it can't be written: No such file"),
        (["--report", ""], "--report: the file's name is empty"),
        (["--report", "same", "--trace", "./same"], "--report and --trace are the same file"),
        (["--initrd", "nowhere"], "--initrd nowhere: the image can't be read: No such file"),
        (["--module", "nowhere quiet"], "--module nowhere: the image can't be read: No such file"),
        (["--frobnicate"], "--frobnicate"),
        (["second"], "unexpected extra argument (second)"),
    ],
)  # fmt: skip
def test_bad_option(command: Any, any_engine: None, tmp_path: Path, options: list[str], words: str) -> None:
    result = command("run", "long-hello", *options, cwd=tmp_path)
    assert result.returncode == 2
    assert words in one_line(result)
    assert result.stdout == b""
    assert os.listdir(tmp_path) == []


def test_unknown_command(command: Any) -> None:
    result = command("rum")
    assert result.returncode == 2
    assert one_line(result) == "no such command 'rum': did you mean 'run'?"


def test_no_command_is_help(command: Any) -> None:
    result = command()
    assert result.returncode in (0, 2)  # click before 8.2 thinks it is no error
    assert (result.stdout + result.stderr).startswith(b"Usage: kvmpy ")


# What is wrong with the host


def test_stdin_closed(command: Any, engine: str) -> None:
    result = command.shell('exec "$@" <&-', "run", "long-hello", "--engine", engine)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"Hello from long mode\n", b"")


def test_stdin_at_its_end_waits_for_the_guest(command: Any, engine: str) -> None:
    result = command("run", "real-echo", "--engine", engine, "--timeout", "0.5")
    assert result.returncode == 124


@pytest.mark.parametrize(
    "arguments", [("run", "long-hello"), ("images",), ("info",), ("--version",), ("--help",)]
)
@pytest.mark.parametrize(
    ("where", "words"),
    [(">&-", "stdout: Bad file descriptor"), (">/dev/full", "stdout: No space left on device")],
)
def test_stdout_cant_be_written(
    command: Any, any_engine: None, arguments: tuple[str, ...], where: str, words: str
) -> None:
    result = command.shell(f'exec "$@" {where}', *arguments)
    assert result.returncode == 1
    assert one_line(result) == words


@pytest.mark.parametrize("arguments", [("run", "smp-hello"), ("images",), ("info",), ("info", "--json")])
def test_stdout_is_a_closed_pipe(command: Any, any_engine: None, arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = command(*arguments, stdout=writer)
    os.close(writer)
    assert result.returncode == 1
    assert one_line(result) == "stdout was closed before all output was written"


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "<&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [(("crash", "--stats"), 120), (("long-hello", "--stats"), 0), (("./nothing",), 2)],
)
def test_stderr_cant_be_written(
    command: Any, any_engine: None, where: str, arguments: tuple[str, ...], status: int
) -> None:
    result = command.shell(f'exec "$@" {where}', "run", *arguments)
    assert result.returncode == status


def test_disk_full_while_writing_the_report(command: Any, any_engine: None) -> None:
    result = command("run", "long-hello", "--report", "/dev/full")
    assert result.returncode == 1
    assert one_line(result) == "/dev/full: No space left on device"
    assert result.stdout == b"Hello from long mode\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system of 16 KiB can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("option", ["--report", "--trace"])
def test_disk_full_leaves_the_old_file(command: Any, any_engine: None, small_disk: Path, option: str) -> None:
    target = small_disk / "out"
    target.write_text("old")
    (small_disk / "filling").write_bytes(bytes(12 << 10))
    result = command("run", "exit-storm", option, str(target))
    assert result.returncode == 1
    assert one_line(result) == f"{target}: No space left on device"
    assert target.read_text() == "old"
    assert sorted(os.listdir(small_disk)) == ["filling", "out"]


def test_no_permission(command: Any, tmp_path: Path) -> None:
    """As a user who may not open /dev/kvm: status 3, the remedy, or the other engine with a remark."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("another user can only be tried by root, with setpriv")
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*other, sys.executable, "-c", "import kvmpy.cli"], capture_output=True).returncode:
        pytest.skip(f"other users can't run {sys.executable}")
    if subprocess.run([*other, "test", "-w", "/dev/kvm"]).returncode == 0:
        pytest.skip("everybody may open /dev/kvm here")
    refused = subprocess.run(
        [*other, *command.program, "run", "long-hello", "--engine", "kvm"], capture_output=True
    )
    assert refused.returncode == 3
    assert "/dev/kvm can't be opened: permission denied" in one_line(refused)
    info = subprocess.run([*other, *command.program, "info", "--json"], capture_output=True)
    assert info.returncode == 0
    assert json.loads(info.stdout)["permissions"]["kvm_access"]["value"] is False


def test_bundled_names_are_listed(command: Any) -> None:
    result = command("images")
    assert [line.split()[0].decode() for line in result.stdout.splitlines()] == [
        guest.name for guest in bundled.names()
    ]
    listed = json.loads(command("images", "--json").stdout)["images"]
    assert [guest["name"] for guest in listed] == [guest.name for guest in bundled.names()]
