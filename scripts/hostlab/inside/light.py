"""Runs the hardware suite where pytest takes longer to import than the tests take to run.

    python -m scripts.hostlab.inside.light tests/hosts [-k EXPRESSION] [-x] [PATH::TEST]

What a test module may use is what tests/hosts/suite.py offers; this runner and pytest give it the same
meaning.
"""

from __future__ import annotations

import gc
import importlib
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import facts
from .limit import time_limit
from .report import Reporter, shorten
from .selection import Selection, parse

_MOST_LOCAL = 200  # characters of a local variable's value in a failure


class Outcome(NamedTuple):
    word: str
    reason: str = ""


class Runner:
    """Runs the tests of the modules in ``directory`` one after the other."""

    def __init__(self, directory: Path, selection: Selection, reporter: Reporter) -> None:
        sys.path.insert(0, str(directory))
        self._suite: Any = importlib.import_module("suite")
        self._directory = directory
        self._selection = selection
        self._reporter = reporter
        self._unraisable: list[str] = []
        self.counts = {"pass": 0, "fail": 0, "skip": 0}

    def run(self) -> int:
        """Run what is selected. Status as pytest's: 0 all passed, 1 some failed, 5 there was none."""
        found = facts.gather()
        self._reporter.say("host", facts=found)
        # an object that was forgotten, or an error that nobody could be told, is a failure, as with pytest
        warnings.simplefilter("error", ResourceWarning)
        sys.unraisablehook = self._take_unraisable
        for file in sorted(self._directory.glob("test_*.py")):
            if not self._module(file, found) or self._enough():
                break
        count = sum(self.counts.values())
        status = 1 if self.counts["fail"] else 0 if count else 5
        self._reporter.say("end", status=status, count=count)
        print(", ".join(f"{number} {word}" for word, number in self.counts.items()), flush=True)
        return status

    def _module(self, file: Path, found: dict[str, object]) -> bool:
        """Run a module's tests. Returns whether to go on."""
        wanted = [name for name in self._selection.names if name.split("::")[0] == file.name]
        if self._selection.names and not wanted:
            return True
        try:
            module = importlib.import_module(file.stem)
        except Exception as error:
            self._begin(file.name)
            self._end(file.name, Outcome("fail", self._describe(error)), 0.0)
            return True
        gc.freeze()  # what has been imported isn't looked at after every test: that took longer than the tests
        for name, function, case in self._suite.tests_of(module):
            if self._selection.wants(name):
                self._begin(name)
                began = time.monotonic()
                outcome = self._call(function, case, found)
                self._end(name, outcome, time.monotonic() - began)
                if self._enough():
                    return False
        return True

    def _call(self, function: Any, case: tuple[object, ...], found: dict[str, object]) -> Outcome:
        outcome = Outcome("pass")
        try:
            with time_limit():
                self._suite.call(function, case, found)
        except self._suite.Skip as reason:
            outcome = Outcome("skip", str(reason))
        except Exception as error:
            outcome = Outcome("fail", self._describe(error))
        gc.collect()
        if self._unraisable:
            text = "\n".join([outcome.reason, *self._unraisable])
            outcome = Outcome("fail", text.strip())
            self._unraisable.clear()
        return outcome

    def _enough(self) -> bool:
        return 0 < self._selection.most_failures <= self.counts["fail"]

    def _begin(self, name: str) -> None:
        self._reporter.say("start", test=name)

    def _end(self, name: str, outcome: Outcome, seconds: float) -> None:
        self.counts[outcome.word] += 1
        self._reporter.say(
            "test", test=name, outcome=outcome.word, reason=shorten(outcome.reason), seconds=round(seconds, 3)
        )
        print(f"{outcome.word} {name}", flush=True)

    def _describe(self, error: BaseException) -> str:
        """The traceback, and what the variables of the test were where it failed."""
        lines = traceback.format_exception(error)
        frame = error.__traceback__
        last = None
        while frame is not None:
            code = frame.tb_frame.f_code
            if Path(code.co_filename).parent == self._directory and code.co_name != "<module>":
                last = frame
            frame = frame.tb_next
        if last is not None:
            variables = last.tb_frame.f_locals.items()
            lines += [f"    {name} = {_short(value)}\n" for name, value in variables]
        return "".join(lines).rstrip()

    def _take_unraisable(self, event: Any) -> None:
        self._unraisable.append(f"unraisable in {event.object!r}: {event.exc_value!r}")


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        return f"(no repr: {error!r})"
    return text if len(text) <= _MOST_LOCAL else f"{text[:_MOST_LOCAL]}..."


def main(words: Sequence[str]) -> int:
    directory = Path(words[0]).resolve()
    try:
        selection = parse(words[1:], words[0].strip("/"))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 4
    with Reporter() as reporter:
        return Runner(directory, selection, reporter).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
