"""Writing down every exit of a machine, whoever handled it, and the list it becomes."""

from __future__ import annotations

from kvmpy._native import ffi
from kvmpy.testing import diff
from kvmpy.testing.exits import Exit, from_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.machine import Machine
    from kvmpy.machine.ring import Record

CAPACITY = 1024
MOST = 1 << 20
"""Exits kept; beyond it the oldest go."""


class ExitList(list[Exit]):
    """Exits in their order (of several vCPUs: by their time stamps).

    Compares with a list of patterns, in which ``...`` is any number of exits; on a mismatch the assertion shows both
    side by side.
    """

    machine: Machine | None = None
    """Where they come from, for reports."""

    def __eq__(self, other: object) -> bool:
        from kvmpy.testing.golden_trace import Golden

        if isinstance(other, Golden):
            return other.compare(self)
        return diff.matches(self, other) if isinstance(other, (list, tuple)) else NotImplemented

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return NotImplemented if equal is NotImplemented else not equal

    __hash__ = None

    def of(self, *kinds: type[Exit]) -> ExitList:
        """Only those of some classes: ``exits.of(Out, In)``."""
        return self._some([exit_ for exit_ in self if isinstance(exit_, kinds)])

    def at(self, *addresses: int) -> ExitList:
        """Only accesses to these ports, addresses or MSRs."""
        return self._some([exit_ for exit_ in self if getattr(exit_, "address", None) in addresses])

    def _some(self, chosen: list[Exit]) -> ExitList:
        some = ExitList(chosen)
        some.machine = self.machine
        return some


class Recorder:
    """Keeps every exit of a machine in the C loop's records until somebody wants to see them."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._records: list[Record] = []
        self.dropped = 0
        machine.log(CAPACITY, "lossless", sink=self.drain)
        self._rings = machine.rings

    @property
    def active(self) -> bool:
        """False once the machine is closed, or the test has set up rings of its own."""
        return self._machine.rings is self._rings and self._rings[0].native != ffi.NULL

    def drain(self, cpu: Cpu) -> None:
        """Takes over what one vCPU's ring holds."""
        with self._machine.guard:
            self._records.extend(self._rings[cpu.index].records())

    def __len__(self) -> int:
        return self.dropped + len(self._records)

    def collect(self) -> None:
        """Takes over what the rings hold. Only between runs, or from the vCPU's own thread."""
        if not self.active:
            return
        several = len(self._machine.cpus) > 1
        for cpu in self._machine.cpus:
            self.drain(cpu)
        if several:
            self._records.sort(key=lambda record: record.tsc)
        if len(self._records) > MOST:
            self.dropped += len(self._records) - MOST
            del self._records[:-MOST]

    def exits(self, first: int = 0, end: int | None = None) -> ExitList:
        """The exits from number ``first`` on, counted over all runs."""
        stop = len(self) if end is None else end
        found = ExitList(
            from_record(record)
            for record in self._records[max(first - self.dropped, 0) : max(stop - self.dropped, 0)]
        )
        found.machine = self._machine
        return found

    def last(self, vcpu: int, count: int) -> list[Record]:
        """The last records of one vCPU."""
        found: list[Record] = []
        for record in reversed(self._records):
            if record.vcpu == vcpu:
                found.append(record)
                if len(found) == count:
                    break
        return found[::-1]
