"""The plugin: engines, requirements, states, header, xdist, golden traces, caching."""

from __future__ import annotations

import subprocess
import sys

import pytest
from inner_pytest import Inner

pytest_plugins = ["pytester"]

COUNTS = """
def test_counts(guest):
    guest.asm("mov $3, %ecx; 1: out %al, $0x80; loop 1b; hlt", mode="long")
    assert guest.run().exits == [Out(0x80), Out(0x80), Out(0x80), Hlt()]
"""


def test_one_engine_leaves_names_alone(inner: Inner) -> None:
    result = inner(COUNTS, "-v", "--kvmpy-engine=auto")
    result.stdout.fnmatch_lines(["test_it.py::test_counts PASSED*"])


def test_a_test_for_each_engine(inner: Inner) -> None:
    result = inner(COUNTS, "-v", "--kvmpy-engine=kvm,translate", "-rs")
    assert len([line for line in result.outlines if "test_counts[kvm]" in line]) >= 1
    assert len([line for line in result.outlines if "test_counts[translate]" in line]) >= 1


def test_the_engine_can_be_a_setting_of_the_project(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nkvmpy_engine = kvm,translate\n")
    result = inner(COUNTS, "--collect-only", "-q", engine=False)
    result.stdout.fnmatch_lines(["test_it.py::test_counts[[]kvm]", "test_it.py::test_counts[[]translate]"])


def test_a_test_for_one_engine_only(inner: Inner) -> None:
    body = '@pytest.mark.kvmpy(engine="kvm")' + COUNTS
    result = inner(body, "--collect-only", "-q", "--kvmpy-engine=kvm,translate")
    assert [line for line in result.outlines if "::" in line] == ["test_it.py::test_counts"]
    result = inner(body, "-rs", "--kvmpy-engine=translate", engine=False)
    result.stdout.fnmatch_lines(["SKIPPED*for the kvm engine only, and this run is for translate"])
    body = '@pytest.mark.kvmpy(engine="translate")' + COUNTS
    result = inner(body, "--collect-only", "-q", "--kvmpy-engine=kvm,translate", engine=False)
    result.stdout.fnmatch_lines(["test_it.py::test_counts[[]translate]"])
    assert "[kvm]" not in result.stdout.str()


def test_rescue_is_off_unless_a_test_wants_it(inner: Inner) -> None:
    result = inner("""
        def test_usually(guest, machines):
            assert not guest.machine.rescues and not machines().rescues
            with new_guest(rescue=True) as other:
                assert other.machine.rescues == other.machine.engine.rescuable
        @pytest.mark.kvmpy(rescue=True)
        def test_wanted(guest):
            assert guest.machine.rescues == guest.machine.engine.rescuable
        """)
    result.assert_outcomes(passed=2)


def test_a_further_guest_can_have_another_engine(inner: Inner) -> None:
    result = inner("""
        @pytest.mark.kvmpy(requires=["translate"])
        def test_it(guest):
            with new_guest(engine="translate") as other:
                assert other.machine.engine.name == "translate"
        """)
    result.assert_outcomes(passed=1)


def test_unmet_requirements_skip_with_the_fact(inner: Inner) -> None:
    body = """
        @pytest.mark.kvmpy(requires=["ept", "not ept"])
        def test_it(guest):
            pass
        @pytest.mark.kvmpy(requires=["ept", "not ept"])
        def test_without_a_fixture():
            pass
        """
    result = inner(body, "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*needs *ept: *"])
    result = inner(body, "--kvmpy-no-skip")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["needs *ept: * (a failure and no skip because of --kvmpy-no-skip)"])


def test_requirements_of_class_and_test_add_up(inner: Inner) -> None:
    body = """
        @pytest.mark.kvmpy(requires=["not kvm or kvm"], memory="2M", cpus=1)
        class TestIt:
            @pytest.mark.kvmpy(memory="4M")
            def test_it(self, machine):
                assert machine.memory.size == 4 << 20
            @pytest.mark.kvmpy(requires=["not ept", "ept"])
            def test_never(self, machine):
                pass
        """
    inner(body).assert_outcomes(passed=1, skipped=1)


