"""The same guest on QEMU and on kvmpy, in turn: what a whole exit costs on either, how fast either computes.

The guest takes the time itself, with the TSC around batches of exits, so that neither program's start-up counts. The
batches are short, and of a run the tenth that was quickest says what an exit costs: whatever else runs on the machine
disturbs the others.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROGRAM = "qemu-system-x86_64"
BATCHES, WRITES = 201, 100
TIMED, DATA, END = 0x80, 0xE9, 0x501  # QEMU has an empty port at 0x80, in user space: its cheapest device


def boot_sector(batches: int, writes: int) -> bytes:
    """Real mode: ``batches`` times the TSC cycles of ``writes`` port writes, as four bytes each to port 0xe9."""
    code = (
        b"\xfa\x31\xc0\x8e\xd8"  # cli; xor %ax, %ax; mov %ax, %ds
        + b"\xbd" + batches.to_bytes(2, "little")  # mov $batches, %bp
        + b"\x66\xb9" + writes.to_bytes(4, "little")  # 1: mov $writes, %ecx
        + b"\x0f\x31\x66\x89\xc3"  # rdtsc; mov %eax, %ebx
        + b"\xe6\x80\x66\x49\x75\xfa"  # 2: out %al, $0x80; dec %ecx; jnz 2b
        + b"\x0f\x31\x66\x29\xd8"  # rdtsc; sub %ebx, %eax
        + b"\xb9\x04\x00"  # mov $4, %cx
        + b"\xe6\xe9\x66\xc1\xe8\x08\xe2\xf8"  # 3: out %al, $0xe9; shr $8, %eax; loop 3b
        + b"\x4d\x75\xdc"  # dec %bp; jnz 1b
        + b"\xba\x01\x05\x30\xc0\xee\xf4"  # mov $0x501, %dx; xor %al, %al; out %al, %dx; hlt
    )  # fmt: skip
    return code.ljust(510, b"\0") + b"\x55\xaa"


def _cycles(data: bytes) -> float:
    """The quickest tenth of the batches: its slowest one, per exit."""
    if len(data) != 4 * BATCHES:
        raise RuntimeError(f"the guest sent {len(data)} bytes instead of {4 * BATCHES}")
    batches = sorted(int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4))
    return batches[BATCHES // 10] / WRITES


def run_on_qemu(sector: bytes, accelerator: str) -> bytes:
    """What a boot sector writes to port 0xe9 on QEMU, until it writes 0 to END; before that, what the BIOS has to say.

    RuntimeError where it ends otherwise; OSError, subprocess.TimeoutExpired.
    """
    with tempfile.TemporaryDirectory() as folder:
        image, output = Path(folder, "guest.img"), Path(folder, "output")
        image.write_bytes(sector)
        command = [
            PROGRAM, "-accel", accelerator, "-m", "16M", "-display", "none", "-nodefaults", "-no-reboot",
            "-drive", f"file={image},format=raw,if=ide", "-debugcon", f"file:{output}",
            "-device", f"isa-debug-exit,iobase={END},iosize=1",
        ]  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
        if done.returncode != 1:  # 2 * 0 + 1
            why = done.stderr.decode(errors="replace").strip()
            raise RuntimeError(f"{PROGRAM} gave {done.returncode}: {why}")
        return output.read_bytes()


def run_on_kvmpy(sector: bytes, engine: str, owner: object = None) -> bytes:
    """The same on kvmpy; ``owner`` has port TIMED."""
    from kvmpy.machine.machine import Machine

    output = bytearray()
    irqchip = "kernel" if engine == "kvm" else "none"
    with Machine("16M", engine=engine, irqchip=irqchip, rescue=False) as machine:
        if owner is not None:
            machine.ports[TIMED] = owner
        machine.ports.on_write(DATA)(lambda offset, value, size: output.append(value))
        machine.ports.on_write(END)(lambda offset, value, size: machine.stop(value, "exit"))
        machine.load(sector, format="bootsector")
        result = machine.run(timeout=60)
    if result.reason != "exit":
        raise RuntimeError(f"the guest ended with {result.reason!r} instead of its exit port")
    return bytes(output)


def _qemu() -> float:
    return _cycles(run_on_qemu(boot_sector(BATCHES, WRITES), "kvm")[-4 * BATCHES :])


def _kvmpy(owner: object) -> float:
    return _cycles(run_on_kvmpy(boot_sector(BATCHES, WRITES), "kvm", owner))


class _Device:
    def write(self, offset: int, value: int, size: int) -> None:
        pass


def compare(rounds: int = 9) -> dict[str, Any] | str:
    """TSC cycles per exit of QEMU and of kvmpy's places, and their ratios round by round; or why not."""
    from kvmpy.machine.rules import Drop

    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM} isn't installed (package qemu-system-x86)"
    costs: dict[str, list[float]] = {"qemu": [], "c": [], "python": []}
    try:
        for _ in range(rounds):
            costs["qemu"].append(_qemu())
            costs["c"].append(_kvmpy(Drop()))
            costs["python"].append(_kvmpy(_Device()))
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    ratios = {
        name: sorted(a / b for a, b in zip(costs[name], costs["qemu"], strict=True))
        for name in ("c", "python")
    }
    return {
        "cycles": {name: sorted(values)[rounds // 2] for name, values in costs.items()},
        "ratio": {name: values[rounds // 2] for name, values in ratios.items()},
        "spread": {name: (values[0], values[-1]) for name, values in ratios.items()},
    }
