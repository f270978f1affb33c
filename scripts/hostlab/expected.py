"""tests/hosts/EXPECTED.toml: the skips that are all right, host by host. Any other skip is a failure.

[intel-no-ept]
"test_backing.py::*" = "kvm_intel.ept=N"        # test (with * for any text) = words its reason must have
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from .catalogue import NAMES
from .errors import HostsError


class Expected:
    """Which tests may be skipped where. ``table`` is the file's contents: host, test, words of the reason."""

    def __init__(self, table: Mapping[str, Mapping[str, str]]) -> None:
        self._table = {
            host: [(_pattern(test), words) for test, words in tests.items()] for host, tests in table.items()
        }

    def allows(self, host: str, test: str, reason: str) -> bool:
        """Whether this skip is listed. On "local" every skip is: it is a different machine each time."""
        if host == "local":
            return True
        listed = self._table.get(host, [])
        return any(pattern.fullmatch(test) and words in reason for pattern, words in listed)


def read(path: Path) -> Expected:
    """The file's contents; nothing is expected if it isn't there. HostsError if it can't be understood."""
    if not path.exists():
        return Expected({})
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise HostsError(f"{path.name}: {error}") from None
    for host, tests in table.items():
        if host not in NAMES or not isinstance(tests, dict):
            raise HostsError(f"{path.name}: {host!r} is no host: {', '.join(NAMES)}")
        for test, words in tests.items():
            if not isinstance(words, str) or not words:
                raise HostsError(
                    f"{path.name}: {host}: {test}: must be words of the skip's reason, not {words!r}"
                )
    return Expected(table)


def _pattern(test: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in test.split("*")), re.DOTALL)
