"""Small value classes without the import cost of ``dataclasses`` or ``typing`` (felt at start-up)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class Values:
    """Fields are the ``__slots__``: comparable, printable, copied with changes by `replace`."""

    __slots__: tuple[str, ...] = ()

    def asdict(self) -> dict[str, object]:
        """The fields by name, in the order of declaration."""
        return {name: getattr(self, name) for name in self.__slots__}

    def replace(self, **changes: object) -> Self:
        """A copy with the named fields changed; TypeError for a name that isn't a field."""
        return type(self)(**{**self.asdict(), **changes})

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={_show(getattr(self, name))}" for name in self.__slots__)
        return f"{type(self).__name__}({shown})"


class Record(Values):
    """`Values` that can't be changed once made, so they can be shared and used as keys."""

    __slots__: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} can't be changed; use replace({name}=…)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} can't be deleted")

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__slots__))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), tuple(getattr(self, name) for name in self.__slots__)


fill = object.__setattr__  # how a Record's __init__ sets its own fields


def _show(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value > 9:
        return hex(value)
    return repr(value)
