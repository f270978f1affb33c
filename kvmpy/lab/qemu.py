"""The same guest on QEMU's KVM accelerator, in turn with kvmpy: what a whole exit costs on either."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from time import perf_counter_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROGRAM = "qemu-system-x86_64"
FEW, MANY = 1_000, 41_000
PORT = 0x80  # QEMU has an empty port there, in user space: its cheapest device


def boot_sector(writes: int) -> bytes:
    """Writes that often to port 0x80, then 0 to QEMU's isa-debug-exit at 0x501."""
    code = (
        b"\x66\xb9" + writes.to_bytes(4, "little")  # mov $writes, %ecx
        + b"\xe6" + bytes([PORT])  # 1: out %al, $0x80
        + b"\x66\x49\x75\xfa"  # dec %ecx; jnz 1b
        + b"\xba\x01\x05\xb0\x00\xee\xf4"  # mov $0x501, %dx; mov $0, %al; out %al, %dx; hlt
    )  # fmt: skip
    return code.ljust(510, b"\0") + b"\x55\xaa"


def _qemu(writes: int) -> int:
    """ns of a whole QEMU run."""
    with tempfile.NamedTemporaryFile(suffix=".img") as image:
        image.write(boot_sector(writes))
        image.flush()
        command = [
            PROGRAM, "-accel", "kvm", "-m", "16M", "-display", "none", "-nodefaults", "-no-reboot",
            "-drive", f"file={image.name},format=raw,if=ide", "-device", "isa-debug-exit,iobase=0x501,iosize=1",
        ]  # fmt: skip
        began = perf_counter_ns()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
        took = perf_counter_ns() - began
    if done.returncode != 1:  # 2 * 0 + 1
        raise RuntimeError(
            f"{PROGRAM} gave {done.returncode}: {done.stderr.decode(errors='replace').strip()}"
        )
    return took


def _kvmpy(writes: int, place: str) -> int:
    """ns of a whole machine: made, run, closed."""
    from kvmpy.lab.dispatch import _Device
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.rules import Drop

    began = perf_counter_ns()
    with Machine("16M", engine="kvm", irqchip="kernel") as machine:
        machine.ports.attach(PORT, 1, _Device() if place == "python" else Drop())
        machine.ports.on_write(0x501)(lambda offset, value, size: machine.stop(value, "exit"))
        machine.load(boot_sector(writes), format="bootsector")
        machine.run(timeout=60)
    return perf_counter_ns() - began


def compare(rounds: int = 7) -> dict[str, Any] | str:
    """ns per exit of QEMU and kvmpy, round by round; or why not."""
    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM} isn't installed (package qemu-system-x86)"
    subjects = {
        "qemu": lambda n: _qemu(n),
        "c": lambda n: _kvmpy(n, "c"),
        "python": lambda n: _kvmpy(n, "python"),
    }
    costs: dict[str, list[float]] = {name: [] for name in subjects}
    try:
        for _ in range(rounds):
            for name, run in subjects.items():
                costs[name].append((run(MANY) - run(FEW)) / (MANY - FEW))
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return str(error)
    ratios = {
        name: sorted(a / b for a, b in zip(costs[name], costs["qemu"], strict=True))
        for name in ("c", "python")
    }
    middle = rounds // 2
    return {
        "ns": {name: sorted(values)[middle] for name, values in costs.items()},
        "ratio": {name: values[middle] for name, values in ratios.items()},
        "spread": {name: (values[0], values[-1]) for name, values in ratios.items()},
    }
