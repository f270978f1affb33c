"""The command line: thin over the library, one command a file.

Exit statuses: 0 to 119 the guest's own (0 for a plain halt), 1 the host couldn't write what it should, 2 bad usage
or bad image, 3 no usable engine, 120 the guest crashed, 124 the time or the number of exits was up, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys

import click

import kvmpy
from kvmpy.cli.lazy import Lazy
from kvmpy.cli.messages import open_standard_files, say, write
from kvmpy.errors import EngineError, ImageError, KvmpyError, UsageError

HOST_ERROR, USAGE, NO_ENGINE, CRASH, LIMIT, INTERRUPTED = 1, 2, 3, 120, 124, 130

COMMANDS = {
    "run": ("kvmpy.cli.run", "Run a guest image."),
    "images": ("kvmpy.cli.images", "List the bundled guests."),
    "info": ("kvmpy.cli.info", "Say what this host can do, and what would help it do more."),
    "bench": ("kvmpy.cli.bench", "Measure what exits cost."),
    "compare": (
        "kvmpy.cli.compare",
        "Run a guest on every engine in step, or compare ways of doing the same.",
    ),
}


@click.command(cls=Lazy, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(kvmpy.__version__, message="kvmpy %(version)s")
def commands() -> None:
    """Run guests on KVM, and handle their exits in Python."""


def main(args: list[str] | None = None) -> None:
    """The ``kvmpy`` program: every error is one line on stderr and an exit status."""
    open_standard_files()
    try:
        status = _invoke(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
    except BaseException as error:
        status = _explain(error)
        _silence_stdout()
    sys.exit(status)


def _invoke(args: list[str]) -> int:
    """What click's own main() does, but errors come out as they are."""
    with commands.make_context("kvmpy", args) as context:
        status = commands.invoke(context)
    return status if isinstance(status, int) else 0


def _explain(error: BaseException) -> int:
    """One line about what went wrong; the exit status that goes with it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if os.environ.get("KVMPY_DEBUG") and not isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED
    if type(error).__name__ == "NoArgsIsHelpError":  # a name that click 8.1 doesn't have
        write(f"{error}\n")
        return USAGE
    message, status = _describe(error)
    say(message)
    return status


def _describe(error: BaseException) -> tuple[str, int]:
    """The line for an error, and its status."""
    if isinstance(error, click.ClickException):
        return error.format_message(), USAGE
    if isinstance(error, EngineError):
        return str(error), NO_ENGINE
    if isinstance(error, (UsageError, ImageError)):
        return str(error), USAGE
    if isinstance(error, KvmpyError):
        return str(error), HOST_ERROR
    if isinstance(error, BrokenPipeError):
        return f"{error.filename or 'stdout'} was closed before all output was written", HOST_ERROR
    if isinstance(error, OSError):
        return f"{error.filename or 'stdout'}: {error.strerror or error}", HOST_ERROR
    if isinstance(error, MemoryError):
        return f"the host has no memory left {error}".rstrip(), HOST_ERROR
    if isinstance(error, ImportError) and "_native" in str(error):
        return f"kvmpy isn't built for this Python ({error}): install it again", NO_ENGINE
    what = f"{type(error).__name__}: {error}"
    return f"a bug in kvmpy, please report it (KVMPY_DEBUG=1 shows where): {what}", HOST_ERROR


def _silence_stdout() -> None:
    """What is left in stdout's buffer can't be written any more; Python mustn't try again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
