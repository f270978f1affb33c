"""The command line: thin over the library, one command a file.

Exit statuses: 0 to 119 the guest's own (0 for a plain halt), 1 the host couldn't write what it should, 2 bad usage
or bad image, 3 no usable engine, 120 the guest crashed, 124 the time or the number of exits was up, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys

import click

import kvmpy
from kvmpy.errors import EngineError, KvmpyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HOST_ERROR, USAGE, NO_ENGINE, CRASH, LIMIT, INTERRUPTED = 1, 2, 3, 120, 124, 130

COMMANDS = {
    "run": "Run a guest image.",
    "images": "List the bundled guests.",
    "info": "Say what this host can do, and what would help it do more.",
}


class Commands(click.Group):
    """Imports a command's module when the command is used: starting up costs only what is needed."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = __import__(f"kvmpy.cli.{name}", fromlist=["command"])
        command: click.Command = module.command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(context, args)
        except click.UsageError:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(COMMANDS)}"
            raise click.UsageError(f"no such command {args[0]!r}: {hint}") from None


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(kvmpy.__version__, message="kvmpy %(version)s")
def commands() -> None:
    """Run guests on KVM, and handle their exits in Python."""


def main(args: list[str] | None = None) -> None:
    """The ``kvmpy`` program: every error is one line on stderr and an exit status."""
    try:
        status = commands.main(args, prog_name="kvmpy", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        status = _explain(error)
        _silence_stdout()
    sys.exit(status if isinstance(status, int) else 0)


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
    if isinstance(error, click.ClickException):
        return _complain(error.format_message(), USAGE)
    if isinstance(error, EngineError):
        return _complain(str(error), NO_ENGINE)
    if isinstance(error, KvmpyError):
        return _complain(str(error), USAGE)
    if isinstance(error, BrokenPipeError):
        return _complain("stdout was closed before all output was written", HOST_ERROR)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", HOST_ERROR)
    if isinstance(error, MemoryError):
        return _complain(f"the host has no memory left {error}".rstrip(), HOST_ERROR)
    what = f"{type(error).__name__}: {error}"
    return _complain(f"a bug in kvmpy, please report it (KVMPY_DEBUG=1 shows where): {what}", HOST_ERROR)


def _complain(message: str, status: int) -> int:
    line = " ".join(message.split())
    try:
        os.write(2, f"kvmpy: {line}\n".encode(errors="backslashreplace"))
    except OSError:
        pass  # nobody reads it
    return status


def _silence_stdout() -> None:
    """What is left in stdout's buffer can't be written any more; Python mustn't try again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
