"""PIT: the 8254 interval timer, ports 0x40-0x43: three counters of 1,193,182 Hz.

Source: Intel's 8254 data sheet (231164). Counts are worked out from the time when somebody looks; nothing ticks.
"""

from __future__ import annotations

from kvmpy.devices.device import ByteDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.devices.device import FieldSpec

HZ = 1_193_182
SECOND = 1_000_000_000
CONTROL = 3
CHANNELS = 3

ACCESS_LATCH, ACCESS_LOW, ACCESS_HIGH, ACCESS_BOTH = range(4)
READ_BACK = 3  # the control word's channel
READ_BACK_NO_COUNT = 0x20
READ_BACK_NO_STATUS = 0x10
STATUS_OUT = 0x80
STATUS_NULL = 0x40

ON_TERMINAL_COUNT, ONE_SHOT, RATE, SQUARE, SOFTWARE_STROBE, HARDWARE_STROBE = range(6)
PERIODIC = (RATE, SQUARE)
GATE_STARTS = (ONE_SHOT, HARDWARE_STROBE)
STATUS_LATCHED = 1  # in Channel.latched
NEVER = -1

FIELDS: dict[str, FieldSpec] = {
    "mode": HARDWARE_STROBE,
    "bcd": bool,
    "access": range(ACCESS_LOW, ACCESS_BOTH + 1),
    "gate": bool,
    "running": bool,
    "programmed": bool,
    "count": range(1, 0x1_0001),
    "following": 0x1_0000,
    "low": 0xFF,
    "write_high": bool,
    "read_high": bool,
    "latch": 0xFFFF,
    "latch_bytes": 2,
    "status": 0xFF,
    "status_latched": bool,
}
"""A channel's registers; ``age`` and ``switch_in`` in ticks come with them."""
AGES = range(-(1 << 63), 1 << 63)


