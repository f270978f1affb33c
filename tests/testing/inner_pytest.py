"""The type of the ``inner`` fixture, where a test module can import it: there is more than one conftest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Inner = Callable[..., pytest.RunResult]
