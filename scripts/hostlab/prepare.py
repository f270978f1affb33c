"""What an emulated host starts from, made once and kept: kernel, first file system, Python."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import cache, cpio, disk, elf, kernel, modules, packages
from .errors import HostsError

_HERE = Path(__file__).parent
_FORMAT = "1"  # of what is in the cache: raise it when this file makes something else from the same input

Say = Callable[[str], None]


class Kernel(NamedTuple):
    """A prepared kernel: its version, the ELF file, and the archive with modules and ``init``."""

    version: str
    vmlinux: Path
    initramfs: Path


def prepared_kernels() -> list[Path]:
    """Directories of the kernels in the cache, the one used last at the end."""
    found = [path.parent for path in cache.directory().glob("kernel-*/vmlinux")]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def prepare_kernel(fresh: bool, say: Say) -> Kernel:
    """The kernel in the cache, or if there is none (or ``fresh``) the one that apt has now.

    HostsError if there is none and apt can't be reached.
    """
    known = prepared_kernels()
    if known and not fresh:
        place = known[-1]
    else:
        package = packages.kernel_package()
        version = packages.candidate(package)
        place = cache.directory() / f"kernel-{version}"
        if not (place / "vmlinux").exists():
            _make_kernel(package, version, place, say)
    return Kernel(place.name.removeprefix("kernel-"), place / "vmlinux", _initramfs(place, say))


def _make_kernel(package: str, version: str, place: Path, say: Say) -> None:
    """Fetch and unpack; what is kept is the uncompressed kernel and the modules that are used."""
    with tempfile.TemporaryDirectory(dir=cache.directory(), prefix="unpack-") as name:
        root = Path(name)
        say(f"fetching {package} {version}")
        packages.unpack(packages.fetch(package, version, root), root / "tree")
        images = sorted((root / "tree" / "boot").glob("vmlinuz-*"))
        if not images:
            raise HostsError(f"package {package} {version} has no boot/vmlinuz-*: is it a kernel package?")
        say("unpacking the kernel")
        vmlinux = kernel.unpack(images[-1].read_bytes())
        kernel.pvh_entry(vmlinux)  # better now than at the first start
        place.mkdir(exist_ok=True)
        _keep_modules(modules.Modules(root / "tree"), place / "modules")
        cache.write(place / "vmlinux", vmlinux)  # last: it says that all is there


def _keep_modules(source: modules.Modules, into: Path) -> None:
    into.mkdir(exist_ok=True)
    for purpose in modules.PURPOSES:
        order = source.order(purpose)
        cache.write(into / f"{purpose}.order", "".join(f"{name}\n" for name in order).encode())
        for name in order:
            cache.write(into / f"{name}.ko", source.read(name))


def _initramfs(place: Path, say: Say) -> Path:
    """The archive with busybox, the modules and ``init``; made anew when one of them is another."""
    busybox = shutil.which("busybox")
    if not busybox:
        raise HostsError("missing programs; as root: apt-get install busybox-static")
    program, init = Path(busybox).read_bytes(), (_HERE / "init").read_bytes()
    if any(segment.type == elf.PT_INTERP for segment in elf.segments(program)):
        raise HostsError(f"{busybox} needs shared libraries: as root: apt-get install busybox-static")
    path = place / f"initramfs-{cache.key(_FORMAT, program, init)}.cpio"
    if not path.exists():
        say("making the first file system")
        archive = cpio.Archive()
        archive.file("/init", init, 0o755)
        archive.file("/bin/busybox", program, 0o755)
        archive.link("/bin/sh", "busybox")
        archive.tree(place / "modules", "/modules")
        cache.write(path, archive.finish())
    return path


def prepare_python(python: Path, project: Path, say: Say) -> Path:
    """Archive of a Python with what kvmpy needs, for hosts that can't see this machine's files.

    ``python`` is the interpreter of the environment that kvmpy was built for. HostsError if it can't be
    staged.
    """
    stage = _HERE / "stage_python.py"
    identity = _ask(python, stage, "identity", str(project))
    path = cache.directory() / f"python-{cache.key(_FORMAT, identity)}.cpio"
    if not path.exists():
        say("packing Python")
        with tempfile.TemporaryDirectory(dir=cache.directory(), prefix="python-") as name:
            _ask(python, stage, "stage", str(project), name)
            archive = cpio.Archive()
            archive.tree(Path(name))
            cache.write(path, archive.finish())
    return path


def prepare_boot_sector() -> bytes:
    """The boot sector of the Bochs hosts. HostsError if there is no assembler."""
    path = cache.directory() / f"boot-{cache.key(_FORMAT, (_HERE / 'boot_sector.s').read_bytes())}.bin"
    if not path.exists():
        cache.write(path, disk.assemble())
    return path.read_bytes()


def _ask(python: Path, script: Path, *words: str) -> str:
    done = subprocess.run(
        [str(python), "-I", str(script), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise HostsError(f"{script.name} under {python} failed: {last[0]}")
    return done.stdout
