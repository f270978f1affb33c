"""The distribution's kernel: found and fetched with apt, unpacked into the cache, never installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import HostsError

_META = "linux-image-amd64"
_UPDATE = "as root: apt-get update"


def missing_tools(tools: Mapping[str, str]) -> list[str]:
    """Packages to install so that all of ``tools`` (program: package) are there."""
    return sorted({package for program, package in tools.items() if not shutil.which(program)})


def require(tools: Mapping[str, str]) -> None:
    """HostsError that says what to install, if a program isn't there."""
    missing = missing_tools(tools)
    if missing:
        raise HostsError(f"missing programs; as root: apt-get install {' '.join(missing)}")


def kernel_package() -> str:
    """Name of the package with the distribution's present kernel. HostsError if apt doesn't know."""
    for line in _run("apt-cache", "depends", _META).splitlines():
        relation, _, name = line.strip().partition(": ")
        if relation == "Depends" and name.startswith("linux-image-"):
            return name
    raise HostsError(f"apt knows no kernel ({_META}): {_UPDATE}")


def candidate(package: str) -> str:
    """Version of a package that apt would fetch. HostsError if there is none."""
    for line in _run("apt-cache", "policy", package).splitlines():
        name, _, version = line.strip().partition(": ")
        if name == "Candidate" and version != "(none)":
            return version
    raise HostsError(f"apt has no version of {package}: {_UPDATE}")


def fetch(package: str, version: str, into: Path) -> Path:
    """Download a package with apt; works as any user. HostsError if it can't be had."""
    # apt runs downloads as a user of its own that can't write here, and complains; as root it needs not
    options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    into.mkdir(parents=True, exist_ok=True)
    _run("apt-get", *options, "-q", "download", f"{package}={version}", where=into)
    found = sorted(into.glob(f"{package}_*.deb"))
    if not found:
        raise HostsError(f"apt fetched {package} {version}, but no {package}_*.deb is in {into}")
    return found[-1]


def unpack(deb: Path, into: Path) -> None:
    """The files of a package below ``into``. HostsError if it is damaged."""
    _run("dpkg-deb", "-x", str(deb), str(into))


def _run(*command: str, where: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=where, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise HostsError(
            f"there is no {command[0]}: the kernel comes from a Debian or Ubuntu archive"
        ) from None
    if done.returncode:
        raise HostsError(f"{_words(command)} failed: {_last_line(done.stderr) or done.returncode}; {_UPDATE}")
    return done.stdout


def _words(command: Sequence[str]) -> str:
    return " ".join(word for word in command if not word.startswith(("-", "APT::")))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
