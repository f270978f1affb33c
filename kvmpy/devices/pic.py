"""PIC: the two 8259A interrupt controllers of a PC, ports 0x20-0x21 and 0xa0-0xa1.

Source: Intel's 8259A data sheet (231468). Where a PC's chipset and KVM differ from the chip of 1976, this follows
them: an edge stays a request when its line falls before the CPU asks for it, and ELCR says line by line which are
level triggered.
"""

from __future__ import annotations

from kvmpy.devices.device import ByteDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COMMAND, DATA = 0, 1  # A0

ICW1 = 0x10
ICW1_ICW4 = 0x01
ICW1_SINGLE = 0x02
ICW1_LEVEL = 0x08

ICW4_AEOI = 0x02
ICW4_FULLY_NESTED = 0x10  # special fully nested mode

OCW3 = 0x08
OCW3_READ = 0x02
OCW3_READ_ISR = 0x01
OCW3_POLL = 0x04
OCW3_SET_MASK_MODE = 0x40
OCW3_MASK_MODE = 0x20

OCW2_LEVEL = 0x07
OCW2_EOI, OCW2_SPECIFIC_EOI = 1, 3  # what bits 5..7 stand for
OCW2_ROTATE_AEOI_OFF, OCW2_ROTATE_AEOI_ON = 0, 4
OCW2_ROTATE_EOI, OCW2_SET_PRIORITY, OCW2_ROTATE_SPECIFIC_EOI = 5, 6, 7

SPURIOUS = 7
POLL_PENDING = 0x80
CASCADE = 2  # the master's input that the slave's output is wired to

# The word that the initialisation sequence waits for.
READY, WANT_ICW2, WANT_ICW3, WANT_ICW4 = range(4)


class Pic8259(ByteDevice):
    """One 8259A: eight inputs, one output. Two ports: A0 = 0 (ICW1, OCW2, OCW3; IRR, ISR or the poll word) and
    A0 = 1 (ICW2-4, OCW1; the mask).

    ``output(level)`` is called when INT changes. ``cascade`` is the input where another 8259A sits (master),
    None for a slave. Bytes that only make sense with other hardware (buffered mode, MCS-80 mode) are kept out.
    """

    name = "pic"
    LENGTH = 2
    FIELDS = {
        "lines": 0xFF,
        "elcr": 0xFF,
        "irr": 0xFF,
        "isr": 0xFF,
        "imr": 0xFF,
        "base": range(0, 0xF9, 8),
        "lowest": 7,
        "step": WANT_ICW4,
        "icw1": 0x1F,
        "icw4": 0x1F,
        "read_isr": bool,
        "poll": bool,
        "special_mask": bool,
        "rotate_aeoi": bool,
    }

    def __init__(self, output: Callable[[bool], None] | None = None, cascade: int | None = None) -> None:
        self._output = output
        self._cascade = cascade
        self.lines = 0
        self.elcr = 0
        self._level = False
        self._power_up()

    def _power_up(self) -> None:
        self.irr = self.isr = self.imr = 0
        self.base = 0
        self.lowest = 7
        self.step = READY
        self.icw1 = self.icw4 = 0
        self.read_isr = self.poll = self.special_mask = self.rotate_aeoi = False

    # The lines

    @property
    def output(self) -> bool:
        """INT: a request that the mask and the priorities let through."""
        return self._level

    @property
    def level_triggered(self) -> int:
        """The inputs that ask for as long as they are up: all with ICW1's LTIM, else ELCR's."""
        return 0xFF if self.icw1 & ICW1_LEVEL else self.elcr

    def set_line(self, number: int, level: bool) -> None:
        """Input ``number`` (0-7) goes up or down."""
        bit = 1 << number
        before = self.lines
        self.lines = before | bit if level else before & ~bit
        if self.level_triggered & bit:
            self.irr = self.irr | bit if level else self.irr & ~bit
        elif level and not before & bit:
            self.irr |= bit
        self._update()

    def set_elcr(self, levels: int) -> None:
        """The inputs that ELCR makes level triggered, a bit each."""
        changed = (self.elcr ^ levels) & 0xFF
        self.elcr = levels & 0xFF
        # A line that becomes level triggered asks if it is up now; one that becomes edge triggered waits for its edge.
        self.irr = (self.irr & ~changed) | (changed & self.level_triggered & self.lines)
        self._update()

    # What the CPU does

    def acknowledge(self) -> int:
        """INTA: the input (0-7) whose turn it is. 7 and nothing in service if the request is gone (spurious)."""
        number = self._turn()
        if number is None:
            return SPURIOUS
        bit = 1 << number
        if not self.level_triggered & bit:
            self.irr &= ~bit
        if not self.icw4 & ICW4_AEOI:
            self.isr |= bit
        elif self.rotate_aeoi:
            self.lowest = number
        self._update()
        return number

    def read_byte(self, offset: int) -> int:
        """The poll word if one was asked for (OCW3), else IRR or ISR, or the mask."""
        if self.poll:
            return self._poll()
        if offset == DATA:
            return self.imr
        return self.isr if self.read_isr else self.irr

    def _poll(self) -> int:
        """The read takes the place of the INTA."""
        self.poll = False
        if self._turn() is None:
            return SPURIOUS
        return POLL_PENDING | self.acknowledge()

    def write_byte(self, offset: int, value: int) -> None:
        """An initialisation or operation command word; which one is in its bits and in what came before."""
        if offset == DATA:
            self._write_data(value)
        elif value & ICW1:
            self._initialise(value)
        elif value & OCW3:
            self._ocw3(value)
        else:
            self._ocw2(value >> 5, value & OCW2_LEVEL)
        self._update()

    def _initialise(self, value: int) -> None:
        """ICW1: the data sheet's points a to f; edges seen so far are forgotten, levels are not."""
        self.icw1 = value & 0x1F
        self.imr = self.isr = 0
        self.irr = self.lines & self.level_triggered
        self.lowest = 7
        self.special_mask = self.read_isr = self.poll = self.rotate_aeoi = False
        self.icw4 = 0
        self.step = WANT_ICW2

    def _write_data(self, value: int) -> None:
        if self.step == WANT_ICW2:
            self.base = value & 0xF8
            self.step = WANT_ICW3 if not self.icw1 & ICW1_SINGLE else self._after_icw3()
        elif self.step == WANT_ICW3:
            self.step = self._after_icw3()  # a PC's wires are what they are
        elif self.step == WANT_ICW4:
            self.icw4 = value & 0x1F
            self.step = READY
        else:
            self.imr = value

    def _after_icw3(self) -> int:
        return WANT_ICW4 if self.icw1 & ICW1_ICW4 else READY

    def _ocw2(self, command: int, number: int) -> None:
        if command in (OCW2_EOI, OCW2_ROTATE_EOI):
            found = self._highest(self._serving())
            if found is None:
                return
            self.isr &= ~(1 << found)
            if command == OCW2_ROTATE_EOI:
                self.lowest = found
        elif command in (OCW2_SPECIFIC_EOI, OCW2_ROTATE_SPECIFIC_EOI):
            self.isr &= ~(1 << number)
            if command == OCW2_ROTATE_SPECIFIC_EOI:
                self.lowest = number
        elif command == OCW2_SET_PRIORITY:
            self.lowest = number
        elif command in (OCW2_ROTATE_AEOI_OFF, OCW2_ROTATE_AEOI_ON):
            self.rotate_aeoi = command == OCW2_ROTATE_AEOI_ON

    def _ocw3(self, value: int) -> None:
        if value & OCW3_SET_MASK_MODE:
            self.special_mask = bool(value & OCW3_MASK_MODE)
        self.poll = bool(value & OCW3_POLL)
        if value & OCW3_READ:
            self.read_isr = bool(value & OCW3_READ_ISR)

    # Priorities

    def _rank(self, number: int) -> int:
        """0 for the input of the highest priority."""
        return (number - self.lowest - 1) & 7

    def _highest(self, inputs: int) -> int | None:
        best = [number for number in range(8) if inputs >> number & 1]
        return min(best, key=self._rank) if best else None

    def _serving(self) -> int:
        """What is in service and counts: not what is masked in special mask mode."""
        return self.isr & ~self.imr if self.special_mask else self.isr

    def _turn(self) -> int | None:
        """The input that may interrupt now: requested, not masked, above all that is in service."""
        asking = self.irr & ~self.imr
        if not asking:
            return None
        number = self._highest(asking)
        serving = self._serving()
        if self.icw4 & ICW4_FULLY_NESTED and self._cascade is not None:
            serving &= ~(1 << self._cascade)  # the slave may have something more urgent than what it is at
        above = self._highest(serving)
        assert number is not None
        if above is not None and self._rank(above) <= self._rank(number):
            return None
        return number

    def _update(self) -> None:
        level = self._turn() is not None
        if level != self._level:
            self._level = level
            if self._output is not None:
                self._output(level)

    def reset(self) -> None:
        """As switched on: nothing masked, requested or in service, vectors from 0 on. The lines stay as they are."""
        self._power_up()
        self._update()

    def _restored(self) -> None:
        self._level = self._turn() is not None
        if self._output is not None:
            self._output(self._level)


