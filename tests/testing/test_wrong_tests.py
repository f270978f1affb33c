"""Tests that are wrong on purpose: each fails with a message that a person can act on."""

from __future__ import annotations

import pytest
from inner_pytest import Inner

pytest_plugins = ["pytester"]

WRONG: dict[str, tuple[str, list[str]]] = {
    "exit at another port": (
        """
        def test_wrong(guest):
            guest.asm("out %al, $0x80; out %al, $0x81; hlt")
            assert guest.run().exits == [Out(0x80), Out(0x82), Hlt()]
        """,
        [
            "E *assert exits differ, first difference at 1: 3 seen, 3 expected",
            "E * 0  Out(0x80, 0x0)  Out(0x80)",
            "E *! *1  Out(0x81, 0x0)  Out(0x82)",
            "E * 2  Hlt() *Hlt()",
            "E * vCPU 0, 64-bit code at 0x100005*",
            "E * rax 0000000000000000 *",
        ],
    ),
    "wrong value": (
        """
        def test_wrong(guest):
            guest.asm("mov $0x41, %al; out %al, $0xe9; mov $0x1234, %ax; out %ax, $0x80; hlt")
            assert guest.run().exits == [Out(0xe9, 0x41), Out(0x80, 0x1235), Hlt()]
        """,
        [
            "E *first difference at 1: 3 seen, 3 expected",
            "E *! *1  Out(0x80, 0x1234, size=2)  Out(0x80, 0x1235)",
        ],
    ),
    "an exit too many": (
        """
        def test_wrong(guest):
            guest.asm("out %al, $0x80; out %al, $0x80; in $0x81, %al; hlt")
            assert guest.run().exits == [Out(0x80), Out(0x80), Hlt()]
        """,
        [
            "E *first difference at 2: 4 seen, 3 expected",
            "E *! *2  In(0x81, 0xff)  -",
            "E * 3  Hlt() *Hlt()",
        ],
    ),
    "an exit that never came": (
        """
        def test_wrong(guest):
            guest.asm("mov %eax, 0xe0000000; hlt")
            assert guest.run().exits == [MmioWrite(0xe0000000), MmioRead(0xe0000004), Hlt()]
        """,
        [
            "E *first difference at 1: 2 seen, 3 expected",
            "E * 0  MmioWrite(0xe0000000, 0x0)  MmioWrite(0xe0000000)",
            "E *! * -  *MmioRead(0xe0000004)",
        ],
    ),
    "hang": (
        """
        @pytest.mark.kvmpy(timeout=0.2)
        def test_wrong(guest):
            guest.asm("nop; forever: jmp forever")
            guest.run()
        """,
        [
            "E *GuestHang: the guest was still running after 0.2 s, the test's limit: vCPU 0 at rip 0x100001"
            " (forever); more time: @pytest.mark.kvmpy(timeout=SECONDS)",
        ],
    ),
    "triple fault": (
        """
        def test_wrong(guest):
            guest.asm("out %al, $0x80; boom: ud2; hlt")
            assert guest.run().exits == [Out(0x80), Hlt()]
        """,
        [
            "E *first difference at 1: 2 seen, 2 expected",
            "E *! *1  Shutdown() *Hlt()",
            "E * vCPU 0, 64-bit code at 0x100002 (boom):",
            "*kvmpy: how the run ended*",
            "<Result crash (SHUTDOWN: triple fault)*",
        ],
    ),
    "guest assertion in assembly": (
        '''
        def test_wrong(guest):
            guest.asm("""
                #include "kvmpy.h"
                mov $7, %ecx
                ASSERT_EQ(%ecx, $7)
                ASSERT_LT(%ecx, $5)
                hlt
            """)
            guest.run()
        ''',
        ["E *GuestAssertion: test_it.py:10: ASSERT_LT(%ecx, $5) doesn't hold in the guest: %ecx is 7"],
    ),
    "guest assertion in C": (
        '''
        def test_wrong(guest):
            guest.c("""
                #include "kvmpy.h"
                int main(void)
                {
                        print("before");
                        ASSERT_EQ(inb(0x80), 3);
                        return 0;
                }
            """)
            guest.run()
        ''',
        [
            "E *GuestAssertion: test_it.py:11: ASSERT_EQ(inb(0x80), 3) doesn't hold in the guest: 255 (0xff) and 3",
            "*kvmpy: serial output*",
            "before",
        ],
    ),
    "leak": (
        """
        from kvmpy import Machine
        kept = []
        def test_wrong(guest):
            kept.append(Machine("2M"))
        """,
        [
            "*ERROR at teardown of test_wrong*",
            "test_it.py::test_wrong* leaked <Machine *, 1 vCPU, 2 MiB, stopped>, made at *test_it.py:8: close() it, or"
            " use it in a with statement",
        ],
    ),
    "leak that was collected": (
        """
        from kvmpy import Machine
        @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
        def test_wrong(guest):
            Machine("2M")
        """,
        [
            "*test_it.py::test_wrong* leaked <Machine *, 2 MiB, stopped>*: close() it, or use it in a with statement"
        ],
    ),
    "an exception in a device": (
        """
        def test_wrong(guest):
            @guest.ports.on_write(0x80)
            def post(offset, value, size):
                raise ValueError("no such code")
            guest.asm("out %al, $0x80; hlt")
            guest.run()
        """,
        [
            ">       guest.run()",
            "test_it.py:10: ",
            '>       raise ValueError("no such code")',
            "E *ValueError: no such code",
            "E *at 1 byte write of 0x0, port 0x80 on vCPU 0",
        ],
    ),
    "words that never came": (
        """
        def test_wrong(guest):
            guest.image("long-hello")
            guest.serial.expect("Hello")
            guest.serial.expect("login:", timeout=1)
        """,
        [
            "E *SerialError: the guest never sent 'login:': the run ended (halt); it sent ' from long mode\\n' since"
            " the last match"
        ],
    ),
    "golden trace": (
        """
        import pathlib
        def test_wrong(guest):
            folder = pathlib.Path(__file__).parent / "golden"
            folder.mkdir(exist_ok=True)
            (folder / "boot.trace").write_text("# kvmpy golden trace, version 1\\nOut(0x80, 0x1)\\n...\\nHlt()\\n")
            guest.asm("mov $2, %al; out %al, $0x80; hlt")
            guest.run()
            assert guest.trace == golden("boot")
        """,
        [
            "E *exits and golden trace 'boot' differ, first difference at 0: 2 seen, 3 expected",
            "E *! *0  Out(0x80, 0x2)  Out(0x80, 0x1)",
            "E * (--kvmpy-update-golden writes what was seen)",
        ],
    ),
    "an unowned port, strict": (
        """
        @pytest.mark.kvmpy(strict=True)
        def test_wrong(guest):
            guest.asm("out %al, $0x80; hlt")
            assert guest.run().reason == "halt"
        """,
        [
            "E *'unowned' == 'halt'",
            "<Result unowned (1 byte write of 0x0, port 0x80, at rip 0x10000*: nobody owns it (strict))*",
        ],
    ),
    "wrong status": (
        """
        def test_wrong(guest):
            guest.c("int main(void) { return 3; }")
            assert guest.run().status == 0
        """,
        ["E *assert 3 == 0", "<Result exit status=3*"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_message(name: str, inner: Inner) -> None:
    body, lines = WRONG[name]
    result = inner(body)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(lines)


def test_a_failure_carries_all_that_is_known(inner: Inner, kvmpy_engine: str) -> None:
    body = """
        @pytest.mark.kvmpy(memory="4M")
        def test_wrong(guest):
            @guest.mmio.on_write(0xe0000000, 4)
            def device(offset, value, size):
                pass
            guest.asm("mov $0x48, %al; mov $0x3f8, %dx; out %al, %dx; mov %eax, 0xe0000000; end: hlt")
            guest.run()
            assert False
        """
    result = inner(body)
    result.stdout.fnmatch_lines(
        [
            "*kvmpy: how the run ended*",
            "<Result halt status=0, 3 exits *>",
            "*kvmpy: last exits*",
            "3 in all, the last of each vCPU:",
            "vCPU 0: Out(0x3f8, 0x48)",
            "vCPU 0: MmioWrite(0xe0000000, 0x48)",
            "vCPU 0: Hlt()",
            "*kvmpy: vCPUs*",
            "vCPU 0, 64-bit code at 0x100011*",
            " *rip 0000000000100011 *",
            "*kvmpy: serial output*",
            "H",
            "*kvmpy: to run it again*",
            "kvmpy run .pytest_cache/d/kvmpy/*.bin --format flat --mode long --load-address 0x100000 --memory 4M"
            " --cpus 1 --engine * --irqchip none *--timeout 10 --trace trace.jsonl",
            "  (without what the test attached: MMIO 0xe0000000-0xe0000003 (device))",
            f"pytest test_it.py::test_wrong --kvmpy-engine={kvmpy_engine}",
        ]
    )


def test_every_vcpu_is_in_the_report(inner: Inner, kvmpy_engine: str) -> None:
    body = """
        @pytest.mark.kvmpy(cpus=2, irqchip="any")
        def test_wrong(guest):
            guest.image("smp-hello")
            assert guest.run().status == 1
        """
    result = inner(body, "-rs")
    if result.parseoutcomes().get("skipped"):
        pytest.skip(f"the {kvmpy_engine} engine has one vCPU")
    result.stdout.fnmatch_lines(
        ["vCPU 0: Out(0xf4, 0x0)", "vCPU 0, *-bit code at*", "vCPU 1, *-bit code at*"]
    )


def test_a_hang_or_crash_does_not_harm_the_next_test(inner: Inner) -> None:
    body = """
        import time
        @pytest.mark.kvmpy(timeout=0.1)
        def test_hang(guest):
            guest.asm("1: jmp 1b")
            guest.run()
        def test_crash(guest):
            guest.asm("ud2")
            assert guest.run().reason == "halt"
        def test_leak(machines):
            from kvmpy import Machine
            global left
            left = Machine("2M")
        def test_good(guest):
            guest.asm("mov $5, %eax; out %al, $0x80; hlt")
            assert guest.run().exits == [Out(0x80, 5), Hlt()]
        """
    result = inner(body)
    result.assert_outcomes(failed=2, passed=2, errors=1)


def test_a_machine_that_still_runs_is_stopped(inner: Inner) -> None:
    body = """
        import threading
        def test_left_running(guest):
            guest.asm("1: jmp 1b")
            threading.Thread(target=guest.machine.run, args=(60,), daemon=True).start()
            while not guest.machine.running:
                pass
        def test_good(guest):
            guest.asm("hlt")
            assert guest.run().exits == [Hlt()]
        """
    result = inner(body, "-p", "no:threadexception", "--kvmpy-timeout=60")
    result.assert_outcomes(passed=2)
    assert result.duration < 30
