"""Writing down every exit of a machine, whoever handled it, and the list it becomes."""

from __future__ import annotations

from kvmpy._native import ffi
from kvmpy.machine.ring import RECORD_SIZE, Record
from kvmpy.testing import diff
from kvmpy.testing.exits import Exit, from_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.machine import Machine

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
        self._blocks: list[memoryview] = []
        self._count = 0
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
            block = self._rings[cpu.index].drain()
            if not block:
                return
            self._blocks.append(block)
            self._count += len(block) // RECORD_SIZE
            while self._count > MOST and len(self._blocks) > 1:
                gone = len(self._blocks.pop(0)) // RECORD_SIZE
                self._count -= gone
                self.dropped += gone

    def __len__(self) -> int:
        return self.dropped + self._count

    def collect(self) -> None:
        """Takes over what the rings hold. Only between runs, or from the vCPU's own thread."""
        if self.active:
            for cpu in self._machine.cpus:
                self.drain(cpu)

    def _records(self) -> list[Record]:
        """All records; of several vCPUs by their time, which keeps runs apart, for one ends before the next begins."""
        found = [record for block in self._blocks for record in records_of(block)]
        if len(self._rings) > 1:
            found.sort(key=lambda record: record.tsc)
        return found

    def exits(self, first: int = 0, end: int | None = None) -> ExitList:
        """The exits from number ``first`` on, counted over all runs."""
        stop = len(self) if end is None else end
        records = self._records()[max(first - self.dropped, 0) : max(stop - self.dropped, 0)]
        found = ExitList(from_record(record) for record in records)
        found.machine = self._machine
        return found

    def last(self, vcpu: int, count: int) -> list[Record]:
        """The last records of one vCPU."""
        found: list[Record] = []
        for block in reversed(self._blocks):
            found[:0] = [record for record in records_of(block) if record.vcpu == vcpu]
            if len(found) >= count:
                break
        return found[-count:]


def records_of(block: memoryview) -> list[Record]:
    """Drained records as objects."""
    array = ffi.from_buffer("struct kvmpy_record[]", block)
    return [Record(array[at]) for at in range(len(block) // RECORD_SIZE)]