class PicPair:
    """Master and slave as a PC wires them: lines 0-7 and 8-15, the slave's output on the master's input 2.

    ``output(level)`` is the master's INT. :meth:`acknowledge` is the CPU's INTA cycle.
    """

    def __init__(self, output: Callable[[bool], None] | None = None) -> None:
        self.master = Pic8259(output, CASCADE)
        self.slave = Pic8259(lambda level: self.master.set_line(CASCADE, level))
        self.master.name, self.slave.name = "pic-master", "pic-slave"

    @property
    def output(self) -> bool:
        """INT as the CPU sees it."""
        return self.master.output

    def set_line(self, number: int, level: bool) -> None:
        """Line ``number``, 0-15; there is no line 2."""
        if number >= 8:
            self.slave.set_line(number - 8, level)
        elif number != CASCADE:
            self.master.set_line(number, level)

    def set_elcr(self, levels: int) -> None:
        """The sixteen bits of ports 0x4d0 and 0x4d1."""
        self.master.set_elcr(levels & ~(1 << CASCADE))
        self.slave.set_elcr(levels >> 8)

    def acknowledge(self) -> int:
        """The vector (0-255) for the CPU. A request that is gone gives the spurious vector of IRQ 7 or IRQ 15."""
        number = self.master.acknowledge()
        # Spurious or not can't be told apart for input 2: it is never the spurious one.
        if number == CASCADE and not self.master.icw1 & ICW1_SINGLE:
            return self.slave.base | self.slave.acknowledge()
        return self.master.base | number

    def reset(self) -> None:
        """Both as switched on."""
        self.slave.reset()
        self.master.reset()

    def state(self) -> dict[str, dict[str, object]]:
        """Both chips' states."""
        return {"master": self.master.state(), "slave": self.slave.state()}

    def restore(self, state: Mapping[str, Mapping[str, object]]) -> None:
        """Continue from what :meth:`state` gave."""
        self.slave.restore(state["slave"])
        self.master.restore(state["master"])
