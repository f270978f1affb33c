"""What owns a file descriptor or a mapping: a context manager, closed once, missed when forgotten."""

from __future__ import annotations

from _warnings import (
    warn,  # what warnings.warn is: it needs no import, and works while the interpreter goes down
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class Closing:
    """A context manager around :meth:`close`."""

    __slots__ = ()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what is owned. A second time does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Owned(Closing):
    """An object that owns what the host must get back: when it goes while still open, that is a ResourceWarning."""

    __slots__ = ()

    def __del__(self) -> None:
        try:
            if self.closed:
                return
            text = f"{self!r} was never closed"
        except AttributeError:
            return  # it never came to own anything
        self.close()  # first: the warning may be an error
        warn(text, ResourceWarning, 2, self)
