"""Where prepared things are kept: hosts/ in $KVMPY_CACHE, or in kvmpy in the user's cache directory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def directory() -> Path:
    """The directory of this program in the cache; made if it isn't there."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = Path(os.environ.get("KVMPY_CACHE") or user / "kvmpy") / "hosts"
    place.mkdir(parents=True, exist_ok=True)
    return place


def key(*parts: bytes | str) -> str:
    """A short name for contents made from ``parts``: other parts, another name."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever else writes it at the same time."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