class Channel:
    """One counter. Moments are ticks since some beginning; ``start`` is the one at which ``count`` was loaded."""

    def __init__(self, gate: bool) -> None:
        self.gate = gate
        self.power_up()

    def power_up(self) -> None:
        """Nothing programmed: OUT is high and stays so."""
        self.mode = SQUARE
        self.bcd = False
        self.access = ACCESS_BOTH
        self.running = False  # counts now
        self.programmed = False  # has a count since the control word
        self.count = 0x10000
        self.following = 0  # periodic: the count from ``switch`` on; 0: none
        self.start = 0
        self.switch = 0
        self.low = 0
        self.write_high = self.read_high = False
        self.latch = 0
        self.latch_bytes = 0
        self.status = 0
        self.status_latched = False

    # Time

    def settle(self, now: int) -> None:
        """A count written in the middle of a period has its turn when that is over."""
        if self.following and self.running and now >= self.switch:
            self.start, self.count, self.following = self.switch, self.following, 0

    def _elapsed(self, now: int) -> int:
        """Ticks counted; a counter that stands keeps them in ``start``."""
        return now - self.start if self.running else -self.start

    def _stop(self, now: int) -> None:
        if self.running:
            self.start -= now
            self.running = False

    def _go_on(self, now: int) -> None:
        if not self.running:
            self.start += now
            self.running = True

    def _load(self, now: int) -> None:
        self.start, self.running = now, True

    # Programming

    def control(self, value: int, now: int) -> None:
        """A control word that isn't a command: mode, access, BCD. Counting stops until a count comes."""
        self.mode = value >> 1 & 7
        if self.mode > HARDWARE_STROBE:
            self.mode -= 4
        self.bcd = bool(value & 1)
        self.access = value >> 4 & 3
        self.write_high = self.read_high = False
        self.latch_bytes = 0
        self.status_latched = False
        self.running = self.programmed = False
        self.following = 0
        self.start = 0

    def write(self, value: int, now: int) -> None:
        """A byte of the count."""
        if self.access == ACCESS_BOTH and not self.write_high:
            self.low, self.write_high = value, True
            if self.mode == ON_TERMINAL_COUNT:
                self._stop(now)  # the first byte stops it, OUT goes low
                self.programmed = False
            return
        if self.access == ACCESS_BOTH:
            self.write_high = False
            raw = value << 8 | self.low
        else:
            raw = value << 8 if self.access == ACCESS_HIGH else value
        self._new_count(_from_bcd(raw) or 10_000 if self.bcd else raw or 0x10000, now)

    def _new_count(self, count: int, now: int) -> None:
        first, self.programmed = not self.programmed, True
        if self.mode in PERIODIC and not first and self.running:
            periods = (now - self.start) // self.count + 1
            self.following, self.switch = count, self.start + periods * self.count
        elif self.mode in GATE_STARTS:
            if self.running:
                self.following, self.switch = count, 1 << 62  # from the next trigger on
            else:
                self.count = count
        else:
            self.count, self.following = count, 0
            self._load(now)
            if not self.gate:
                self._stop(now)

    def set_gate(self, level: bool, now: int) -> None:
        """GATE: what it does is the mode's; see the data sheet's figure 21."""
        rises, falls = level and not self.gate, self.gate and not level
        self.gate = level
        if self.mode in GATE_STARTS:
            if rises and self.programmed:
                self.count, self.following = self.following or self.count, 0
                self._load(now)
        elif self.mode in PERIODIC:
            if falls:
                self._stop(now)
            elif rises and self.programmed:
                self.count, self.following = self.following or self.count, 0
                self._load(now)
        elif falls:
            self._stop(now)
        elif rises and self.programmed:
            self._go_on(now)

    # What can be seen

    def out(self, now: int) -> bool:
        """The level of OUT."""
        if self.mode == ON_TERMINAL_COUNT:
            return self.programmed and self._elapsed(now) >= self.count
        if self.mode == ONE_SHOT:
            return not self.running or self._elapsed(now) >= self.count
        if not self.programmed or (self.mode in (*PERIODIC, HARDWARE_STROBE) and not self.running):
            return True
        elapsed = self._elapsed(now)
        if self.mode == RATE:
            return elapsed % self.count != self.count - 1 or self.count == 1
        if self.mode == SQUARE:
            return elapsed % self.count < (self.count + 1) // 2
        return elapsed != self.count

    def value(self, now: int) -> int:
        """The counting element, 16 bits, as it is read."""
        elapsed = self._elapsed(now)
        wrap = 10_000 if self.bcd else 0x10000
        if not self.programmed or (self.mode in GATE_STARTS and not self.running):
            left = self.count
        elif self.mode == RATE:
            left = self.count - elapsed % self.count
        elif self.mode == SQUARE:
            at, half = elapsed % self.count, (self.count + 1) // 2
            left = (self.count & ~1) - 2 * (at if at < half else at - half)
        else:
            left = self.count - elapsed
        left %= wrap
        return _to_bcd(left) if self.bcd else left

    def read(self, now: int) -> int:
        """A byte: of the latched status, of the latched count, or of the count as it is."""
        if self.status_latched:
            self.status_latched = False
            return self.status
        latched = self.latch_bytes > 0
        value = self.latch if latched else self.value(now)
        high = self.access == ACCESS_HIGH
        if self.access == ACCESS_BOTH:
            high, self.read_high = self.read_high, not self.read_high
        if latched:
            self.latch_bytes -= 1
        return value >> 8 if high else value & 0xFF

    def latch_count(self, now: int) -> None:
        """Keep the count until it is read; a second time before that does nothing."""
        if not self.latch_bytes:
            self.latch = self.value(now)
            self.latch_bytes = 2 if self.access == ACCESS_BOTH else 1

    def latch_status(self, now: int) -> None:
        """The same for the status."""
        if not self.status_latched:
            null = not self.programmed or self.write_high or self.following
            self.status = (
                (STATUS_OUT if self.out(now) else 0)
                | (STATUS_NULL if null else 0)
                | self.access << 4
                | self.mode << 1
                | self.bcd
            )
            self.status_latched = True

    # Rising edges of OUT

    def next_edge(self, now: int) -> int:
        """The first tick after ``now`` at which OUT rises by itself; NEVER."""
        if not self.running or not self.programmed:
            return NEVER
        if self.mode in PERIODIC:
            if self.count == 1:
                return NEVER  # OUT has no time to fall
            if self.following:
                return self.switch
            return self.start + ((now - self.start) // self.count + 1) * self.count
        late = 1 if self.mode in (SOFTWARE_STROBE, HARDWARE_STROBE) else 0
        at = self.start + self.count + late
        return at if at > now else NEVER

    # State

    def ages(self, now: int) -> tuple[int, int]:
        """``start`` and ``switch`` as state that means the same at another time."""
        switch = self.switch - now if self.following and self.running and self.mode in PERIODIC else 0
        return (self._elapsed(now), switch)

    def set_ages(self, elapsed: int, switch: int, now: int) -> None:
        """What :meth:`ages` gave, now."""
        self.start = now - elapsed if self.running else -elapsed
        self.switch = now + switch if self.mode in PERIODIC else 1 << 62


class Pit(ByteDevice):
    """The 8254 at four ports: three counters, then the control word. Wider accesses are split into bytes.

    ``clock()`` is time in nanoseconds. ``irq(level)`` is OUT of channel 0, a PC's line 0; it is brought up to date at
    the guest's accesses and by :meth:`poll`. Edges that nobody looked at in time are one edge, and that OUT goes high
    with a control word is none (as in KVM). ``changed()`` is called when :meth:`next_event` may give something else
    than before.

    Channels 0 and 1 always count, GATE of channel 2 is low until :meth:`set_gate`. A count begins with the write of
    its last byte (the chip: one clock later); in modes 2 and 3 a new one at the end of the period.
    """

    name = "pit"
    LENGTH = 4
    FIELDS = {
        "line": bool,
        **{f"channel{n}_{field}": kind for n in range(CHANNELS) for field, kind in FIELDS.items()},
        **{f"channel{n}_{field}": AGES for n in range(CHANNELS) for field in ("age", "switch_in")},
    }

    def __init__(
        self,
        clock: Callable[[], int],
        irq: Callable[[bool], None] | None = None,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self._clock = clock
        self._irq = irq
        self._changed = changed
        self.channels = [Channel(gate) for gate in (True, True, False)]
        self._epoch = clock()
        self._seen = 0  # up to this tick ``irq`` knows
        self.line = False  # what ``irq`` was told

    def _now(self) -> int:
        now = max((self._clock() - self._epoch) * HZ // SECOND, 0)
        for channel in self.channels:
            channel.settle(now)
        return now

    # The ports

    def read_byte(self, offset: int) -> int:
        """A byte of a counter or of its status; the control word can't be read."""
        if offset == CONTROL:
            return 0xFF
        return self.channels[offset].read(self._now())

    def write_byte(self, offset: int, value: int) -> None:
        """A byte of a count, or a control word."""
        self.poll()
        now = self._now()
        if offset != CONTROL:
            self.channels[offset].write(value, now)
        elif value >> 6 == READ_BACK:
            self._read_back(value, now)
            return
        elif not value >> 4 & 3:
            self.channels[value >> 6].latch_count(now)
            return
        else:
            self.channels[value >> 6].control(value, now)
        self._touched(now)

    def _read_back(self, value: int, now: int) -> None:
        for number, channel in enumerate(self.channels):
            if value >> (number + 1) & 1:
                if not value & READ_BACK_NO_COUNT:
                    channel.latch_count(now)
                if not value & READ_BACK_NO_STATUS:
                    channel.latch_status(now)

    def _touched(self, now: int) -> None:
        self._seen = now
        self._fall(now)
        if self._changed is not None:
            self._changed()

    # The pins

    def set_gate(self, channel: int, level: bool) -> None:
        """GATE of a channel; on a PC only channel 2's is wired, to bit 0 of port 0x61."""
        self.poll()
        now = self._now()
        self.channels[channel].set_gate(level, now)
        self._touched(now)

    def out(self, channel: int) -> bool:
        """The level of a channel's OUT now."""
        return self.channels[channel].out(self._now())

    def poll(self) -> int | None:
        """Drive ``irq`` as time has brought it. Returns :meth:`next_event`."""
        edge = self.channels[0].next_edge(self._seen)
        now = self._now()
        self._seen = now
        if NEVER < edge <= now:
            self._drive(False)
            self._drive(True)
        self._fall(now)
        return self.next_event()

    def _fall(self, now: int) -> None:
        if self.line and not self.channels[0].out(now):
            self._drive(False)

    def next_event(self) -> int | None:
        """When channel 0's OUT rises next, in ns of the clock; None: never by itself."""
        tick = self.channels[0].next_edge(self._seen)
        return None if tick == NEVER else self._epoch - (-tick * SECOND // HZ)

    def _drive(self, level: bool) -> None:
        if level != self.line:
            self.line = level
            if self._irq is not None:
                self._irq(level)

    def reset(self) -> None:
        """As switched on: no channel counts. The gates stay."""
        for channel in self.channels:
            channel.power_up()
        self._touched(self._now())

    # State: the channels' registers, moments as what has passed since

    def state(self) -> dict[str, object]:
        """See :meth:`Device.state`."""
        now = self._now()
        state: dict[str, object] = {"line": self.line}
        for number, channel in enumerate(self.channels):
            for field in FIELDS:
                state[f"channel{number}_{field}"] = getattr(channel, field)
        for number, channel in enumerate(self.channels):
            state[f"channel{number}_age"], state[f"channel{number}_switch_in"] = channel.ages(now)
        return state

    def _restored(self) -> None:
        now = self._now()
        mine = self.__dict__  # where Device.restore() has put the fields
        for number, channel in enumerate(self.channels):
            for field in FIELDS:
                setattr(channel, field, mine.pop(f"channel{number}_{field}"))
            channel.set_ages(mine.pop(f"channel{number}_age"), mine.pop(f"channel{number}_switch_in"), now)
        self._seen = now
        if self._irq is not None:
            self._irq(self.line)
        if self._changed is not None:
            self._changed()


def _from_bcd(raw: int) -> int:
    """What four decimal digits stand for. A digit above 9 counts as what it is."""
    return sum((raw >> (4 * digit) & 0xF) * 10**digit for digit in range(4))


def _to_bcd(value: int) -> int:
    return sum(value // 10**digit % 10 << (4 * digit) for digit in range(4))
