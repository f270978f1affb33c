"""On a free-threaded Python the extension leaves the GIL off."""

from __future__ import annotations

import subprocess
import sys
import sysconfig

import pytest

SCRIPT = """
import sys
import kvmpy._native
from kvmpy.machine.machine import Machine
print(sys._is_gil_enabled())
"""


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has a GIL")
def test_importing_kvmpy_leaves_the_gil_off() -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
