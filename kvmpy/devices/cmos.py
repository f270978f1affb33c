"""CMOS: the MC146818 real-time clock and the battery backed RAM that a PC's firmware reads sizes from.

Sources: Motorola's MC146818 data sheet; the RAM's layout is IBM's, with the bytes that QEMU and SeaBIOS add.
"""

from __future__ import annotations

from time import gmtime, time_ns

from kvmpy.devices.device import ByteDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 0x00
SECONDS_ALARM = 0x01
MINUTES = 0x02
MINUTES_ALARM = 0x03
HOURS = 0x04
HOURS_ALARM = 0x05
DAY_OF_WEEK = 0x06
DAY_OF_MONTH = 0x07
MONTH = 0x08
YEAR = 0x09
REG_A = 0x0A
REG_B = 0x0B
REG_C = 0x0C
REG_D = 0x0D
EQUIPMENT = 0x14
BASE_MEMORY = 0x15
EXTENDED_MEMORY = 0x17
EXTENDED_MEMORY_2 = 0x30
CENTURY = 0x32
MEMORY_ABOVE_16M = 0x34
CENTURY_PS2 = 0x37
BOOT_FLAGS_2 = 0x38
BOOT_FLAGS_1 = 0x3D
MEMORY_ABOVE_4G = 0x5B
CPUS_LESS_1 = 0x5F

TIME = (SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY)

A_UIP = 0x80  # update in progress
A_DIVIDER = 0x70
A_DIVIDER_RESET = 0x60  # and 0x70
A_RATE = 0x0F
A_DEFAULT = 0x26  # 32768 Hz crystal, 1024 Hz periodic

B_SET = 0x80
B_PIE = 0x40
B_AIE = 0x20
B_UIE = 0x10
B_SQWE = 0x08
B_BINARY = 0x04
B_24H = 0x02

C_IRQF = 0x80
C_PF = 0x40
C_AF = 0x20
C_UF = 0x10

D_VALID = 0x80
PM = 0x80
DONT_CARE = 0xC0  # an alarm byte with both bits set matches always

SECOND = 1_000_000  # all times here are microseconds, the clock's nanoseconds have no use
DAY = 86_400
UIP_TIME = 244  # before the update, as the data sheet promises
CRYSTAL = 32_768

BOOT_DEVICES = {"a": 1, "c": 2, "d": 3, "n": 4}  # floppy, disk, CD-ROM, network: letters of QEMU's -boot


