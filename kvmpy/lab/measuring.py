"""Measuring: all kinds in turn, round after round, each beside its floor, until the samples or the time are enough.

Interleaving is what makes numbers comparable: a host that gets slower for a minute does so for every kind and for the
floor. A machine lives for one round only, so that rounds also differ in where memory happened to lie; those that take
long to make and to end (interrupt controllers do) live for two.
"""

from __future__ import annotations

import os
import random
import time

from kvmpy.errors import EngineError, KvmpyError, UsageError
from kvmpy.lab import guests
from kvmpy.lab.clock import choose_cpus, tsc_frequency
from kvmpy.lab.fingerprint import fingerprint, load_average
from kvmpy.lab.histogram import Histogram
from kvmpy.lab.kinds import Guest, Kind, choose
from kvmpy.lab.statistics import median
from kvmpy.lab.trial import PARTS, Bench, Round, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from kvmpy.lab.trial import FloorTrial, GuestTrial, LoopTrial

    Trial = GuestTrial | LoopTrial | FloorTrial
    Progress = Callable[[float, str], None]

ENGINES = ("kvm", "translate")
SECONDS, QUICK_SECONDS = 45.0, 6.0
ROUNDS, QUICK_ROUNDS, FEWEST_ROUNDS = 60, 7, 3
SAMPLES = 10_000
SHORTEST, WORTH = 0.002, 0.008
"""Seconds of a round: the least, and what is worth setting a machine up for."""
LONGEST_TIME = 86_400.0
SLOW_TO_OPEN = 0.006
"""Seconds to make and end a machine beyond which it is kept for GENERATION rounds."""
GENERATION = 2
SLICE, SLICES = 0.003, 8
"""Seconds of a slice at least, and how many a round has at most."""


class Settings:
    """What to measure and how long.

    ``kinds``    names, groups or patterns; none: all
    ``engines``  "kvm", "translate"; none: all that work
    ``seconds``  for everything, more than 0
    ``rounds``   2 or more; fewer are done where there are many kinds for the time
    ``samples``  of a kind after which its rounds end early
    ``cpu``      to measure on; None: the least busy
    ``handicap`` TSC cycles that the C handlers of kinds *_user spin
    ``floor``    whether the floor is measured
    ``kernel``   whether KVM's tracepoints are read, in rounds of their own
    ``keep``     whether every machine lives for the whole run, to save time

    Raises UsageError.
    """

    def __init__(
        self,
        kinds: Iterable[str] = (),
        engines: Sequence[str] = (),
        seconds: float = SECONDS,
        rounds: int = ROUNDS,
        samples: int = SAMPLES,
        cpu: int | None = None,
        handicap: int = 0,
        floor: bool = True,
        kernel: bool = False,
        keep: bool = False,
    ) -> None:
        if not 0 < seconds <= LONGEST_TIME:
            raise UsageError(
                f"a time budget of {seconds:g} seconds: more than 0, and at most {LONGEST_TIME:g}"
            )
        if not 2 <= rounds <= 10_000:
            raise UsageError(
                f"{rounds} rounds: 2 to 10000; without a second round nobody knows how much they differ"
            )
        if samples < 1:
            raise UsageError(f"{samples} samples: at least 1")
        if not 0 <= handicap < 1 << 32:
            raise UsageError(f"a handicap of {handicap} cycles: 0 to {(1 << 32) - 1}")
        for engine in engines:
            if engine not in ENGINES:
                raise UsageError(f"engine {engine!r}: one of {', '.join(ENGINES)}")
        self.kinds = choose(kinds)
        self.engines = tuple(dict.fromkeys(engines))
        self.seconds = seconds
        self.rounds = rounds
        self.samples = samples
        self.cpu = cpu
        self.handicap = handicap
        self.floor = floor
        self.kernel = kernel
        self.keep = keep


