"""Local APIC (xAPIC): the page at 0xfee00000 that each CPU has for itself, and the messages between APICs.

Source: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)".
"""

from __future__ import annotations

from kvmpy.devices.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import ClassVar

ID, VERSION, TPR, APR, PPR, EOI, RRD, LDR, DFR, SVR = (
    0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0,
)  # fmt: skip
ISR, TMR, IRR, ESR = 0x100, 0x180, 0x200, 0x280
ICR_LOW, ICR_HIGH = 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVT_COUNTERS, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x320, 0x380, 0x10)
INITIAL_COUNT, CURRENT_COUNT, DIVIDE = 0x380, 0x390, 0x3E0

VERSION_VALUE = 0x14 | 5 << 16  # integrated, six LVT entries
SVR_ENABLED = 0x100
LVT_MASKED = 1 << 16
LVT_REMOTE_IRR = 1 << 14
LVT_LEVEL = 1 << 15
TIMER_MODE_SHIFT = 17
ONE_SHOT, PERIODIC, TSC_DEADLINE = range(3)
LVT_WRITABLE = {
    LVT_TIMER: 0x7_00FF, LVT_THERMAL: 0x1_07FF, LVT_COUNTERS: 0x1_07FF, LVT_LINT0: 0x1_A7FF, LVT_LINT1: 0x1_A7FF,
    LVT_ERROR: 0x1_00FF,
}  # fmt: skip
LVT_NAMES = {
    LVT_TIMER: "lvt_timer", LVT_THERMAL: "lvt_thermal", LVT_COUNTERS: "lvt_counters", LVT_LINT0: "lvt_lint0",
    LVT_LINT1: "lvt_lint1", LVT_ERROR: "lvt_error",
}  # fmt: skip

ESR_SEND_VECTOR, ESR_RECEIVE_VECTOR, ESR_REGISTER = 0x20, 0x40, 0x80
FIXED, LOWEST, SMI, NMI, INIT, STARTUP, EXTINT = 0, 1, 2, 4, 5, 6, 7
ICR_LOGICAL, ICR_LEVEL, ICR_TRIGGER_LEVEL = 1 << 11, 1 << 14, 1 << 15
ICR_WRITABLE = 0x000C_CFFF
TO_DESTINATION, TO_SELF, TO_ALL, TO_OTHERS = range(4)
LEVEL_TRIGGERED = 1
"""In :attr:`Message.flags`."""
DEASSERT = 2
BROADCAST = 0xFF
ALL_VECTORS = (1 << 256) - 1
PERIOD_NS = 1
"""Nanoseconds of a tick of the timer before it is divided: a bus clock of 1 GHz, as KVM's."""
SHORTEST_NS = 10_000
"""Periods of the periodic timer are at least that long: nothing could be done between shorter ones."""


class Message:
    """An interrupt on its way: ``vector``, ``mode`` (delivery mode), ``destination`` (8 bits; ``logical``: by LDR
    and DFR), ``flags``."""

    __slots__ = ("destination", "flags", "logical", "mode", "vector")

    def __init__(self, vector: int, mode: int, destination: int, logical: bool, flags: int = 0) -> None:
        self.vector = vector
        self.mode = mode
        self.destination = destination
        self.logical = logical
        self.flags = flags

    def __repr__(self) -> str:
        kind = "logical" if self.logical else "physical"
        return (
            f"Message(vector {self.vector:#x}, mode {self.mode}, {kind} {self.destination:#x}, {self.flags})"
        )


