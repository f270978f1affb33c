"""Running pytest inside a test, with the plugin, in a directory of its own."""

from __future__ import annotations

from textwrap import dedent

import pytest
from inner_pytest import Inner

HEAD = "import pytest\nfrom kvmpy.testing import *\n\n"


@pytest.fixture
def inner(kvmpy_engine: str, pytester: pytest.Pytester) -> Inner:
    """``inner(source, *options)`` runs the tests in ``source``, whose third line follows HEAD, as test_it.py.

    On the same engine as this test. Hypothesis' plugin would be imported anew each time: it stays out.
    """

    def run(source: str, *options: str, head: str = HEAD, engine: bool = True) -> pytest.RunResult:
        pytester.makepyfile(test_it=head + dedent(source))
        chosen = [f"--kvmpy-engine={kvmpy_engine}"] if engine else []
        return pytester.runpytest_inprocess("-p", "no:hypothesispytest", *chosen, *options)

    return run
