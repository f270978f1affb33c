"""The serial line of a guest under test: what it said, what it is told, and waiting for words."""

from __future__ import annotations

from kvmpy.errors import UsageError
from kvmpy.testing.problems import SerialError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from re import Match, Pattern
    from typing import Any

    Expected = str | bytes | Pattern[str] | Pattern[bytes]

SHOWN = 400


class SerialLine:
    """``text`` and ``data`` are all that the guest has sent.

    ``expect`` searches behind what the last ``expect`` found and runs the guest as long as it takes.
    """

    def __init__(self, run: Callable[[float | None], Any], stop: Callable[[], object]) -> None:
        self._run = run
        self._stop = stop
        self._data = bytearray()
        self._at = 0
        self._wanted: Pattern[bytes] | None = None
        self._early = bytearray()
        self.receive: Callable[[bytes], object] = self._early.extend

    @property
    def data(self) -> bytes:
        """All bytes so far."""
        return bytes(self._data)

    @property
    def text(self) -> str:
        """The same as text; what isn't UTF-8 shows as a replacement character."""
        return self._data.decode("utf-8", "replace")

    def __str__(self) -> str:
        return self.text

    def connect(self, receive: Callable[[bytes], object]) -> None:
        """The device that takes what is sent; what was sent before it came goes first."""
        self.receive = receive
        if self._early:
            receive(bytes(self._early))

    def feed(self, data: bytes) -> None:
        """The guest sent ``data``: the serial device calls this."""
        self._data += data
        if self._wanted is not None and self._wanted.search(self._data, self._at):
            self._stop()

    def send(self, data: str | bytes) -> None:
        """Types ``data``; the guest reads it when it runs. UsageError if it is neither text nor bytes."""
        if not isinstance(data, (str, bytes, bytearray, memoryview)):
            raise UsageError(f"send() takes text or bytes, not {data!r}")
        self.receive(data.encode() if isinstance(data, str) else bytes(data))

    def expect(self, pattern: Expected, timeout: float | None = None) -> Match[bytes]:
        """Runs the guest until it has sent ``pattern``: text as it is, or a compiled regular expression.

        Returns the match; its groups are bytes. Raises SerialError if the guest ends without, or after ``timeout``
        seconds (None: the test's own limit, and then GuestHang); UsageError for a ``pattern`` that is none.
        """
        __tracebackhide__ = True
        wanted = _compile(pattern)
        found = wanted.search(self._data, self._at)
        if found is None:
            self._wanted = wanted
            try:
                how = self._run(timeout)
            finally:
                self._wanted = None
            found = wanted.search(self._data, self._at)
            if found is None:
                raise SerialError(self._missing(pattern, how, timeout))
        self._at = found.end()
        return found

    def _missing(self, pattern: Expected, how: Any, timeout: float | None) -> str:
        words = pattern if isinstance(pattern, (str, bytes)) else pattern.pattern
        rest = self._data[self._at :].decode("utf-8", "replace")
        if len(rest) > SHOWN:
            rest = "…" + rest[-SHOWN:]
        end = f"{timeout} s were over" if how.reason == "timeout" else f"the run ended ({how.reason})"
        return f"the guest never sent {words!r}: {end}; it sent {rest!r}" + (
            " since the last match" if self._at else ""
        )


def _compile(pattern: Expected) -> Pattern[bytes]:
    import re

    if isinstance(pattern, str):
        return re.compile(re.escape(pattern.encode()))
    if isinstance(pattern, bytes):
        return re.compile(re.escape(pattern))
    if not isinstance(pattern, re.Pattern):
        raise UsageError(f"expect() takes text, bytes or a compiled regular expression, not {pattern!r}")
    if isinstance(pattern.pattern, bytes):
        return re.compile(pattern.pattern, pattern.flags)
    return re.compile(pattern.pattern.encode(), pattern.flags & ~re.UNICODE)