class Lapic(Device):
    """One CPU's local APIC.

    ``clock()``     nanoseconds; the timer's
    ``attention()`` called when there may be something new for the CPU: see :attr:`pending`
    ``nmi()``       an NMI for the CPU
    ``send(message, shorthand)``  an interprocessor interrupt to others, or to all; to itself goes without it
    ``ended(vector)``  EOI of a level triggered interrupt, for the I/O APICs
    ``changed()``   :meth:`next_event` may give something else than before
    ``tsc()``, ``tsc_khz``  the guest's time stamp counter, for the TSC deadline; without it there is no such mode

    Registers are 32 bits, 16 bytes apart: reads within one's four bytes show a part of it, other reads give 0; writes
    other than of four bytes at the register are lost. At reset LINT0 lets the 8259's interrupts through, as firmware
    leaves the first CPU (MP specification 3.6.2, "virtual wire").
    """

    name = "lapic"
    LENGTH = 0x1000
    FIELDS = {
        "id": 0xFF,
        "tpr": 0xFF,
        "ldr": 0xFF,
        "dfr": 0xF,
        "svr": 0x3FF,
        "isr": ALL_VECTORS,
        "tmr": ALL_VECTORS,
        "irr": ALL_VECTORS,
        "esr": 0xFF,
        "errors": 0xFF,
        "icr": (1 << 64) - 1,
        **dict.fromkeys(LVT_NAMES.values(), 522239),
        "lint": 3,
        "initial_count": 0xFFFF_FFFF,
        "divide": 0xB,
        "tsc_deadline": (1 << 64) - 1,
        "remaining": (1 << 64) - 1,
    }

    def __init__(
        self,
        number: int,
        clock: Callable[[], int],
        attention: Callable[[], None] | None = None,
        *,
        nmi: Callable[[], None] | None = None,
        send: Callable[[Message, int], None] | None = None,
        ended: Callable[[int], None] | None = None,
        changed: Callable[[], None] | None = None,
        tsc: Callable[[], int] | None = None,
        tsc_khz: int = 0,
    ) -> None:
        self._number = number
        self._clock = clock
        self._attention = attention or _nothing
        self._nmi = nmi or _nothing
        self._send = send or _nowhere
        self._ended = ended or _unheard
        self._changed = changed or _nothing
        self._tsc = tsc
        self._tsc_khz = tsc_khz
        self.lint = 0  # levels of LINT0 and LINT1
        self._power_up()

    def _power_up(self) -> None:
        self.id = self._number
        self.tpr = self.ldr = 0
        self.dfr = 0xF
        self.svr = 0xFF
        self.isr = self.tmr = self.irr = 0
        self.esr = self.errors = 0
        self.icr = 0
        self.lvt_timer = self.lvt_thermal = self.lvt_counters = self.lvt_lint1 = self.lvt_error = LVT_MASKED
        self.lvt_lint0 = EXTINT << 8
        self.initial_count = self.divide = 0
        self.tsc_deadline = 0
        self._due: int | None = None  # when the timer goes off next, in ns of the clock

    # What the CPU sees

    @property
    def enabled(self) -> bool:
        """Switched on by SVR; otherwise it only takes NMI, INIT and the like, and lets ExtINT through."""
        return bool(self.svr & SVR_ENABLED)

    @property
    def accepts_extint(self) -> bool:
        """Whether what the 8259 has gets to the CPU by LINT0."""
        return not self.lvt_lint0 & LVT_MASKED and self.lvt_lint0 >> 8 & 7 == EXTINT

    @property
    def ppr(self) -> int:
        """Processor priority: of the task, or of what is in service."""
        serving = max(self.isr.bit_length() - 1, 0)
        return self.tpr if self.tpr >> 4 >= serving >> 4 else serving & 0xF0

    @property
    def pending(self) -> int:
        """The vector that may interrupt the CPU now; 0: none."""
        vector = self.irr.bit_length() - 1
        return vector if vector >> 4 > self.ppr >> 4 and self.enabled else 0

    @property
    def held_back(self) -> bool:
        """Whether it is the task priority alone that an interrupt waits for."""
        asks, serves = ((bits.bit_length() - 1) >> 4 for bits in (self.irr, self.isr))
        return asks > serves and asks <= self.tpr >> 4 and self.enabled

    def acknowledge(self) -> int:
        """The CPU takes the interrupt: its vector, or the spurious one if the request is gone."""
        vector = self.pending
        if not vector:
            return self.svr & 0xFF
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector
        return vector

    # Interrupts coming in

    def accept(self, message: Message) -> bool:
        """Takes a message that is for this APIC; whether it could."""
        mode, bit = message.mode, 1 << message.vector
        if mode == NMI:
            self._nmi()
            return True
        if mode not in (FIXED, LOWEST) or not self.enabled:
            return False
        if message.vector < 16:
            self._error(ESR_RECEIVE_VECTOR)
            return False
        self.irr |= bit
        self.tmr = self.tmr | bit if message.flags & LEVEL_TRIGGERED else self.tmr & ~bit
        self._look()
        return True

    def matches(self, message: Message) -> bool:
        """Whether the message's destination is this APIC (SDM, "Determining IPI Destination")."""
        destination = message.destination
        if destination == BROADCAST:
            return True
        if not message.logical:
            return destination == self.id
        if self.dfr == 0xF:
            return bool(destination & self.ldr)
        # Cluster model: the upper half is the cluster's number, the lower has a bit for each of its members.
        return self.dfr == 0 and destination >> 4 == self.ldr >> 4 and bool(destination & self.ldr & 0xF)

    def set_lint(self, pin: int, level: bool) -> None:
        """LINT0 or LINT1 goes up or down. ExtINT isn't taken here: see :attr:`accepts_extint`."""
        bit = 1 << pin
        rises = level and not self.lint & bit
        self.lint = self.lint | bit if level else self.lint & ~bit
        entry = (self.lvt_lint0, self.lvt_lint1)[pin]
        if entry >> 8 & 7 == EXTINT:
            if level:
                self._attention()
        elif rises or (level and entry & LVT_LEVEL):
            self._local(LVT_LINT0 + 0x10 * pin)

    def _local(self, which: int) -> None:
        """A source of the LVT asks."""
        entry: int = getattr(self, LVT_NAMES[which])
        if entry & (LVT_MASKED | LVT_REMOTE_IRR):
            return
        mode = FIXED if which in (LVT_TIMER, LVT_ERROR) else entry >> 8 & 7
        level = which in (LVT_LINT0, LVT_LINT1) and mode == FIXED and entry & LVT_LEVEL
        taken = self.accept(Message(entry & 0xFF, mode, 0, False, LEVEL_TRIGGERED if level else 0))
        if level and taken:
            setattr(self, LVT_NAMES[which], entry | LVT_REMOTE_IRR)

    def _error(self, bit: int) -> None:
        if not self.errors & bit:
            self.errors |= bit
            # The error's own vector may be one that can't be: that must not go round for ever.
            self._local(LVT_ERROR)

    # Registers

    def read(self, offset: int, size: int) -> int:
        """A register, or a part of one."""
        register, part = offset & ~0xF, offset & 0xF
        if part >= 4 or not 0 <= offset < self.LENGTH:
            return 0
        return (self._read(register) >> (8 * part)) & ((1 << (8 * size)) - 1)

    def _read(self, register: int) -> int:
        name = LVT_NAMES.get(register)
        if name is not None:
            value: int = getattr(self, name)
            return value
        for first, bits in ((ISR, self.isr), (TMR, self.tmr), (IRR, self.irr)):
            if first <= register < first + 0x80:
                return bits >> (2 * (register - first)) & 0xFFFF_FFFF
        if register == CURRENT_COUNT:
            return self.current_count
        if register in (APR, RRD, EOI):
            return 0
        plain = {
            ID: self.id << 24,
            VERSION: VERSION_VALUE,
            TPR: self.tpr,
            PPR: self.ppr,
            LDR: self.ldr << 24,
            DFR: self.dfr << 28 | 0xFFF_FFFF,
            SVR: self.svr,
            ESR: self.esr,
            ICR_LOW: self.icr & 0xFFFF_FFFF,
            ICR_HIGH: self.icr >> 32,
            INITIAL_COUNT: self.initial_count,
            DIVIDE: self.divide,
        }
        if register not in plain:
            self._error(ESR_REGISTER)
        return plain.get(register, 0)

    def write(self, offset: int, value: int, size: int) -> None:
        """A register, whole."""
        if size != 4 or offset & 0xF or not 0 <= offset < self.LENGTH:
            return
        value &= 0xFFFF_FFFF
        if offset in LVT_WRITABLE:
            self._write_lvt(offset, value)
        elif offset in self._writers:
            self._writers[offset](self, value)
        elif offset not in (VERSION, APR, PPR, RRD, CURRENT_COUNT) and not ISR <= offset < ESR:
            self._error(ESR_REGISTER)

    def _write_id(self, value: int) -> None:
        self.id = value >> 24

    def _write_tpr(self, value: int) -> None:
        self.tpr = value & 0xFF
        self._look()

    def _write_eoi(self, value: int) -> None:
        vector = self.isr.bit_length() - 1
        if vector < 0:
            return
        bit = 1 << vector
        self.isr &= ~bit
        if self.tmr & bit:
            for which in (LVT_LINT0, LVT_LINT1):
                self._end_local(which, vector)
            self._ended(vector)
        self._look()

    def _end_local(self, which: int, vector: int) -> None:
        name = LVT_NAMES[which]
        entry = getattr(self, name)
        if entry & LVT_REMOTE_IRR and entry & 0xFF == vector:
            setattr(self, name, entry & ~LVT_REMOTE_IRR)
            if self.lint >> (which == LVT_LINT1) & 1:
                self._local(which)

    def _write_ldr(self, value: int) -> None:
        self.ldr = value >> 24

    def _write_dfr(self, value: int) -> None:
        self.dfr = value >> 28

    def _write_svr(self, value: int) -> None:
        self.svr = value & 0x3FF
        if not self.enabled:
            for name in LVT_NAMES.values():
                setattr(self, name, getattr(self, name) | LVT_MASKED)
        self._look()

    def _write_esr(self, value: int) -> None:
        self.esr, self.errors = self.errors, 0

    def _write_icr_low(self, value: int) -> None:
        self.icr = self.icr & ~0xFFFF_FFFF | value & ICR_WRITABLE
        vector, mode, shorthand = value & 0xFF, value >> 8 & 7, value >> 18 & 3
        if mode in (FIXED, LOWEST) and vector < 16:
            self._error(ESR_SEND_VECTOR)
            return
        flags = 0 if value & ICR_LEVEL else DEASSERT
        message = Message(vector, mode, self.icr >> 56, bool(value & ICR_LOGICAL), flags)
        if shorthand == TO_SELF:
            if mode == FIXED:
                self.accept(message)
        else:
            self._send(message, shorthand)

    def _write_icr_high(self, value: int) -> None:
        self.icr = self.icr & 0xFFFF_FFFF | (value & 0xFF00_0000) << 32

    def _write_lvt(self, which: int, value: int) -> None:
        name = LVT_NAMES[which]
        before: int = getattr(self, name)
        entry = value & LVT_WRITABLE[which] | before & LVT_REMOTE_IRR
        if not self.enabled:
            entry |= LVT_MASKED
        if not entry & LVT_LEVEL:
            entry &= ~LVT_REMOTE_IRR
        if which == LVT_TIMER:
            self.poll()
            setattr(self, name, entry)
            modes = before >> TIMER_MODE_SHIFT & 3, self.timer_mode
            if modes[0] != modes[1] and TSC_DEADLINE in modes:
                self._due = None  # to and from the deadline disarms, between the others the count goes on
                self.tsc_deadline = 0
            self._changed()
            return
        setattr(self, name, entry)
        if which in (LVT_LINT0, LVT_LINT1) and self.lint >> (which == LVT_LINT1) & 1:
            if entry & LVT_LEVEL:
                self._local(which)
            self._attention()

    def _look(self) -> None:
        if self.pending or self.held_back:
            self._attention()

    # The timer

    @property
    def timer_mode(self) -> int:
        """ONE_SHOT, PERIODIC or TSC_DEADLINE; 3 is reserved."""
        return self.lvt_timer >> TIMER_MODE_SHIFT & 3

    @property
    def _divisor(self) -> int:
        return 1 << (((self.divide & 3) | (self.divide >> 1 & 4)) + 1 & 7)

    @property
    def _period(self) -> int:
        return max(self.initial_count * self._divisor * PERIOD_NS, SHORTEST_NS)

    @property
    def current_count(self) -> int:
        """The timer's count now."""
        if self._due is None or self.timer_mode == TSC_DEADLINE:
            return 0
        left = self._due - self._clock()
        if left <= 0:
            if self.timer_mode != PERIODIC:
                return 0
            left = left % self._period or self._period
        return min(-(-left // (self._divisor * PERIOD_NS)), self.initial_count)

    def _write_initial_count(self, value: int) -> None:
        self.poll()
        if self.timer_mode == TSC_DEADLINE:
            return
        self.initial_count = value
        length = value * self._divisor * PERIOD_NS
        if self.timer_mode == PERIODIC:
            length = max(length, SHORTEST_NS)
        self._due = self._clock() + length if value else None
        self._changed()

    def _write_divide(self, value: int) -> None:
        """What is left of the count stays, its speed changes."""
        self.poll()
        left, before = self.current_count, self._divisor
        self.divide = value & 0xB
        if self._due is not None and self.timer_mode != TSC_DEADLINE and self._divisor != before:
            self._due = self._clock() + left * self._divisor * PERIOD_NS
            self._changed()

    _writers: ClassVar[Mapping[int, Callable[[Lapic, int], None]]] = {
        ID: _write_id,
        TPR: _write_tpr,
        EOI: _write_eoi,
        LDR: _write_ldr,
        DFR: _write_dfr,
        SVR: _write_svr,
        ESR: _write_esr,
        ICR_LOW: _write_icr_low,
        ICR_HIGH: _write_icr_high,
        INITIAL_COUNT: _write_initial_count,
        DIVIDE: _write_divide,
    }

    def read_deadline(self) -> int:
        """MSR IA32_TSC_DEADLINE (0x6e0): 0 when the timer isn't armed."""
        self.poll()
        return self.tsc_deadline

    def write_deadline(self, value: int) -> None:
        """MSR IA32_TSC_DEADLINE; ignored in the timer's other modes."""
        if self.timer_mode != TSC_DEADLINE or self._tsc is None or not self._tsc_khz:
            return
        self.tsc_deadline = value
        self._due = None
        if value:
            ticks = max(value - self._tsc(), 0)
            self._due = self._clock() - (-ticks * 1_000_000 // self._tsc_khz)
        self._changed()

    def poll(self) -> int | None:
        """Let the timer go off if it is time. Returns :meth:`next_event`. Periods that are over count once."""
        now = self._clock()
        if self._due is not None and now >= self._due:
            if self.timer_mode == PERIODIC and self.initial_count:
                self._due += ((now - self._due) // self._period + 1) * self._period
            else:
                self._due = None
                self.tsc_deadline = 0
            self._local(LVT_TIMER)
        return self.next_event()

    def next_event(self) -> int | None:
        """When the timer goes off next, in ns of the clock; None: it is off, or masked and one-shot."""
        return None if self.lvt_timer & LVT_MASKED else self._due

    # Reset and state

    def reset(self) -> None:
        """As after power-up."""
        self._power_up()
        self._changed()

    @property
    def remaining(self) -> int:
        """Nanoseconds until the timer goes off; 0: it is off."""
        return 0 if self._due is None else max(self._due - self._clock(), 1)

    @remaining.setter
    def remaining(self, value: int) -> None:
        self._due = self._clock() + value if value else None

    def _restored(self) -> None:
        self.divide &= 0xB
        self._changed()
        self._attention()


def _nothing() -> None:
    pass


def _nowhere(message: Message, shorthand: int) -> None:
    pass


def _unheard(vector: int) -> None:
    pass


def deliver(lapics: Iterable[Lapic], message: Message) -> bool:
    """Gives a message to those it is for: all, or with "lowest priority" the one whose CPU does the least important
    thing. Whether one took it."""
    found = [lapic for lapic in lapics if lapic.matches(message)]
    if message.mode == LOWEST:
        found = sorted((lapic for lapic in found if lapic.enabled), key=lambda lapic: lapic.ppr)[:1]
    taken = [lapic.accept(message) for lapic in found]
    return any(taken)
