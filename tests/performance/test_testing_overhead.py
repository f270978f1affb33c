"""What a guest test costs beyond the machine it runs: ratios, printed; no absolute times."""

from __future__ import annotations

import time
from collections.abc import Generator
from statistics import median

import pytest
from engines import need

import kvmpy.testing.guest
import kvmpy.testing.session  # noqa: F401  here, or each session inside imports them anew

pytest_plugins = ["pytester"]

TESTS = 300
LIMIT = 2.0
FILE = """
from kvmpy.machine.machine import Machine
from kvmpy.testing import Hlt

def empty():
    pass

def machine():
    with Machine("16M", engine="kvm") as machine:
        machine.load(b"\\xf4", format="flat", mode="long")
        assert machine.run(timeout=10).reason == "halt"

def a_guest(guest):
    guest.code(b"\\xf4", mode="long")
    assert guest.run().exits == [Hlt()]

for n in range({count}):  # in turn, so that what else the host does hits all three
    for function in (empty, machine, a_guest):
        globals()[f"test_{{n}}_{{function.__name__}}"] = function
"""


class Stopwatch:
    """Times each test from before its set-up to after its teardown."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        began = time.perf_counter()
        result = yield
        self.times.setdefault(item.name.split("_", 2)[2], []).append(time.perf_counter() - began)
        return result


def test_a_guest_test_costs_at_most_twice_its_machine(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    need("kvm")
    pytester.makepyfile(test_it=FILE.format(count=TESTS))
    watch = Stopwatch()
    options = ("-q", "-p", "no:hypothesispytest", "--kvmpy-engine=kvm")
    pytester.runpytest_inprocess(*options, plugins=[watch]).assert_outcomes(passed=3 * TESTS)
    empty, machine, guest = (median(watch.times[name]) for name in ("empty", "machine", "a_guest"))
    ratio = (guest - empty) / (machine - empty)
    with capsys.disabled():
        print(
            f"\nan empty long-mode guest test costs {ratio:.2f} times create-run-close of its machine"
            f" ({guest / (machine - empty):.2f} times with what pytest itself does for any test)"
        )
    assert ratio <= LIMIT


def test_unused_the_plugin_adds_nothing_to_collection(pytester: pytest.Pytester) -> None:
    """Counted in calls, not in time: it looks at each item once, at the end."""
    import kvmpy.testing.plugin as plugin

    calls = []
    original = plugin.pytest_generate_tests

    def counted(metafunc: pytest.Metafunc) -> None:
        calls.append(metafunc.function.__name__)
        original(metafunc)

    class Counting:
        pytest_generate_tests = staticmethod(counted)

    pytester.makepyfile(test_it="def test_one(): pass\ndef test_two(tmp_path): pass")
    result = pytester.runpytest_inprocess("-p", "no:hypothesispytest", "--collect-only", plugins=[Counting()])
    assert result.ret == 0
    assert calls == ["test_one", "test_two"]
    assert "kvmpy 0" not in result.stdout.str()
