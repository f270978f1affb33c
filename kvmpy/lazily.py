"""Packages whose names are imported when they are first used, so that starting up pays for nothing else."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def exports(
    package: str, home: Mapping[str, str], names: dict[str, object]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a package (PEP 562): ``home`` is name to module, ``names`` its globals()."""

    def get(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found: object = getattr(__import__(home[name], fromlist=[name]), name)
        names[name] = found
        return found

    def listing() -> list[str]:
        return sorted({*names, *home})

    return get, listing
