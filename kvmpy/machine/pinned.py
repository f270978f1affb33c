"""Python's memory as C memory that stays where it is."""

from __future__ import annotations

from kvmpy._native import ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def pinned(memory: Any) -> Any:
    """A ``uint8_t *`` to a bytearray, memoryview, array or mapping, which can't go or be resized as long as it is held.

    What is held is the object that a memoryview shows: the cyclic garbage collector clears a memoryview whatever is
    exported from it, and CPython then crashes when the export ends. TypeError or BufferError if it can't be C memory.
    """
    if not isinstance(memory, memoryview):
        memory = memoryview(memory)
    whole = ffi.from_buffer(memory.obj)
    with ffi.from_buffer(memory) as part:
        address = ffi.cast("uint8_t *", part)

    def let_go(_: object, whole: Any = whole) -> None:
        """Nothing is to be done: this function holds it."""

    return ffi.gc(address, let_go)