class Cmos(ByteDevice):
    """Ports 0x70 (index, and bit 7 masks the NMI) and 0x71 (data). Wider accesses are split into bytes.

    ``clock()`` is wall clock time in nanoseconds since 1970, UTC, as :func:`time.time_ns`. ``irq(level)`` is
    line 8. Flags and interrupts come into being when somebody looks: at a guest's access, or by :meth:`poll`,
    which also tells when the next interrupt is due. The index port reads as ones, as in QEMU.

    The time registers show the clock plus what the guest has changed, in the format of register B's bits of
    that moment. Impossible dates that a guest sets are counted on from (31 February is 3 March).
    """

    name = "cmos"
    LENGTH = 2
    FIELDS = {
        "index": 0x7F,
        "nmi_masked": bool,
        "ram": bytes,
        "flags": C_PF | C_AF | C_UF,
        "delta": range(-(1 << 63), 1 << 63),
        "held": range(-(1 << 63), 1 << 63),
        "seen": range(-(1 << 63), 1 << 63),
    }

    def __init__(
        self,
        clock: Callable[[], int] = time_ns,
        irq: Callable[[bool], None] | None = None,
        on_nmi_mask: Callable[[bool], None] | None = None,
    ) -> None:
        self._clock = clock
        self._irq = irq
        self._on_nmi_mask = on_nmi_mask
        self._level = False
        self.index = 0
        self.nmi_masked = False
        self.flags = 0
        self.delta = 0  # guest's time less the clock's
        self.held = 0  # guest's time while the divider chain is held in reset
        self.ram = bytearray(128)
        self.ram[REG_A] = A_DEFAULT
        self.ram[REG_B] = B_24H
        self.ram[SECONDS_ALARM] = self.ram[MINUTES_ALARM] = self.ram[HOURS_ALARM] = DONT_CARE
        self.seen = self._now()  # up to when the flags are true

    # What the machine's maker says

    def set_memory(self, below_4g: int, above_4g: int = 0) -> None:
        """Sizes of RAM in bytes, from address 0 and from 4 GiB on; each place holds what fits in it."""
        kib = below_4g // 1024
        self._set_word(BASE_MEMORY, min(kib, 640))
        extended = min(max(kib - 1024, 0), 0xFFFF)
        self._set_word(EXTENDED_MEMORY, extended)
        self._set_word(EXTENDED_MEMORY_2, extended)
        self._set_word(MEMORY_ABOVE_16M, min(max(below_4g - (16 << 20), 0) >> 16, 0xFFFF))
        above = min(above_4g >> 16, 0xFF_FFFF)
        self.ram[MEMORY_ABOVE_4G : MEMORY_ABOVE_4G + 3] = above.to_bytes(3, "little")

    def set_cpus(self, cpus: int) -> None:
        """How many CPUs start with the machine (byte 0x5f holds one less, SeaBIOS waits for them)."""
        self.ram[CPUS_LESS_1] = min(max(cpus - 1, 0), 0xFF)

    def set_boot_order(self, letters: str) -> None:
        """Up to three of "a" (floppy), "c" (disk), "d" (CD-ROM) and "n" (network); others count as none."""
        first, second, third = (BOOT_DEVICES.get(letter, 0) for letter in letters[:3].ljust(3))
        self.ram[BOOT_FLAGS_1] = second << 4 | first
        self.ram[BOOT_FLAGS_2] = third << 4 | (self.ram[BOOT_FLAGS_2] & 0x0F)

    def _set_word(self, at: int, value: int) -> None:
        self.ram[at : at + 2] = value.to_bytes(2, "little")

    # The ports

    def read_byte(self, offset: int) -> int:
        """The register that the index names; reading C clears it and the interrupt."""
        if offset == 0:
            return 0xFF
        index = CENTURY if self.index == CENTURY_PS2 else self.index
        self._look()
        if index in TIME:
            return self.ram[index] if self._setting else self._time_registers()[TIME.index(index)]
        if index == REG_A:
            return self.ram[REG_A] | (A_UIP if self._update_in_progress() else 0)
        if index == REG_C:
            value = self.flags | (C_IRQF if self._level else 0)
            self.flags = 0
            self._drive()
            return value
        if index == REG_D:
            return D_VALID
        return self.ram[index]

    def write_byte(self, offset: int, value: int) -> None:
        """The index, or the register that it names; C and D are read-only."""
        if offset == 0:
            self.index = value & 0x7F
            self._set_nmi_mask(bool(value & 0x80))
            return
        index = CENTURY if self.index == CENTURY_PS2 else self.index
        self._look()
        if index == REG_A:
            self._write_a(value & ~A_UIP)
        elif index == REG_B:
            self._write_b(value)
        elif index in TIME:
            if not self._setting:
                self._freeze()
            self.ram[index] = value
            if not self._setting:
                self._thaw()
        elif index not in (REG_C, REG_D):
            self.ram[index] = value

    def _set_nmi_mask(self, masked: bool) -> None:
        if masked != self.nmi_masked:
            self.nmi_masked = masked
            if self._on_nmi_mask is not None:
                self._on_nmi_mask(masked)

    def _write_a(self, value: int) -> None:
        was_running, now = self._running, self._now()
        self.ram[REG_A] = value
        if was_running and not self._running:
            self.held = now
        elif self._running and not was_running:
            # The first update comes half a second after the divider is let go.
            self.delta = self.held // SECOND * SECOND + SECOND // 2 - self._clock() // 1000
        self.seen = self._now()

    def _write_b(self, value: int) -> None:
        before = self.ram[REG_B]
        if value & B_SET:
            value &= ~B_UIE
            if not before & B_SET:
                self._freeze()
        self.ram[REG_B] = value
        if before & B_SET and not value & B_SET:
            self._thaw()
        self._drive()

    def reset(self) -> None:
        """The RESET line: interrupts off and forgotten, the NMI open; time and RAM go on."""
        self._look()
        self.ram[REG_B] &= ~(B_PIE | B_AIE | B_UIE | B_SQWE)
        self.flags = 0
        self.index = 0
        self._set_nmi_mask(False)
        self._drive()

    def poll(self) -> int | None:
        """Raise what is due. Returns when the next enabled interrupt is, in ns of the clock; None if none is.

        None also while one is raised and not acknowledged, so ask again after the guest's accesses.
        """
        self._look()
        if self._level or not self._running:
            return None
        now = self._now()
        times = []
        enabled = self.ram[REG_B]
        if enabled & B_PIE and self._period():
            period = self._period()
            times.append(-(-((now * CRYSTAL // SECOND // period + 1) * period * SECOND) // CRYSTAL))
        if enabled & B_UIE:
            times.append((now // SECOND + 1) * SECOND)
        if enabled & B_AIE and not enabled & B_SET:
            alarm = self._next_alarm(now // SECOND)
            if alarm is not None:
                times.append(alarm * SECOND)
        return (min(times) - self.delta) * 1000 if times else None

    # Time

    @property
    def _running(self) -> bool:
        """The divider chain counts: a time base is chosen and it isn't held in reset."""
        return self.ram[REG_A] & A_DIVIDER <= 0x20

    @property
    def _setting(self) -> bool:
        """The guest sets the time: the registers are bytes like any other until it is done."""
        return bool(self.ram[REG_B] & B_SET)

    @property
    def _updating(self) -> bool:
        """The registers go up once a second."""
        return self._running and not self._setting

    def _now(self) -> int:
        return self._clock() // 1000 + self.delta if self._running else self.held

    def _update_in_progress(self) -> bool:
        return self._updating and self._now() % SECOND >= SECOND - UIP_TIME

    def _freeze(self) -> None:
        """Put the time of now in the registers' own bytes."""
        for index, value in zip(TIME, self._time_registers(), strict=True):
            self.ram[index] = value

    def _thaw(self) -> None:
        """Go on from the registers' own bytes; where in the second we are stays."""
        now = self._now()
        then = self._registers_time() * SECOND + now % SECOND
        if self._running:
            self.delta += then - now
        else:
            self.held = then
        self.seen = then

    def _time_registers(self) -> list[int]:
        """The bytes of TIME for the time of now."""
        moment = gmtime(self._now() // SECOND)
        hour, pm = moment.tm_hour, 0
        if not self.ram[REG_B] & B_24H:
            pm = PM if hour >= 12 else 0
            hour = hour % 12 or 12
        return [
            self._encode(moment.tm_sec),
            self._encode(moment.tm_min),
            self._encode(hour) | pm,
            self._encode((moment.tm_wday + 1) % 7 + 1),  # Sunday is 1
            self._encode(moment.tm_mday),
            self._encode(moment.tm_mon),
            self._encode(moment.tm_year % 100),
            self._encode(moment.tm_year // 100 % 100),
        ]

    def _registers_time(self) -> int:
        """Seconds since 1970 that the registers' own bytes stand for."""
        year, month, day, minute, second = (
            self._decode(self.ram[index]) for index in (YEAR, MONTH, DAY_OF_MONTH, MINUTES, SECONDS)
        )
        hour = self._hour(self.ram[HOURS])
        days = _days(self._decode(self.ram[CENTURY]) * 100 + year, month, day)
        return days * DAY + hour * 3600 + minute * 60 + second

    def _encode(self, value: int) -> int:
        return value if self.ram[REG_B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self.ram[REG_B] & B_BINARY else (value >> 4) * 10 + (value & 0x0F)

    def _hour(self, value: int) -> int:
        """0..23 for an hour's byte, more if it isn't one."""
        if self.ram[REG_B] & B_24H:
            return self._decode(value)
        return self._decode(value & ~PM) % 12 + (12 if value & PM else 0)

    # Flags and interrupts

    def _look(self) -> None:
        """Set the flags that time has brought since the last look."""
        now, before = self._now(), self.seen
        self.seen = now
        if now <= before or not self._running:
            return
        period = self._period()
        if period and now * CRYSTAL // SECOND // period > before * CRYSTAL // SECOND // period:
            self.flags |= C_PF
        if self._updating and now // SECOND > before // SECOND:
            self.flags |= C_UF
            alarm = None if self.flags & C_AF else self._next_alarm(before // SECOND)
            if alarm is not None and alarm <= now // SECOND:
                self.flags |= C_AF
        self._drive()

    def _period(self) -> int:
        """The periodic interrupt's, in ticks of the crystal; 0: none."""
        rate = self.ram[REG_A] & A_RATE
        if not rate:
            return 0
        return 1 << (rate + 7 - 1 if rate <= 2 else rate - 1)

    def _next_alarm(self, after: int) -> int | None:
        """The first second after ``after`` (since 1970) at which the alarm goes off; None: it never does."""
        hour, minute, second = (self.ram[at] for at in (HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM))
        at, end = after + 1, after + DAY
        while at <= end:
            if hour < DONT_CARE and at % DAY // 3600 != self._hour(hour):
                at += 3600 - at % 3600
            elif minute < DONT_CARE and at % 3600 // 60 != self._decode(minute):
                at += 60 - at % 60
            elif second < DONT_CARE and at % 60 != self._decode(second):
                at += 1
            else:
                return at
        return None

    def _drive(self, anew: bool = False) -> None:
        level = bool(self.flags & self.ram[REG_B])  # the enable bits are where the flags are
        if level != self._level or anew:
            self._level = level
            if self._irq is not None:
                self._irq(level)

    def _restored(self) -> None:
        self._drive(anew=True)


def _days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar; a month or day too many is counted on."""
    year += (month - 1) // 12
    month = (month - 1) % 12
    if month < 2:  # years that begin in March have their leap day last
        year -= 1
    days_before = (306, 337, 0, 31, 61, 92, 122, 153, 184, 214, 245, 275)[month]
    return 365 * year + year // 4 - year // 100 + year // 400 + days_before + day - 719_469
