"""Instructions that the translator has no word for, though a guest's processor may know them.

To the translator they are undefined, or something older that has the same bytes. SDM vol. 2, appendix A; APM vol. 3,
appendix A.
"""

from __future__ import annotations

from kvmpy._native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

VECTOR = 0x10
"""In the number of an opcode map: VEX, EVEX or XOP."""
AVX, AVX512, XOP = "avx", "avx512f", "xop"
NONE, P66, PF2, PF3 = 0, 0x66, 0xF2, 0xF3
EVERY = (NONE, P66, PF2, PF3)


class _Row:
    """Opcodes of one feature: in a map, with one of these prefixes, and where it matters one of these ModR/M."""

    def __init__(
        self,
        feature: str,
        map_: int,
        opcodes: Iterable[int],
        prefixes: Iterable[int] = EVERY,
        modrm: Iterable[int] = (),
    ) -> None:
        self.feature = feature
        self.map = map_
        self.opcodes = frozenset(opcodes)
        self.prefixes = frozenset(prefixes)
        self.modrm = frozenset(modrm)

    def matches(self, map_: int, opcode: int, prefix: int, modrm: int) -> bool:
        return (
            map_ == self.map
            and opcode in self.opcodes
            and prefix in self.prefixes
            and (not self.modrm or modrm in self.modrm)
        )


_ROWS = (
    _Row("rtm", 0, (0xC6, 0xC7)),
    _Row("wbnoinvd", 1, (0x09,), (PF3,)),
    _Row("sse4a", 1, (0x78, 0x79), (P66, PF2)),
    _Row("sse4a", 1, (0x2B,), (PF2, PF3)),
    _Row("vmx", 1, (0x78, 0x79), (NONE,)),
    _Row("vmx", 1, (0x01,), EVERY, (0xC1, 0xC2, 0xC3, 0xC4, 0xD4)),
    _Row("pconfig", 1, (0x01,), EVERY, (0xC5,)),
    _Row("sgx", 1, (0x01,), EVERY, (0xC0, 0xCF, 0xD7)),
    _Row("rtm", 1, (0x01,), EVERY, (0xD5, 0xD6)),
    _Row("svm", 1, (0x01,), EVERY, range(0xD8, 0xE0)),
    _Row("tsxldtrk", 1, (0x01,), (PF2,), (0xE8, 0xE9)),
    _Row("serialize", 1, (0x01,), (NONE,), (0xE8,)),
    _Row("mwaitx", 1, (0x01,), EVERY, (0xFA, 0xFB)),
    _Row("clzero", 1, (0x01,), EVERY, (0xFC,)),
    _Row("rdpru", 1, (0x01,), EVERY, (0xFD,)),
    _Row("smx", 1, (0x37,)),
    _Row("waitpkg", 1, (0xAE,), (P66, PF2, PF3), (0xF0,)),
    _Row("rdseed", 1, (0xC7,), (NONE, P66), (0xF8,)),
    _Row("xsaves", 1, (0xC7,), EVERY, (0x18, 0x28)),
    _Row("xsavec", 1, (0xC7,), EVERY, (0x20,)),
    _Row("vmx", 1, (0xC7,), EVERY, (0x30, 0x38)),
    _Row("vmx", 2, (0x80, 0x81), (P66,)),
    _Row("invpcid", 2, (0x82,), (P66,)),
    _Row("sha_ni", 2, range(0xC8, 0xCE), (NONE,)),
    _Row("gfni", 2, (0xCF,), (P66,)),
    _Row("movdir64b", 2, (0xF8,), (P66,)),
    _Row("enqcmd", 2, (0xF8,), (PF2, PF3)),
    _Row("movdiri", 2, (0xF9,), (NONE,)),
    _Row("sha_ni", 3, (0xCC,), (NONE,)),
    _Row("gfni", 3, (0xCE, 0xCF), (P66,)),
)


def feature_of(code: bytes, bits: int) -> str | None:
    """The CPUID feature (as in :mod:`kvmpy.x86.cpuid_features`) that an instruction the translator doesn't know belongs
    to; None: no processor the translator could stand for has it.

    ``code``: up to 15 bytes from its first on; ``bits``: of the code it stands in, 16, 32 or 64.
    """
    sign = ffi.new("uint64_t *")
    lib.kvmpy_rescue_decode(code, len(code), bits, sign, ffi.new("uint8_t *"))
    map_, prefix, opcode, modrm = (int(sign[0]) >> shift & 0xFF for shift in (32, 24, 16, 8))
    if map_ & VECTOR:
        escape = next((byte for byte in code if byte in (0xC4, 0xC5, 0x62, 0x8F)), 0xC4)
        return {0x62: AVX512, 0x8F: XOP}.get(escape, AVX)
    for row in _ROWS:
        if row.matches(map_, opcode, prefix, modrm):
            return row.feature
    return None
