"""Hypothesis strategies: CPU states valid for a mode, instruction sequences, and scripts of accesses to devices.

    @pytest.mark.kvmpy
    @given(code=instructions("long"), state=cpu_states("long"))
    def test_halts(code, state):
        with new_guest() as guest:
            guest.code(code.code, **state)
            assert guest.run().exits == [Hlt()]

Everything shrinks towards the plain: few instructions, small numbers, the mode's usual state. The report of a failing
test has the last example as a test of its own. (Hypothesis runs a test many times with the same fixtures, so each
example needs a guest of its own: ``new_guest()``.)
"""

from __future__ import annotations

from hypothesis import strategies as st

from kvmpy.errors import UsageError
from kvmpy.testing import instructions as x86
from kvmpy.testing.instructions import USABLE, WIDTHS, Sequence
from kvmpy.testing.machine import USUAL_PLACE
from kvmpy.x86.registers import REGISTERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence as Several
    from typing import Any

    from hypothesis.strategies import DrawFn, SearchStrategy

    from kvmpy.devices.device import Device

GENERAL = tuple(name for name in REGISTERS if name not in ("rip", "rflags", "rsp"))
ARITHMETIC_FLAGS = 0x8D5
DIRECTION = 1 << 10
RFLAGS_FIXED = 2


def _check(mode: str) -> None:
    if mode not in WIDTHS:
        raise UsageError(f"mode {mode!r}: one of {', '.join(WIDTHS)}")


def values(bits: int) -> SearchStrategy[int]:
    """Numbers of that many bits, with those where carries and signs change more often than chance would have it."""
    edges = {0, 1, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1}
    edges |= {1 << at for at in range(8, bits, 8)} | {(1 << at) - 1 for at in range(8, bits, 8)}
    return st.one_of(st.sampled_from(sorted(edges)), st.integers(0, (1 << bits) - 1))


def registers(mode: str) -> SearchStrategy[dict[str, int]]:
    """General registers by name, as wide as the mode's; all but the stack pointer. R8 to R15 in long mode only."""
    _check(mode)
    names = GENERAL if mode == "long" else tuple(name for name in GENERAL if not name[1:].isdigit())
    return st.dictionaries(st.sampled_from(names), values(WIDTHS[mode]))


def flags() -> SearchStrategy[int]:
    """RFLAGS with any status flags and direction; interrupts off."""
    return st.integers(0, ARITHMETIC_FLAGS | DIRECTION).map(
        lambda bits: RFLAGS_FIXED | (bits & (ARITHMETIC_FLAGS | DIRECTION))
    )


@st.composite
def cpu_states(
    draw: DrawFn, mode: str, *, rings: Several[int] = (0,), at: int | None = None
) -> dict[str, Any]:
    """States that a processor accepts in ``mode``, as keywords for ``guest.code`` and ``guest.asm``.

    General registers, flags, stack; in real mode also any CS that reaches the code, and the data segments; ``rings``
    (0 and 3) from which one is chosen in protected and long mode. ``at`` is where the code goes, by default the mode's
    usual place. :func:`kvmpy.testing.entry.build` makes an entry state of it.
    """
    _check(mode)
    place = USUAL_PLACE[mode] if at is None else at
    state: dict[str, Any] = {"mode": mode, "at": place}
    regs = draw(registers(mode))
    status = draw(flags())
    state["regs"] = {**regs, "rflags": status} if status != RFLAGS_FIXED else regs
    if mode == "real":
        state["cs"] = draw(st.integers(max(0, (place - 0xFFFF + 15) >> 4), place >> 4))
        state["ds"] = state["es"] = draw(st.integers(0, 0xFFFF))
        state["sp"] = draw(st.integers(0, 0xFFFF))
        return state
    ring = draw(st.sampled_from(sorted(rings)))
    return {**state, "ring": ring} if ring else state


