"""Runs a program that may hang: follows what it writes, ends it when it is silent or slow, and only it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

_POLL = 0.05
_LONGEST_LINE = 1 << 20
Line = Callable[[str, float], None]


class Limits(NamedTuple):
    """In seconds: the longest without a new line, the longest in all, the longest to end when done."""

    silence: float
    total: float
    ending: float = 20


class End(NamedTuple):
    """After how many ``seconds`` it was gone; ``why`` it had to be ended, empty if it ended by itself."""

    seconds: float
    why: str


class Follower:
    """The lines of a file that is being written; ``take`` gets each, and when it came."""

    def __init__(self, path: Path, take: Line) -> None:
        self._path, self._take = path, take
        self._file: IO[bytes] | None = None
        self._part = b""

    def poll(self, now: float) -> bool:
        """Read what is new. Returns whether there was anything."""
        if self._file is None:
            if not self._path.exists():
                return False
            self._file = self._path.open("rb")
        data = self._file.read()
        *lines, self._part = (self._part + data).split(b"\n")
        if len(self._part) > _LONGEST_LINE:
            lines, self._part = [*lines, self._part], b""
        for line in lines:
            self._take(line.decode(errors="replace").rstrip("\r"), now)
        return bool(data)

    def close(self, now: float) -> None:
        """Read the rest, an unfinished line too."""
        self.poll(now)
        if self._part:
            self._take(self._part.decode(errors="replace"), now)
            self._part = b""
        if self._file is not None:
            self._file.close()


def follow(
    command: Sequence[str],
    files: Mapping[Path, Line],
    limits: Limits,
    *,
    output: Path,
    done: Callable[[], bool] = lambda: False,
    cancelled: Callable[[], bool] = lambda: False,
) -> End:
    """Run ``command`` until it ends or exceeds a limit, and hand over the lines of ``files`` as they come.

    Its standard output and errors go to the file ``output``, its standard input is empty. ``done`` says that
    nothing more is to come, ``cancelled`` that nobody waits any longer. OSError if the command can't be started.
    """
    start = time.monotonic()
    followers = [Follower(path, take) for path, take in files.items()]
    with output.open("wb") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        why = _watch(process, followers, limits, done, cancelled, start)
    finally:
        end(process)
        seconds = time.monotonic() - start
        for follower in followers:
            follower.close(seconds)
    return End(seconds, why)


def _watch(
    process: subprocess.Popen[bytes],
    followers: Sequence[Follower],
    limits: Limits,
    done: Callable[[], bool],
    cancelled: Callable[[], bool],
    start: float,
) -> str:
    heard, over = 0.0, None
    while process.poll() is None:
        now = time.monotonic() - start
        for follower in followers:
            if follower.poll(now):
                heard = now
        if cancelled():
            return f"cancelled after {now:.0f} s"
        if now > limits.total:
            return f"ended after {now:.0f} s, the limit for a run"
        if now - heard > limits.silence:
            return f"ended after {now - heard:.0f} s without a sign of life"
        if done():
            over = now if over is None else over
            if now - over > limits.ending:
                return ""  # it has said all it had to say; that it can't switch itself off is no failure
        time.sleep(_POLL)
    return ""


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program started in a session of its own, and what it started. Does nothing if it has ended."""
    if process.poll() is not None and not _group_alive(process.pid):
        return
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        if process.returncode is not None and not _group_alive(process.pid):
            return


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
