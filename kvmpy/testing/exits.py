"""VM exits as values: what a guest did, and patterns to compare it with.

``Out(0x80, 3)`` is both. In a pattern what isn't given matches anything, and any value may be :data:`ANY`, a range or a
set: ``In({0x60, 0x64})``, ``Out(range(0x3f8, 0x400), ANY, size=1)``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from typing import Any, TypeAlias

    Value: TypeAlias = "int | range | AbstractSet[int] | _Anything"


class _Anything:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ANY"


ANY = _Anything()
"""Matches any value; in a list of exits, any one exit. ``...`` in such a list matches any number of them."""


def _matches(one: object, other: object) -> bool:
    if isinstance(one, int) and isinstance(other, (range, set, frozenset)):
        return one in other
    if isinstance(other, int) and isinstance(one, (range, set, frozenset)):
        return other in one
    return one == other


def _show(value: object) -> str:
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, range) and value.step == 1:
        return f"range({value.start:#x}, {value.stop:#x})"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(hex(each) for each in sorted(value)) + "}"
    return repr(value)


class Exit:
    """One VM exit that is no access: ``Exit("NMI")``, by KVM's name of the reason.

    ``vcpu`` is the index of the vCPU; like all values it matches anything where it isn't given.
    """

    __slots__ = ("name", "vcpu")
    FIELDS: tuple[str, ...] = ("name",)

    def __init__(self, name: str, *, vcpu: Value = ANY) -> None:
        self.name = name
        self.vcpu = vcpu

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Exit):
            return NotImplemented
        if type(self) is not type(other):
            return False
        return all(_matches(getattr(self, name), getattr(other, name)) for name in (*self.FIELDS, "vcpu"))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Exit({self.name!r})"


class _Plain(Exit):
    """A reason that has a class of its own."""

    __slots__ = ()
    FIELDS = ()
    REASON = ""

    def __init__(self, *, vcpu: Value = ANY) -> None:
        super().__init__(self.REASON, vcpu=vcpu)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Hlt(_Plain):
    """The guest halted (not seen with interrupt controllers in the kernel: there it sleeps)."""

    __slots__ = ()
    REASON = "HLT"


class Shutdown(_Plain):
    """A triple fault."""

    __slots__ = ()
    REASON = "SHUTDOWN"


class FailEntry(_Plain):
    """The hardware refused the guest's state."""

    __slots__ = ()
    REASON = "FAIL_ENTRY"


class InternalError(_Plain):
    """The engine gave up: an instruction it can't emulate, mostly."""

    __slots__ = ()
    REASON = "INTERNAL_ERROR"


class Debug(_Plain):
    """A breakpoint or a single step."""

    __slots__ = ()
    REASON = "DEBUG"


class SystemEvent(_Plain):
    """The guest asked for a shutdown or reset through the hypervisor's own way."""

    __slots__ = ()
    REASON = "SYSTEM_EVENT"


class _Access(Exit):
    """``value``: what was written, or what the guest read."""

    __slots__ = ("address", "size", "value")
    FIELDS = ("address", "value", "size")
    USUAL_SIZE = 1

    def __init__(self, address: Value, value: Value = ANY, size: Value = ANY, *, vcpu: Value = ANY) -> None:
        super().__init__(type(self).__name__, vcpu=vcpu)
        self.address = address
        self.value = value
        self.size = size

    def __repr__(self) -> str:
        parts = [_show(self.address)]
        if self.value is not ANY:
            parts.append(_show(self.value))
        if self.size is not ANY and self.size != self.USUAL_SIZE:
            parts.append(f"size={self.size}" if isinstance(self.size, int) else f"size={_show(self.size)}")
        return f"{type(self).__name__}({', '.join(parts)})"


class Out(_Access):
    """``Out(port, value, size)``: a write to a port. String I/O is one exit an element."""

    __slots__ = ()

    @property
    def port(self) -> Value:
        """The port, 0 to 0xffff."""
        return self.address


class In(_Access):
    """``In(port, value, size)``: a read of a port."""

    __slots__ = ()

    @property
    def port(self) -> Value:
        """The port, 0 to 0xffff."""
        return self.address


class MmioWrite(_Access):
    """``MmioWrite(address, value, size)``: a write outside RAM, at a guest physical address."""

    __slots__ = ()
    USUAL_SIZE = 4


class MmioRead(_Access):
    """``MmioRead(address, value, size)``: a read outside RAM."""

    __slots__ = ()
    USUAL_SIZE = 4


class Wrmsr(_Access):
    """``Wrmsr(index, value)``: a write to an MSR that left the guest."""

    __slots__ = ()
    USUAL_SIZE = 8


class Rdmsr(_Access):
    """``Rdmsr(index, value)``: a read of an MSR that left the guest."""

    __slots__ = ()
    USUAL_SIZE = 8


class Hypercall(_Access):
    """``Hypercall(number, answer)``."""

    __slots__ = ()
    USUAL_SIZE = 8


ACCESSES: tuple[tuple[type[_Access], type[_Access]], ...] = (
    (In, Out),
    (MmioRead, MmioWrite),
    (Rdmsr, Wrmsr),
    (Hypercall, Hypercall),
)
"""By the number of the address space: (read, write)."""

PLAIN: dict[str, type[_Plain]] = {kind.REASON: kind for kind in _Plain.__subclasses__()}
ALL: list[type[Exit]] = [Exit, *PLAIN.values(), *(kind for pair in ACCESSES for kind in pair)]
KINDS: dict[str, type[Exit]] = {kind.__name__: kind for kind in ALL}


def from_record(record: Any) -> Exit:
    """The exit that a ring's record (:mod:`kvmpy.machine.ring`) tells of."""
    from kvmpy.machine.exits import name_of
    from kvmpy.machine.ring import NOT_AN_ACCESS

    if record.space != NOT_AN_ACCESS:
        access: type[_Access] = ACCESSES[record.space][bool(record.is_write)]
        return access(record.address, record.value, record.size, vcpu=record.vcpu)
    name = name_of(int(record.address))
    plain = PLAIN.get(name)
    return plain(vcpu=record.vcpu) if plain is not None else Exit(name, vcpu=record.vcpu)


def parse(text: str) -> Exit:
    """An exit from its ``repr``, wildcards included. ValueError for what isn't one."""
    import ast

    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"{text!r} isn't an exit such as Out(0x80, 0x3)") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in KINDS:
        raise ValueError(f"{text!r} isn't an exit: one of {', '.join(KINDS)}")
    try:
        values: Sequence[Any] = [_value(argument) for argument in call.args]
        named: dict[str, Any] = {str(word.arg): _value(word.value) for word in call.keywords}
        return KINDS[call.func.id](*values, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r}: {error}") from None


def _value(node: Any) -> object:
    import ast

    if isinstance(node, ast.Name) and node.id == "ANY":
        return ANY
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        return range(*(ast.literal_eval(each) for each in node.args))
    return ast.literal_eval(node)