class Result:
    """All rounds of one kind on one engine; ``rounds`` are dicts of what is worth keeping of each,
    ``trouble`` is why the last one that failed did."""

    def __init__(self, kind: Kind, engine: str) -> None:
        self.kind = kind
        self.engine = engine
        self.total, self.interrupted, self.floor = Histogram(), Histogram(), Histogram()
        self.parts = {name: Histogram() for name in PARTS}
        self.rounds: list[dict[str, Any]] = []
        self.counters: dict[str, int] = {}
        self.stats: dict[str, int] = {}
        self.trace: dict[str, Any] | None = None
        self.floor_missing = ""
        self.trouble = ""

    def add(self, number: int, round_: Round, floor: Round | None, ratios: Sequence[float]) -> None:
        """Round ``number``, with the floor's beside it, and the ratio of the two in each slice."""
        self.total.add(round_.total)
        self.interrupted.add(round_.interrupted)
        for name in PARTS:
            self.parts[name].add(round_.parts[name])
        for into, values in ((self.counters, round_.counters), (self.stats, round_.stats)):
            for key, value in values.items():
                into[key] = into.get(key, 0) + value
        kept: dict[str, Any] = {
            "round": number,
            "samples": round_.total.total,
            "interrupted": round_.interrupted.total,
        }
        if round_.total.total:
            kept.update(p50=round_.total.percentile(50), mean=round(round_.total.mean, 1))
        if floor is not None and floor.total.total:
            self.floor.add(floor.total)
            kept["floor_p50"] = floor.total.percentile(50)
        if ratios:
            kept["ratio"] = round(median(ratios), 6)
        self.rounds.append(kept)


