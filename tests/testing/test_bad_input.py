"""Bad input to the plugin: a clear error, at the right place."""

from __future__ import annotations

import pytest
from inner_pytest import Inner

pytest_plugins = ["pytester"]

AT_COLLECTION = {
    "unknown fact": (
        '@pytest.mark.kvmpy(requires=["ebt"])',
        "test_it.py::test_it: requires='ebt': no fact of a host is called 'ebt': did you mean 'ept'? Facts: *, ept, *",
    ),
    "requirements that are no list": (
        '@pytest.mark.kvmpy(requires="ept")',
        "test_it.py::test_it: requires='ept': a list of facts, as in requires=['irqchip']",
    ),
    "unknown key": (
        "@pytest.mark.kvmpy(ram=3)",
        "test_it.py::test_it: kvmpy marker has no 'ram': one of memory, cpus, *",
    ),
    "a word without a key": (
        '@pytest.mark.kvmpy("2M")',
        "test_it.py::test_it: @pytest.mark.kvmpy takes keywords only, not '2M': one of memory, *",
    ),
    "unknown engine": (
        '@pytest.mark.kvmpy(engine="xen")',
        "test_it.py::test_it: engine='xen': one of auto, kvm, translate",
    ),
    "unknown mode": (
        '@pytest.mark.kvmpy(mode="virtual")',
        "test_it.py::test_it: mode='virtual': one of real, protected, long",
    ),
    "memory": (
        '@pytest.mark.kvmpy(memory="2X")',
        "test_it.py::test_it: *2X*",
    ),
    "no vCPUs": ("@pytest.mark.kvmpy(cpus=0)", "test_it.py::test_it: cpus=0: at least 1"),
    "no time": (
        "@pytest.mark.kvmpy(timeout=0)",
        "test_it.py::test_it: timeout=0: seconds, more than 0; math.inf for no limit",
    ),
    "a trace that is no choice": (
        '@pytest.mark.kvmpy(trace="some")',
        "test_it.py::test_it: trace='some': True or False",
    ),
    "two machines": (
        '@pytest.mark.kvmpy(memory="2M")\n@pytest.mark.kvmpy(memory="4M")',
        "test_it.py::test_it: two machines in one test: memory is '2M' and '4M'; the fixture `machines` makes as many"
        " as you like",
    ),
}

IN_THE_TEST = {
    "assembly that doesn't assemble": (
        '''
        guest.asm("""
            nop
            mov %eax, %bx
            foo
        """)
        ''',
        [
            "E *AssemblyError: test_it.py:8: Error: *",
            "E * test_it.py:9: Error: no such instruction: `foo'",
        ],
    ),
    "assembly in one line": (
        'guest.asm("nop; foo")',
        ["E *AssemblyError: test_it.py:6: Error: no such instruction: `foo'"],
    ),
    "a label that isn't there": (
        'guest.asm("call nowhere")',
        ["E *AssemblyError: test_it.py:6: *undefined reference to `nowhere'"],
    ),
    "C that doesn't compile": (
        '''
        guest.c("""
            int main(void)
            {
                return nothing;
            }
        """)
        ''',
        ["E *AssemblyError: test_it.py:9: error: 'nothing' undeclared *"],
    ),
    "code larger than memory": (
        'guest.code(bytes(17 << 20), mode="long")',
        ["E *ImageError: test_it.py:6: *0x100000-0x11fffff*"],
    ),
    "code larger than memory, ring 3": (
        "guest.code(bytes(17 << 20), ring=3)",
        ["E *ImageError: *"],
    ),
    "code that is text": (
        'guest.code("hlt")',
        ["E *UsageError: code is str: it must be bytes; guest.asm() takes text"],
    ),
    "assembly that is bytes": (
        'guest.asm(b"hlt")',
        ["E *UsageError: source is bytes: it must be text; guest.code() takes bytes"],
    ),
    "code at no address": (
        'guest.code(b"\\xf4", at="0x1000")',
        ["E *UsageError: at='0x1000': a guest physical address, from 0 on and below 1 << 52"],
    ),
    "assembly at a negative address": (
        'guest.asm("hlt", at=-1)',
        ["E *UsageError: at=-1: a guest physical address, from 0 on and below 1 << 52"],
    ),
    "an unknown mode": (
        'guest.asm("hlt", mode="virtual")',
        ["E *UsageError: mode 'virtual': one of real, protected, long"],
    ),
    "an option the mode doesn't have": (
        'guest.asm("hlt", mode="real", ring=3)',
        ["E *UsageError: real mode: got an unexpected keyword argument 'ring'"],
    ),
    "an entry that is no label": (
        'guest.asm("one: hlt", entry="two")',
        ["E *UsageError: entry 'two' is no label of the program: one"],
    ),
    "a handler that is no label": (
        'guest.asm("one: hlt", idt={14: "two"})',
        ["E *UsageError: handler 'two' of vector 14 is no label of the program: one"],
    ),
    "two programs": (
        'guest.asm("nop")\nguest.code(b"\\xf4")',
        [
            "E *UsageError: test_it.py:7: this guest holds a program (test_it.py:6) already: put both into one program,"
            " or use new_guest() for a second machine"
        ],
    ),
    "a number on the serial line": (
        "guest.serial.send(5)",
        ["E *UsageError: send() takes text or bytes, not 5"],
    ),
    "a number from the serial line": (
        "guest.serial.expect(5)",
        ["E *UsageError: expect() takes text, bytes or a compiled regular expression, not 5"],
    ),
    "no program": (
        "guest.run()",
        ["E *UsageError: test_it.py:6: the guest has no program: call guest.asm(), code(), c() or image()"],
    ),
    "an unknown image": (
        'guest.image("long-hallo")',
        ["E *ImageError: *long-hallo*long-hello*"],
    ),
    "golden trace missing": (
        'guest.asm("hlt")\nguest.run()\nassert guest.trace == golden("none")',
        [
            "E *GoldenError: golden trace 'none' doesn't exist (golden/none.trace): run the test once with"
            " --kvmpy-update-golden"
        ],
    ),
    "golden trace in a strange place": (
        'golden("../x")',
        ["E *UsageError: golden trace '../x': a plain name, without directories"],
    ),
    "no such exit in a list": (
        'guest.asm("hlt")\nassert guest.run(until=["NOTHING"])',
        ["E *UsageError: exit reason 'NOTHING' is unknown*"],
    ),
}