def test_header_says_engine_technique_and_host(inner: Inner) -> None:
    inner(COUNTS).stdout.fnmatch_lines(["kvmpy *: engine * (*); *, Linux *"])


def test_nothing_is_said_or_imported_when_unused(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys
        def test_unused():
            there = {name for name in sys.modules if name.startswith("kvmpy")}
            assert there <= {"kvmpy", "kvmpy.lazily", "kvmpy.testing", "kvmpy.testing.plugin"}
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    assert "kvmpy 0" not in result.stdout.str()


def test_under_xdist(kvmpy_engine: str, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from kvmpy.testing import *
        @pytest.mark.parametrize("count", range(1, 13))
        def test_counts(guest, count):
            guest.asm(f"mov ${count}, %ecx; 1: out %al, $0x80; loop 1b; hlt")
            assert guest.run().exits == [Out(0x80)] * count + [Hlt()]
        def test_same_program_everywhere(guest):
            guest.asm("hlt")
            assert guest.run().exits == [Hlt()]
        def test_leak(guest):
            from kvmpy import Machine
            global kept
            kept = Machine("2M")
        """
    )
    result = pytester.runpytest_subprocess("-n", "2", f"--kvmpy-engine={kvmpy_engine}")
    result.assert_outcomes(passed=14, errors=1)
    result.stdout.fnmatch_lines(["*test_leak* leaked <Machine*"])
    result.stdout.fnmatch_lines(["kvmpy *: engine * (*); *, Linux *"])


def test_golden_traces_are_written_and_then_hold(inner: Inner, pytester: pytest.Pytester) -> None:
    body = """
        def test_it(guest):
            guest.asm("mov $1, %al; out %al, $0x80; in $0x81, %al; mov %eax, 0xe0000000; hlt")
            guest.run()
            assert guest.trace == golden("boot")
        """
    inner(body).assert_outcomes(failed=1)
    inner(body, "--kvmpy-update-golden").assert_outcomes(passed=1)
    path = pytester.path / "golden" / "boot.trace"
    assert path.read_text() == (
        "# kvmpy golden trace, version 1\nOut(0x80, 0x1)\nIn(0x81, 0xff)\nMmioWrite(0xe0000000, 0xff)\nHlt()\n"
    )
    inner(body).assert_outcomes(passed=1)
    loose = "# kvmpy golden trace, version 1\nOut(0x80, ANY)\n...\nMmioWrite(range(0xe0000000, 0xe0001000))\nHlt()\n"
    path.write_text(loose)
    inner(body, "--kvmpy-update-golden").assert_outcomes(passed=1)
    assert path.read_text() == loose
    path.write_text("# kvmpy golden trace, version 1\nOut(0x80, 0x2)\n")
    inner(body).assert_outcomes(failed=1)
    inner(body, "--kvmpy-update-golden").assert_outcomes(passed=1)
    assert "In(0x81, 0xff)" in path.read_text()


def test_programs_are_kept_by_content(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvmpy.testing.build import Builder

    def compiled(*_: object) -> None:
        raise AssertionError("compiled again")

    inner(COUNTS).assert_outcomes(passed=1)
    monkeypatch.setattr(Builder, "_run", compiled)
    inner("\n\n" + COUNTS).assert_outcomes(passed=1)
    inner(COUNTS.replace("$3", "$4")).assert_outcomes(failed=1)


def test_the_command_of_a_report_runs(inner: Inner, pytester: pytest.Pytester) -> None:
    body = """
        def test_plain(guest):
            guest.asm("mov $0x3f8, %dx; mov $0x58, %al; out %al, %dx; hlt")
            guest.run()
            assert False
        def test_ring3(guest):
            guest.asm("mov $0x3f8, %dx; mov $0x59, %al; out %al, %dx; mov $7, %al; out %al, $0xf4", ring=3)
            guest.run()
            assert False
        """
    result = inner(body)
    lines = result.outlines
    plain = next(line for line in lines if line.startswith("kvmpy run "))
    script = next(line for line in lines if line.startswith("python "))
    done = subprocess.run(
        [sys.executable, "-m", *plain.split()], capture_output=True, cwd=pytester.path, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, b"X"), done.stderr
    done = subprocess.run(
        [sys.executable, *script.split()[1:]], capture_output=True, cwd=pytester.path, timeout=60
    )
    assert done.stdout.startswith(b"Y<Result exit status=7"), done.stderr


def test_a_whole_diff_however_short_pytest_is(inner: Inner) -> None:
    body = """
        def test_it(guest):
            guest.asm("mov $200, %ecx; 1: mov %ecx, %eax; out %al, $0x80; loop 1b; hlt")
            expected = [Out(0x80, 200 - i) for i in range(200)] + [Hlt()]
            expected[10] = Out(0x80, 3)
            del expected[150]
            assert guest.run().exits == expected
        """
    result = inner(body)
    result.stdout.fnmatch_lines(
        [
            "E *first difference at 10: 201 seen, 200 expected",
            "E *! *10  Out(0x80, 0xbe)  Out(0x80, 0x3)",
            "E * …",
            "E *! *150  Out(0x80, 0x32)  -",
            "E * 153 *",
            "E * …",
            "E * rip *",
        ]
    )
    assert "Full output truncated" not in result.stdout.str()


def test_of_several_machines_each_is_in_the_report(inner: Inner) -> None:
    body = """
        def test_it(machines):
            one, two = machines(memory="2M"), machines(memory="4M")
            for machine in (one, two):
                machine.load(b"\\xe6\\x80\\xf4", format="flat", mode="long")
                machine.run()
            assert one.trace == [Out(0x80), Hlt()] and two.trace == [Hlt()]
        """
    result = inner(body)
    result.stdout.fnmatch_lines(["*kvmpy: last exits*", "*kvmpy machine 1: last exits*"])


def test_a_machine_with_nothing_in_between(inner: Inner) -> None:
    body = """
        import math
        from kvmpy.errors import UsageError
        @pytest.mark.kvmpy(trace=False, timeout=math.inf, mode="real", memory="1M")
        def test_bare(machines, guest):
            machine = machines(bytes.fromhex("b005 e680 f4"))
            seen = []
            machine.ports.on_write(0x80)(lambda offset, value, size: seen.append(value))
            assert not machine.rings
            assert machine.run().reason == "halt" and seen == [5]
            assert machine.cpus[0].regs.rip == 0x1005
            guest.code(bytes.fromhex("ebfe"))
            assert guest.run(timeout=0.1).reason == "timeout"
            for look in (lambda: machine.trace, lambda: guest.trace, lambda: guest.run(timeout=0.1).exits):
                with pytest.raises(UsageError, match="aren't written down: it was made with trace=False"):
                    look()
        """
    inner(body).assert_outcomes(passed=1)


def test_every_vcpu_starts_at_the_code(inner: Inner, kvmpy_engine: str) -> None:
    body = """
        @pytest.mark.parametrize("irqchip", ["none", "kernel"])
        def test_two(machines, irqchip):
            machine = machines(bytes.fromhex("e680 fa f4"), "real", cpus=2, irqchip=irqchip)
            assert machine.run().reason == "halt"
            assert sorted(map(repr, machine.trace.of(Out))) == [repr(Out(0x80, 0))] * 2
        """
    outcomes = inner(body).parseoutcomes()
    assert outcomes == ({"passed": 2} if kvmpy_engine == "kvm" else {"skipped": 2})


def test_a_leak_on_purpose(inner: Inner) -> None:
    body = """
        from kvmpy import Machine
        @pytest.mark.kvmpy(leaks=True)
        def test_it(kvmpy_engine):
            global kept
            kept = Machine("2M")
        """
    inner(body).assert_outcomes(passed=1)