class Laboratory:
    """One run: settings in, results out, in whatever way it ends.

    ``results``      in the order of the kinds
    ``unavailable``  (kind's name, engine, reason)
    ``warnings``     what makes the numbers worth less
    ``partial``      "" or why it ended early
    """

    def __init__(self, settings: Settings, progress: Progress = lambda share, what: None) -> None:
        self.settings = settings
        self.results: list[Result] = []
        self.unavailable: list[tuple[str, str, str]] = []
        self.warnings: list[str] = []
        self.partial = ""
        self.rounds_done = 0
        self.clock: dict[str, Any] = {}
        self.fingerprint: dict[str, Any] = {}
        self.load: dict[str, Any] = {}
        self.cpu: int | None = None
        self.other_cpu: int | None = None
        self.benches: dict[str, Bench] = {}
        self.began = time.time()
        self.elapsed = 0.0
        self._progress = progress
        self._end = 0.0
        self._planned = settings.rounds
        self._allowed = os.sched_getaffinity(0)
        self._kept: dict[tuple[str, str, bool], Any] = {}
        self._slow: set[tuple[str, str, bool]] = set()

    def run(self) -> None:
        """Measures. Ctrl-C ends it early, and what there is stays. Raises EngineError if no engine works."""
        began = time.monotonic()
        self._end = began + self.settings.seconds
        self.load["before"] = load_average()
        self.fingerprint = fingerprint()
        self.clock = tsc_frequency()
        self._choose_cpu()
        try:
            self._open_engines()
            self._try_all()
            self._all_rounds()
            if self.settings.kernel:
                self._trace()
        except KeyboardInterrupt:
            self.partial = "interrupted by Ctrl-C"
        finally:
            self._forget()
            os.sched_setaffinity(0, self._allowed)
            self.load["after"] = load_average()
            self.elapsed = time.monotonic() - began
        self._drop_empty()

    def _drop_empty(self) -> None:
        """What no round measured is said to be missing, with the reason."""
        for result in self.results:
            if not result.rounds:
                reason = result.trouble or self.partial or "no round came to it"
                self.unavailable.append((result.kind.name, result.engine, reason))
        self.results = [result for result in self.results if result.rounds]

    # Where

    def _choose_cpu(self) -> None:
        first, self.other_cpu = choose_cpus(self.settings.cpu, self._allowed)
        try:
            os.sched_setaffinity(0, {first})
        except OSError as error:
            self.warnings.append(f"not pinned to CPU {first}: {error.strerror}: expect more spread")
            return
        self.cpu = first
        if self.other_cpu is None:
            self.warnings.append("only one CPU is allowed: other threads and this one take turns")

    def _open_engines(self) -> None:
        from kvmpy.machine.engine import open_engine

        reasons = []
        for engine in self.settings.engines or ENGINES:
            try:
                open_engine(engine)
                self.benches[engine] = self._bench(engine)
            except (EngineError, Unavailable) as error:
                if engine in self.settings.engines:
                    raise EngineError(f"engine {engine}: {error}") from None
                reasons.append(f"{engine}: {error}")
                self.unavailable += [(kind.name, engine, str(error)) for kind in self.settings.kinds]
        if not self.benches:
            raise EngineError("no engine works here: " + "; ".join(reasons))

    def _bench(self, engine: str) -> Bench:
        """The engine with the time stamp that works on it: where ring 0 is emulated, without LFENCE."""
        technique = str(self.fingerprint["kvm"]["technique"])
        emulated = engine == "kvm" and technique == "PVM"
        reason = ""
        for stamp in ("plain", "fenced") if emulated else ("fenced", "plain"):
            image = guests.LabImage(stamp)
            bench = Bench(
                engine, technique, image, self.clock["hz"], self.cpu, self.other_cpu, self.settings.handicap
            )
            try:
                with choose(["clock"])[0].open(bench) as trial:
                    trial.round(SHORTEST, 1)
                return bench
            except Unavailable as error:
                reason = reason or str(error)
        raise Unavailable(f"its guests can't take time stamps: {reason}")

    # Rounds

    def _pin(self, kind: Kind) -> None:
        if self.cpu is None:
            return
        others = set() if kind.pinned or self.other_cpu is None else {self.other_cpu}
        os.sched_setaffinity(0, {self.cpu} | others)

    def _try_all(self) -> None:
        """Which kinds can be measured: one chunk of each, thrown away."""
        kinds = [(kind, engine) for engine in self.benches for kind in self.settings.kinds]
        for number, (kind, engine) in enumerate(kinds):
            self._progress(0.1 * number / len(kinds), f"trying {kind.name}")
            reason = self._try(kind, self.benches[engine])
            if reason:
                self.unavailable.append((kind.name, engine, reason))
                continue
            result = Result(kind, engine)
            self.results.append(result)
            if kind.floor is not None and engine == "kvm" and self.settings.floor:
                result.floor_missing = self._try(kind, self.benches[engine], floor=True)
            else:
                result.floor_missing = "there is no floor for this kind"

    def _try(self, kind: Kind, bench: Bench, floor: bool = False) -> str:
        """Why it can't be measured, or ""; what is slow to set up is kept."""
        reason = kind.needs(bench) if kind.needs else ""
        if reason:
            return reason
        self._pin(kind)
        began = time.monotonic()
        try:
            trial = kind.open_floor(bench) if floor else kind.open(bench)
            spent = time.monotonic() - began
            try:
                trial.round(SHORTEST, 1)
            except BaseException:
                trial.close()
                raise
        except KvmpyError as error:
            return str(error)
        slow = spent > SLOW_TO_OPEN or (isinstance(kind.what, Guest) and kind.what.irqchip != "none")
        if slow or self.settings.keep:
            self._kept[kind.name, bench.engine, floor] = trial
            self._slow.add((kind.name, bench.engine, floor))
        else:
            trial.close()
        return ""

    def _forget(self) -> None:
        """Ends the machines that were kept: the next ones lie elsewhere in memory."""
        while self._kept:
            self._kept.popitem()[1].close()

    def _trial(self, kind: Kind, bench: Bench, floor: bool) -> Trial:
        """A machine for the round: one that was kept, or a new one."""
        key = (kind.name, bench.engine, floor)
        trial: Trial | None = self._kept.get(key)
        if trial is None:
            trial = kind.open_floor(bench) if floor else kind.open(bench)
            if key in self._slow:
                self._kept[key] = trial
        return trial

    def _all_rounds(self) -> None:
        """As many rounds as there is time for. How long setting up takes shows in the first; the rest is planned."""
        settings, source = self.settings, random.Random(0)
        rounds, slot = settings.rounds, SHORTEST
        slots = sum(2 - bool(result.floor_missing) for result in self.results)
        for done in range(settings.rounds):
            now = time.monotonic()
            left = self._end - now
            if done == 0:
                slot = max(left / (slots * rounds) * 0.7, SHORTEST) if slots else 0.0
            elif (left <= 0 and done >= FEWEST_ROUNDS) or done >= rounds:
                break
            order = list(self.results)
            source.shuffle(order)
            if done % GENERATION == 0 and done and not settings.keep:
                self._forget()
            for number, result in enumerate(order):
                share = (done + number / len(order)) / rounds
                self._progress(
                    0.1 + 0.9 * min(share, 1.0), f"round {done + 1} of {rounds}: {result.kind.name}"
                )
                self._round(result, slot, done)
            self.rounds_done = done + 1
            spent = time.monotonic() - now
            rounds, slot = self._plan(done + 1, rounds, slot, slots, spent)
            self._planned = rounds

    def _plan(self, done: int, rounds: int, slot: float, slots: int, spent: float) -> tuple[int, float]:
        """How many rounds there will be, and how long a slot of the next one is."""
        left = self._end - time.monotonic()
        set_up = max(spent - slot * slots, 0.0)
        least = SHORTEST if self.settings.keep else WORTH
        for wanted in range(rounds, done, -1):
            free = left / (wanted - done) - set_up
            if free >= slots * least or wanted <= FEWEST_ROUNDS:
                return wanted, min(max(free / max(slots, 1), SHORTEST), 4 * slot)
        return max(done, FEWEST_ROUNDS), slot

    def _round(self, result: Result, seconds: float, number: int) -> None:
        """One kind beside its floor, in slices that take turns: what lasts longer than a slice slows both."""
        kind, bench = result.kind, self.benches[result.engine]
        samples = (self.settings.samples - result.total.total) // max(self._planned - number, 1)
        self._pin(kind)
        trials: list[Trial] = []
        try:
            for floor in (False,) if result.floor_missing else (False, True):
                trials.append(self._trial(kind, bench, floor))
            before = trials[0].stats()
            rounds, ratios = self._slices(kind, trials, seconds, number, samples)
            after = trials[0].stats()
        except KvmpyError as error:
            result.trouble = str(error)
            self.warnings.append(f"{kind.name} on {result.engine}, round {number + 1}: {error}")
            return
        finally:
            for trial in trials:
                if trial not in self._kept.values():
                    trial.close()
        rounds[0].stats = {name: value - before.get(name, 0) for name, value in after.items()}
        result.add(number, rounds[0], rounds[1] if len(rounds) > 1 else None, ratios)

    def _slices(
        self, kind: Kind, trials: list[Trial], seconds: float, number: int, samples: int
    ) -> tuple[list[Round], list[float]]:
        """Rounds of all trials, of ``samples`` if there is time; the ratio of the first two's medians in each slice."""
        slices = min(max(int(seconds / SLICE), 1), SLICES) if len(trials) > 1 else 1
        most = max(-(-samples // (getattr(kind.what, "chunk", 1) * slices)), 1)
        rounds, ratios = [Round() for _ in trials], []
        for at in range(slices):
            medians = [0] * len(trials)
            order = range(len(trials)) if (at + number) % 2 else reversed(range(len(trials)))
            for which in order:
                found = trials[which].round(seconds / slices, most, warm=at > 0)
                medians[which] = found.total.percentile(50) if found.total.total else 0
                rounds[which].add(found)
            if len(trials) > 1 and all(medians):
                ratios.append(medians[0] / medians[1])
        return rounds, ratios

    # The kernel's view

    def _trace(self) -> None:
        from kvmpy.lab.kernel_view import Tracing, TracingUnavailable

        try:
            with Tracing() as tracing:
                for number, result in enumerate(self.results):
                    self._progress(number / len(self.results), f"tracing {result.kind.name}")
                    if result.engine == "kvm":
                        self._trace_one(result, tracing)
        except TracingUnavailable as error:
            self.warnings.append(f"no tracepoints: {error}")

    def _trace_one(self, result: Result, tracing: Any) -> None:
        kind, bench = result.kind, self.benches[result.engine]
        self._pin(kind)
        try:
            with kind.open(bench) as trial:
                tracing.start()
                trial.round(SHORTEST * 5, 8)
                result.trace = tracing.stop()
        except KvmpyError as error:
            self.warnings.append(f"{kind.name}, traced: {error}")