def instructions(
    mode: str, *, most: int = 12, ports: Several[int] = (), only: Several[str] = ()
) -> SearchStrategy[Sequence]:
    """Up to ``most`` integer instructions that any processor and engine runs alike; a ``hlt`` follows them.

    ``ports`` (0 to 0xff) that they may read and write. ``only`` restricts to some mnemonics.
    """
    _check(mode)
    register = st.sampled_from(USABLE)
    one = {
        **{name: _two(x86.alu, name, mode, register) for name in x86.ALU},
        **{name: st.builds(x86.unary, st.just(name), st.just(mode), register) for name in x86.UNARY},
        **{name: st.builds(x86.shift, st.just(name), st.just(mode), st.just(1), register) for name in x86.SHIFTS},
        "mov": st.builds(x86.move, st.just(mode), register, register),
        "xchg": st.builds(x86.exchange, st.just(mode), register, register),
        "load": st.builds(x86.load, st.just(mode), register, values(WIDTHS[mode])),
    }  # fmt: skip
    if ports:
        one["out"] = st.builds(x86.out, st.sampled_from(sorted(ports)))
        one["in"] = st.builds(x86.read_port, st.sampled_from(sorted(ports)))
    for name in only:
        if name not in one:
            raise UsageError(f"instruction {name!r}: one of {', '.join(one)}")
    chosen = [st.just(x86.NOP), *(one[name] for name in only or one)]
    return st.builds(Sequence, st.just(mode), st.lists(st.one_of(chosen), max_size=most))


def _two(make: Any, name: str, mode: str, register: SearchStrategy[int]) -> SearchStrategy[x86.Instruction]:
    return st.builds(make, st.just(name), st.just(mode), register, register)


class Access:
    """A step of an exit script: a read, or a write of ``value``, of ``size`` bytes at ``offset``."""

    __slots__ = ("offset", "size", "value")

    def __init__(self, offset: int, size: int, value: int | None = None) -> None:
        self.offset = offset
        self.size = size
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Access) and repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Access({self.offset:#x}, {self.size}"
            + ("" if self.value is None else f", {self.value:#x}")
            + ")"
        )

    def on(self, device: Device) -> int | None:
        """Does it to a device, with no guest; what a read gave."""
        if self.value is None:
            return device.read(self.offset, self.size)
        device.write(self.offset, self.value, self.size)
        return None


def exit_scripts(
    length: int, *, sizes: Several[int] = (1, 2, 4), most: int = 20, writes: bool = True, reads: bool = True
) -> SearchStrategy[list[Access]]:
    """Up to ``most`` accesses to a device of ``length`` addresses, none beyond its end.

    Play one on a device with ``access.on(device)``, or through a guest with :func:`guest_code`.
    """
    fitting = [size for size in sizes if size <= length]
    if not fitting or not (writes or reads):
        raise UsageError(
            f"exit scripts for {length} addresses with sizes {list(sizes)}: there is no such access"
        )

    def accesses(size: int) -> SearchStrategy[Access]:
        value: SearchStrategy[int | None] = values(8 * size) if writes else st.none()
        if writes and reads:
            value = st.one_of(st.none(), value)
        return st.builds(Access, st.integers(0, length - size), st.just(size), value)

    return st.lists(st.sampled_from(fitting).flatmap(accesses), max_size=most)


def guest_code(script: Several[Access], port: int) -> bytes:
    """Long-mode code that does the accesses to ports from ``port`` on, then halts.

    What it reads it leaves in RAX until the next access. UsageError for an access of 8 bytes: ports have none.
    """
    code = b""
    for access in script:
        if access.size not in (1, 2, 4):
            raise UsageError(f"{access!r}: ports are read and written in 1, 2 or 4 bytes")
        code += b"\xba" + (port + access.offset).to_bytes(4, "little")  # mov $port, %edx
        if access.value is not None:
            code += b"\xb8" + access.value.to_bytes(4, "little")  # mov $value, %eax
        prefix = b"\x66" if access.size == 2 else b""
        code += prefix + bytes(((0xEC if access.value is None else 0xEE) | (access.size > 1),))
    return code + b"\xf4"
