"""Kinds of instructions: what of a vCPU's state each needs, and which are one kind."""

from __future__ import annotations

import pytest

from kvmpy._native import ffi, lib

FPU, XCR0, MSRS = lib.KVMPY_CARRY_FPU, lib.KVMPY_CARRY_XCR0, lib.KVMPY_CARRY_MSRS
NEVER = lib.KVMPY_CARRY_NEVER


def decode(code: str, bits: int = 64) -> tuple[int, int, bytes]:
    """What it needs, its sign, and the bytes that make it of its kind."""
    data = bytes.fromhex(code)
    sign, head = ffi.new("uint64_t *"), ffi.new("uint8_t *")
    needs = lib.kvmpy_rescue_decode(data, len(data), bits, sign, head)
    return int(needs), int(sign[0]), data[: head[0]]


@pytest.mark.parametrize(
    ("code", "needs"),
    [
        ("d9e8", FPU),  # fld1
        ("9b", FPU),  # fwait
        ("0f58c1", FPU),  # addps
        ("66 0ffe c1", FPU),  # paddd
        ("66 0f38 00 c1", FPU),  # pshufb
        ("66 0f3a 0f c1 03", FPU),  # palignr
        ("0fae 10", FPU),  # ldmxcsr
        ("0fae 20", FPU | XCR0),  # xsave
        ("0fae 28", FPU | XCR0),  # xrstor
        ("0f01d0", XCR0),  # xgetbv
        ("0f01f9", MSRS),  # rdtscp
        ("f3 0fc7 f8", MSRS),  # rdpid
        ("f3 48 0fb8 c3", 0),  # popcnt
        ("f2 0f38f1 c3", 0),  # crc32
        ("f0 48 0fc7 0f", 0),  # lock cmpxchg16b
        ("cd80", 0),
        ("cc", 0),
        ("0f0b", 0),  # ud2
        ("c4e2f0f2c3", 0),  # andn
        ("c4e3fbf0c30d", 0),  # rorx
        ("c5f058c2", 0),  # vaddps
        ("62f1745858c2", 0),
        ("c7f8 00000000", 0),  # xbegin
        ("c700 00000000", 0),  # mov
    ],
)
def test_what_state_it_needs(code: str, needs: int) -> None:
    assert decode(code)[0] == needs


def test_operand_sizes_of_16_bit_code_are_not_the_translators_thing() -> None:
    assert decode("f30fb8c3", 16)[0] == decode("f20f38f1c3", 16)[0] == NEVER
    assert decode("f30fb8c3", 32)[0] == 0


SAME = [
    ("0f58c1", "0f584910"),  # addps with other operands
    ("0f58c1", "41 0f58c1"),
    ("d9e8", "d9e8"),
    ("d81f", "d85f10"),  # fcomp
    ("cd80", "cd10"),
    ("660f3a0fc103", "660f3a0fc204"),
]
OTHER = [
    ("0f58c1", "660f58c1"),  # addpd
    ("0fc70f", "480fc70f"),  # cmpxchg8b, cmpxchg16b
    ("d9e8", "d9eb"),  # fld1, fldpi
    ("d91f", "d90f"),
    ("0fae10", "0fae18"),  # ldmxcsr, stmxcsr
    ("480fc70f", "f0480fc70f"),
    ("0f01d0", "0f01f9"),
    ("660f71d005", "660f71e005"),  # psrlw, psraw
    ("c5f058c2", "0f58c2"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_operands_make_no_difference(one: str, other: str) -> None:
    assert decode(one)[1] == decode(other)[1]


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_another_instruction_is_another_kind(one: str, other: str) -> None:
    assert decode(one)[1] != decode(other)[1]


def test_the_bits_of_the_code_are_part_of_the_kind() -> None:
    assert len({decode("0f58c1", bits)[1] for bits in (16, 32, 64)}) == 3


@pytest.mark.parametrize(
    ("code", "head"),
    [
        ("cd80f4", "cd"),
        ("f3480fb8c3f4", "f3480fb8c3"),
        ("d9e8f4", "d9e8"),
        ("660f3a0fc103", "660f3a0fc1"),
        ("0f", "0f"),
        ("", ""),
    ],
)
def test_the_bytes_that_stand_for_it(code: str, head: str) -> None:
    assert decode(code)[2] == bytes.fromhex(head)


def test_no_bytes_are_read_that_arent_there() -> None:
    for length in range(16):
        for byte in (0x0F, 0x62, 0x66, 0x8F, 0xC4, 0xC5, 0xC6, 0xD9, 0xF0):
            decode(bytes([byte] * length).hex())
