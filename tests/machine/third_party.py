"""Guests nobody here wrote: files of Debian packages, fetched once and unpacked into a cache, never installed."""

from __future__ import annotations

import fcntl
import gzip
import os
import subprocess
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("KVMPY_CACHE", Path.home() / ".cache" / "kvmpy")) / "packages"


def package(name: str) -> Path:
    """Where the package's files are; skips where they can't be had (and fails where KVMPY_NEEDS_PACKAGES is set)."""
    folder = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may run in several processes
        if not (folder / "whole").exists():
            _fetch(name, folder)
    return folder


def _fetch(name: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    try:
        subprocess.run(
            ["apt-get", "download", "-qq", name], cwd=folder, check=True, capture_output=True, timeout=120
        )
        for deb in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, folder], check=True, capture_output=True, timeout=120)
            deb.unlink()
    except (OSError, subprocess.SubprocessError) as error:
        why = f"Debian's package {name} can't be fetched: {error}"
        if os.environ.get("KVMPY_NEEDS_PACKAGES"):
            pytest.fail(why)
        pytest.skip(why)
    (folder / "whole").touch()


def seabios(variant: str = "bios.bin") -> Path:
    """SeaBIOS as Debian builds it; ``bios.bin`` is the one that fits the top 128 KiB."""
    return package("seabios") / "usr/share/seabios" / variant


def invaders() -> Path:
    """grub-invaders: a game as a Multiboot kernel, 32 bits, on the text screen."""
    return package("grub-invaders") / "boot/invaders.exec"


def xen(into: Path) -> Path:
    """The Xen hypervisor: a Multiboot kernel that goes to long mode and logs to a serial port."""
    found = next((package("xen-hypervisor-4.17-amd64") / "boot").glob("xen-*.gz"))
    kernel = into / "xen"
    kernel.write_bytes(gzip.decompress(found.read_bytes()))
    return kernel