@pytest.mark.parametrize("name", AT_COLLECTION)
def test_error_of_collection(name: str, inner: Inner) -> None:
    marker, line = AT_COLLECTION[name]
    result = inner(f"{marker}\ndef test_it(guest): pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ERROR collecting test_it.py*", "*" + line.replace("[", "[[]") + "*"])


@pytest.mark.parametrize("name", IN_THE_TEST)
def test_error_of_the_test(name: str, inner: Inner) -> None:
    from textwrap import dedent, indent

    body, lines = IN_THE_TEST[name]
    result = inner("\ndef test_it(guest):\n" + indent(dedent(body).strip("\n"), "    "))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(lines)
    assert "INTERNALERROR" not in result.stdout.str()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("", "golden/boot.trace is damaged: its first line isn't '# kvmpy golden trace, version 1'"),
        ("Out(0x80)\n", "golden/boot.trace is damaged: its first line isn't"),
        ("# kvmpy golden trace, version 1\nHlt()\nOut(\n", "boot.trace:3 is damaged: 'Out(' isn't an exit such as"),
        ("# kvmpy golden trace, version 1\nOpen()\n", "boot.trace:2 is damaged: 'Open()' isn't an exit: one of"),
        ("# kvmpy golden trace, version 1\nOut(f())\n", "boot.trace:2 is damaged: 'Out(f())': "),
        ("# kvmpy golden trace, version 1\nHlt(1, 2, 3)\n", "boot.trace:2 is damaged: 'Hlt(1, 2, 3)': "),
    ],
)  # fmt: skip
def test_damaged_golden_trace(damage: str, said: str, inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.mkdir("golden").joinpath("boot.trace").write_text(damage)
    body = """
        def test_it(guest):
            guest.asm("hlt")
            guest.run()
            assert guest.trace == golden("boot")
        """
    result = inner(body)
    result.assert_outcomes(failed=1)
    assert (
        f"GoldenError: golden trace {'' if said.startswith('golden') else 'golden/'}{said}"
        in result.stdout.str()
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--kvmpy-engine=xen", "--kvmpy-engine=xen: one or more of auto, kvm, translate"),
        ("--kvmpy-state=frozen", "--kvmpy-state=frozen: one or more of fresh, restored"),
        ("--kvmpy-timeout=never", "--kvmpy-timeout=never: seconds, more than 0"),
        ("--kvmpy-timeout=-1", "--kvmpy-timeout=-1: seconds, more than 0"),
    ],
)
def test_bad_option(option: str, said: str, inner: Inner) -> None:
    result = inner("def test_it(guest): pass", option, engine=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{said}"])


def test_restored_without_snapshots_is_an_error(inner: Inner) -> None:
    from importlib.util import find_spec

    if find_spec("kvmpy.snapshot") is not None:
        pytest.skip("there are snapshots")
    result = inner("def test_it(guest): pass", "--kvmpy-state=fresh,restored")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--kvmpy-state=restored: this version of kvmpy has no snapshots*"])


def test_no_compiler_is_a_skip(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-cc")
    body = 'def test_it(guest): guest.asm("nop; hlt # never seen before")'
    result = inner(body, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["*assembly needs a C compiler and 'no-such-cc' can't be run: install the package gcc, or set CC"]
    )
    inner(body, "--kvmpy-no-skip").assert_outcomes(failed=1)


def test_new_guest_outside_a_test() -> None:
    from kvmpy.errors import UsageError
    from kvmpy.testing import new_guest

    with pytest.raises(UsageError, match="no test with a kvmpy machine is running"):
        new_guest()
