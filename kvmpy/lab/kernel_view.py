"""KVM's own view of exits: its tracepoints kvm_exit and kvm_entry, read through tracefs.

A tracing instance of its own is made and removed again: what others trace is left alone. Source: the kernel's
Documentation/trace/ftrace.rst.
"""

from __future__ import annotations

import os
import re

from kvmpy.errors import KvmpyError
from kvmpy.lab.histogram import Histogram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
EVENTS = ("kvm_exit", "kvm_entry", "kvm_userspace_exit")
BUFFER_KB = 4096
LINE = re.compile(
    r"\s(?P<time>\d+(?:\.\d+)?): (?P<event>kvm_exit|kvm_entry|kvm_userspace_exit): (?P<text>.*)"
)
REASON = re.compile(r"\breason (?P<reason>\S+)")


class TracingUnavailable(KvmpyError):
    """tracefs can't be used; the message names the file and the remedy."""


class Tracing:
    """A tracing instance for this thread's exits; a context manager. Raises TracingUnavailable."""

    def __init__(self, places: tuple[str, ...] = PLACES) -> None:
        self._home = _find(places)
        self._path = os.path.join(self._home, "instances", f"kvmpy-{os.getpid()}")
        try:
            os.mkdir(self._path)
        except OSError as error:
            raise TracingUnavailable(f"{self._path} can't be made: {error.strerror}: run as root") from None
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        self._write("tracing_on", "0")
        self._write("trace_clock", "x86-tsc")
        self._write("buffer_size_kb", str(BUFFER_KB))
        for event in EVENTS:
            self._write(f"events/kvm/{event}/enable", "1")

    def _write(self, name: str, text: str) -> None:
        path = os.path.join(self._path, name)
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
        except OSError as error:
            raise TracingUnavailable(f"{path} can't be written: {error.strerror}") from None

    def start(self) -> None:
        """Forgets what was traced and begins."""
        import threading

        self._write("trace", "")
        self._write("set_event_pid", str(threading.get_native_id()))
        self._write("tracing_on", "1")

    def stop(self) -> dict[str, Any]:
        """Ends tracing; what :func:`summarise` makes of it."""
        self._write("tracing_on", "0")
        path = os.path.join(self._path, "trace")
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return summarise(file.read())
        except OSError as error:
            raise TracingUnavailable(f"{path} can't be read: {error.strerror}") from None

    def close(self) -> None:
        """Removes the instance."""
        try:
            os.rmdir(self._path)
        except OSError:
            pass  # it ends with the next reboot, and traces nothing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def _find(places: tuple[str, ...]) -> str:
    reasons = []
    for place in places:
        path = os.path.join(place, "events", "kvm", "kvm_exit")
        try:
            os.listdir(path)
        except OSError as error:
            reasons.append(f"{path}: {error.strerror}")
            continue
        return place
    remedy = "sudo mount -t tracefs tracefs /sys/kernel/tracing, and run as root"
    raise TracingUnavailable(f"{'; '.join(reasons)}: {remedy}")


def summarise(text: str) -> dict[str, Any]:
    """What the trace of one kind says. Times are TSC cycles (trace_clock x86-tsc).

    ``exits``       how many, by the hardware's reason
    ``user_space``  how many went on to user space, by KVM's reason
    ``kernel``      from kvm_exit to the next kvm_entry, by reason: the kernel, and user space where it came to that
    ``guest``       from kvm_entry to the next kvm_exit

    Where KVM emulates a whole ring it never enters the guest, and there are no kvm_exit and kvm_entry.
    """
    exits: dict[str, int] = {}
    user_space: dict[str, int] = {}
    kernel: dict[str, Histogram] = {}
    guest = Histogram()
    reason, left, entered = "", 0, 0
    for line in text.splitlines():
        found = LINE.search(line)
        if not found:
            continue
        now = int(float(found["time"])) if "." in found["time"] else int(found["time"])
        said = REASON.search(found["text"])
        why = said["reason"] if said else "unknown"
        if found["event"] == "kvm_userspace_exit":
            user_space[why] = user_space.get(why, 0) + 1
        elif found["event"] == "kvm_exit":
            reason = why
            exits[reason] = exits.get(reason, 0) + 1
            if entered and now >= entered:
                guest.record(now - entered)
            left = now
        elif left:
            kernel.setdefault(reason, Histogram()).record(max(now - left, 0))
            left, entered = 0, now
        else:
            entered = now
    return {
        "exits": exits,
        "user_space": user_space,
        "kernel": {name: histogram.summary() for name, histogram in kernel.items()},
        "guest": guest.summary() if guest.total else None,
    }
