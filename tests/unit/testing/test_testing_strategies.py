"""The strategies give what they promise. No engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import UsageError
from kvmpy.testing import instructions as x86
from kvmpy.testing.entry import build
from kvmpy.testing.instructions import program
from kvmpy.testing.strategies import Access, cpu_states, exit_scripts, guest_code, instructions, registers

MODES = ("real", "protected", "long")


def _plain(text: str) -> str:
    """The mnemonic without what assemblers add to say how wide it is."""
    return text.split()[0].rstrip("bwlq").removesuffix("abs")


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
def test_code_is_what_the_text_says(mode: str, data: st.DataObject) -> None:
    capstone = pytest.importorskip("capstone")
    code = data.draw(instructions(mode, ports=[0x80, 0xF4]))
    bits = {"real": capstone.CS_MODE_16, "protected": capstone.CS_MODE_32, "long": capstone.CS_MODE_64}[mode]
    engine = capstone.Cs(capstone.CS_ARCH_X86, bits)
    engine.syntax = capstone.CS_OPT_SYNTAX_ATT
    found = [
        f"{mnemonic} {operands}".strip() for _, _, mnemonic, operands in engine.disasm_lite(code.code, 0)
    ]
    assert len(found) == len(code) + 1
    for text, each in zip(found, code, strict=False):
        assert _plain(text) == _plain(each.text)
        assert text.split()[-1] == each.text.split()[-1]


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
def test_text_evaluates_to_the_same_code(mode: str, data: st.DataObject) -> None:
    code = data.draw(instructions(mode))
    again = eval(repr(code), {"program": program})
    assert (again.code, again.source, again.mode) == (code.code, code.source, mode)


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
def test_states_are_valid(mode: str, data: st.DataObject) -> None:
    state = data.draw(cpu_states(mode, rings=(0, 3)))
    options = {key: value for key, value in state.items() if key not in ("mode", "at")}
    if mode != "real":
        options["memory_size"] = 16 << 20
    entry = build(mode, state["at"], **options)
    assert entry.mode == mode
    linear = entry.reg("rip") + (entry.segments["cs"].base if mode == "real" else 0)
    assert linear == state["at"]
    assert entry.reg("rflags") & 2
    assert not entry.reg("rflags") & (1 << 9)


@given(data=st.data())
def test_scripts_stay_inside_the_device(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 16))
    for access in data.draw(exit_scripts(length)):
        assert 0 <= access.offset <= length - access.size
        assert access.value is None or 0 <= access.value < 1 << (8 * access.size)
        assert eval(repr(access), {"Access": Access}) == access


def test_scripts_become_guest_code() -> None:
    script = [Access(0, 1, 0x12), Access(2, 2), Access(4, 4, 0x11223344)]
    assert guest_code(script, 0x300).hex(" ") == (
        "ba 00 03 00 00 b8 12 00 00 00 ee ba 02 03 00 00 66 ed ba 04 03 00 00 b8 44 33 22 11 ef f4"
    )
    with pytest.raises(UsageError, match="8"):
        guest_code([Access(0, 8)], 0x300)


def test_defined_flags() -> None:
    code = x86.Sequence("long", [x86.alu("add", "long", 0, 1)])
    assert code.defined_flags == 0x8D5
    code = x86.Sequence("long", [x86.alu("and", "long", 0, 1), x86.move("long", 1, 2)])
    assert code.defined_flags == 0x8D5 & ~0x10


def test_bad_arguments() -> None:
    for make, words in (
        (lambda: instructions("virtual"), "mode 'virtual'"),
        (lambda: instructions("long", only=["fld"]), "instruction 'fld'"),
        (lambda: registers("smm"), "mode 'smm'"),
        (lambda: exit_scripts(1, sizes=[4]), "no such access"),
        (lambda: x86.out(0x100), "0x100"),
        (lambda: x86.load("real", 0, 0x10000), "16 bits"),
        (lambda: x86.shift("shl", "long", 2, 0), "only by 1"),
    ):
        with pytest.raises(UsageError, match=words):
            make()  # type: ignore[no-untyped-call]
