"""Serial port: the 16550A UART with its FIFOs, interrupts, modem lines and loopback.

Source: the data sheets of National Semiconductor's PC16550D and Texas Instruments' TL16C550C. Bits that they
leave to the board follow QEMU's PC: interrupts don't need MCR.OUT2 (unless asked for), the modem at the other
end is there (DCD, DSR and CTS asserted), and the transmitter is infinitely fast.
"""

from __future__ import annotations

from _thread import RLock
from collections import deque

from kvmpy.devices.device import ByteDevice
from kvmpy.errors import DeviceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

# Register offsets. 0 and 1 are the divisor latch while LCR.DLAB is set.
RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCR = 7

IER_RDI = 0x01  # received data available, or character timeout
IER_THRI = 0x02  # transmitter holding register empty
IER_RLSI = 0x04  # receiver line status
IER_MSI = 0x08  # modem status

IIR_NONE = 0x01
IIR_MSI = 0x00
IIR_THRI = 0x02
IIR_RDI = 0x04
IIR_RLSI = 0x06
IIR_TIMEOUT = 0x0C
IIR_FIFO = 0xC0  # both bits set: a 16550A whose FIFOs are enabled

FCR_ENABLE = 0x01
FCR_CLEAR_RECEIVE = 0x02
FCR_CLEAR_TRANSMIT = 0x04
FCR_KEPT = 0xC9  # enable, DMA mode and trigger level; the clear bits clear themselves

LCR_WORD = 0x03
LCR_STOP = 0x04
LCR_PARITY = 0x08
LCR_BREAK = 0x40
LCR_DLAB = 0x80

MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08
MCR_LOOP = 0x10

LSR_DR = 0x01
LSR_OE = 0x02
LSR_PE = 0x04
LSR_FE = 0x08
LSR_BI = 0x10
LSR_THRE = 0x20
LSR_TEMT = 0x40
LSR_FIFO_ERROR = 0x80
LSR_ERRORS = LSR_OE | LSR_PE | LSR_FE | LSR_BI

MSR_DCTS = 0x01
MSR_DDSR = 0x02
MSR_TERI = 0x04
MSR_DDCD = 0x08
MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80
MSR_LINES = 0xF0

FIFO_SIZE = 16
TRIGGER = (1, 4, 8, 14)  # by the two top bits of FCR
CLOCK_HZ = 1_843_200  # a PC's UART crystal; the bit rate is a sixteenth of it, divided by the divisor
BYTES = tuple(bytes((value,)) for value in range(256))


class Serial(ByteDevice):
    """A 16550A at eight consecutive ports (COM1: 0x3f8, IRQ 4). Wider accesses are split into bytes.

    ``output(data)`` gets what the guest sends, masked to the word length. LCR is 0 after a reset, but words
    have 8 bits until the guest writes it: tiny guests print without any set-up, as behind a firmware.

    ``irq(level)`` is the interrupt line; it is called when the level changes. A reason that goes and comes
    back within one access (the transmitter is empty again at once) shows as low, then high: an edge triggered
    controller needs the edge.

    Time: with no ``clock`` a character takes no time, so the character timeout is due as soon as bytes wait
    below the trigger level. With ``clock`` (nanoseconds) it is due four character times after the last byte
    came or was read; :meth:`poll` says when, and ``on_timeout(when)`` is called each time it is put off.

    Threads: :meth:`receive` and the other inputs of the line may be called from any thread. ``lock``
    (reentrant) protects the registers and is held while ``irq`` is called, not (by this device) while
    ``output`` is. Give the machine's own lock if ``irq`` needs that one, or two threads may wait for each
    other.
    """

    name = "serial"
    LENGTH = 8
    FIELDS = {
        "divisor": 0xFFFF,
        "ier": 0x0F,
        "fcr": FCR_KEPT,
        "lcr": 0xFF,
        "lcr_written": bool,
        "mcr": 0x1F,
        "errors": LSR_ERRORS,
        "deltas": 0x0F,
        "scratch": 0xFF,
        "lines": MSR_LINES,
        "thr_pending": bool,
        "timeout_pending": bool,
        "timeout_remaining": (1 << 64) - 1,
        "fifo_bytes": bytes,
        "fifo_errors": bytes,
        "waiting_bytes": bytes,
    }

    def __init__(
        self,
        output: Callable[[bytes], None],
        irq: Callable[[bool], None] | None = None,
        *,
        clock: Callable[[], int] | None = None,
        out2_gates_irq: bool = False,
        lock: AbstractContextManager[object] | None = None,
        on_timeout: Callable[[int], None] | None = None,
    ) -> None:
        self._output = output
        self._irq = irq
        self._clock = clock
        self._on_timeout = on_timeout
        self._lock: AbstractContextManager[object] = RLock() if lock is None else lock
        self.out2_gates_irq = out2_gates_irq
        self._level = False
        self._waiting: deque[int] = deque()  # came while the FIFO was full; the sender waits
        self._fifo: deque[int] = deque()  # received characters, errors of each in bits 8 and up
        self.lines = MSR_DCD | MSR_DSR | MSR_CTS
        self.scratch = 0
        self.divisor = 12
        self._power_up()

    def _power_up(self) -> None:
        self.ier = self.fcr = self.lcr = self.mcr = 0
        self.lcr_written = False
        self.errors = self.deltas = 0
        self.thr_pending = False
        self._fifo.clear()
        self.timeout_pending = False
        self._timeout_at: int | None = None
        self._derive()

    def _derive(self) -> None:
        """What the hot path looks at, computed when a register that decides it changes."""
        self._mask = (0x20 << (self.lcr & LCR_WORD)) - 1 if self.lcr_written else 0xFF
        self._capacity = FIFO_SIZE if self.fcr & FCR_ENABLE else 1
        self._trigger = TRIGGER[self.fcr >> 6] if self.fcr & FCR_ENABLE else 1
        # True: a byte for THR does nothing but go out.
        self._plain = not (self.lcr & LCR_DLAB or self.mcr & MCR_LOOP or self.ier & IER_THRI)

    # What the guest does

    def read_byte(self, offset: int) -> int:
        """A register as the data sheet's table 2 has it; reading RBR, IIR, LSR and MSR has side effects."""
        with self._lock:
            if offset == LSR:
                return self._read_lsr()
            if self.lcr & LCR_DLAB and offset <= DLM:
                return (self.divisor >> (8 * offset)) & 0xFF
            return self._readers[offset](self)

    def write(self, offset: int, value: int, size: int) -> None:
        """A byte for THR has the short way; what else there is, is :meth:`write_byte`'s."""
        if size == 1 and offset == THR and self._plain:
            self._output(BYTES[value & self._mask])
        else:
            super().write(offset, value, size)

    def write_byte(self, offset: int, value: int) -> None:
        """A register as the data sheet's table 2 has it; LSR and MSR are read-only here, as in QEMU."""
        if offset == THR and not self.lcr & LCR_DLAB:
            self._transmit(value & self._mask)
            return
        with self._lock:
            if self.lcr & LCR_DLAB and offset <= DLM:
                shift = 8 * offset
                self.divisor = (self.divisor & ~(0xFF << shift)) | (value << shift)
                return
            self._writers[offset](self, value)
            self._derive()
            self._update()

    def write_string(self, offset: int, data: bytes, size: int) -> None:
        """``rep outsb`` to THR goes out in one piece."""
        if size == 1 and offset == THR and self._plain:
            mask = self._mask
            self._output(bytes(data) if mask == 0xFF else bytes([byte & mask for byte in data]))
        else:
            super().write_string(offset, data, size)

    # What the line does (any thread)

    def receive(self, data: bytes, paced: bool = True) -> int:
        """Bytes from outside. Returns how many of all that came still wait outside the UART's FIFO.

        With ``paced`` the sender heeds flow control: what finds no room waits until the guest has read, also
        while the UART is in loopback and doesn't listen. Without, what finds no room is lost and LSR shows an
        overrun, and in loopback everything is lost.
        """
        with self._lock:
            if paced:
                self._waiting.extend(data)
                self._refill()
            elif not self.mcr & MCR_LOOP:
                for byte in data:
                    self._arrive(byte & self._mask)
            self._update()
            return len(self._waiting)

    @property
    def waiting(self) -> int:
        """How many bytes came from outside and wait for room in the FIFO."""
        return len(self._waiting)

    def receive_damaged(self, byte: int, *, parity: bool = False, framing: bool = False) -> None:
        """A byte that arrives with a parity or framing error; not paced, lost in loopback."""
        errors = (LSR_PE if parity else 0) | (LSR_FE if framing else 0)
        self._receive_odd((byte & self._mask) | errors << 8)

    def receive_break(self) -> None:
        """The line is held at space longer than a character: one zero character with LSR.BI."""
        self._receive_odd(LSR_BI << 8)

    def _receive_odd(self, entry: int) -> None:
        with self._lock:
            if not self.mcr & MCR_LOOP:
                self._arrive(entry)
                self._update()

    def set_modem(
        self,
        *,
        cts: bool | None = None,
        dsr: bool | None = None,
        ri: bool | None = None,
        dcd: bool | None = None,
    ) -> None:
        """Drive the modem's lines (True: asserted); what isn't given stays."""
        with self._lock:
            before = self._modem_lines()
            for level, bit in ((cts, MSR_CTS), (dsr, MSR_DSR), (ri, MSR_RI), (dcd, MSR_DCD)):
                if level is not None:
                    self.lines = self.lines | bit if level else self.lines & ~bit
            self._note_deltas(before)
            self._update()

    def poll(self) -> int | None:
        """Let time pass: raise a character timeout that is due. Returns when the next is, or None.

        In the ns of ``clock``; without one nothing is ever due. Reading RBR, IIR and LSR lets time pass too.
        """
        with self._lock:
            self._update()
            return self._timeout_at

    # What one can know of it

    @property
    def baud(self) -> int:
        """Bits per second that the divisor stands for (a divisor of 0 counts as 65536)."""
        return CLOCK_HZ // (16 * (self.divisor or 0x10000))

    @property
    def character_time(self) -> int:
        """Nanoseconds that a character takes: start bit, word, parity, stop bits, at :attr:`baud`."""
        bits = 1 + 5 + (self.lcr & LCR_WORD) + bool(self.lcr & LCR_PARITY) + 1 + bool(self.lcr & LCR_STOP)
        return bits * 16 * (self.divisor or 0x10000) * 1_000_000_000 // CLOCK_HZ

    def reset(self) -> None:
        """The data sheet's master reset: registers, FIFO and interrupts; divisor, scratch and line stay."""
        with self._lock:
            self._power_up()
            self._refill()
            self._update()

    # Registers, one by one

    def _read_rbr(self) -> int:
        if not self._fifo:
            return 0
        value = self._fifo.popleft() & 0xFF
        self._expose()
        self._restart_timeout()
        # The line falls before it may rise again: the next character has to be an edge of its own.
        self._drive()
        self._refill()
        self._update()
        return value

    def _read_ier(self) -> int:
        return self.ier

    def _read_iir(self) -> int:
        self._update()
        reason = self._reason()
        if reason == IIR_THRI:
            self.thr_pending = False
            self._update()
        return reason | (IIR_FIFO if self.fcr & FCR_ENABLE else 0)

    def _read_lcr(self) -> int:
        return self.lcr

    def _read_mcr(self) -> int:
        return self.mcr

    def _read_lsr(self) -> int:
        value = LSR_THRE | LSR_TEMT
        if self._fifo:
            value |= LSR_DR
        if not self.errors:  # the hot case, a guest that polls for input
            if self._timeout_at is not None:
                self._update()
            return value | self._fifo_error()
        value |= self.errors | self._fifo_error()
        self.errors = 0
        if self._fifo:
            self._fifo[0] &= 0xFF
        self._update()
        return value

    def _fifo_error(self) -> int:
        if self.fcr & FCR_ENABLE and any(entry > 0xFF for entry in self._fifo):
            return LSR_FIFO_ERROR
        return 0

    def _read_msr(self) -> int:
        value = self._modem_lines() | self.deltas
        if self.deltas:
            self.deltas = 0
            self._update()
        return value

    def _read_scr(self) -> int:
        return self.scratch

    def _write_ier(self, value: int) -> None:
        risen = value & ~self.ier
        self.ier = value & 0x0F
        # Enabling it asks at once, since the transmitter is empty; software relies on that to get started.
        if risen & IER_THRI:
            self.thr_pending = True
        elif not self.ier & IER_THRI:
            self.thr_pending = False

    def _write_fcr(self, value: int) -> None:
        if (value ^ self.fcr) & FCR_ENABLE:
            value |= FCR_CLEAR_RECEIVE | FCR_CLEAR_TRANSMIT
        elif not value & FCR_ENABLE:
            return  # without the enable bit the others aren't programmed
        self.fcr = value & FCR_KEPT if value & FCR_ENABLE else 0
        if value & FCR_CLEAR_TRANSMIT:
            self.thr_pending = bool(self.ier & IER_THRI)
        self._derive()
        if value & FCR_CLEAR_RECEIVE:
            self._fifo.clear()
            self._restart_timeout()
            self._drive()
            self._refill()

    def _write_lcr(self, value: int) -> None:
        self.lcr = value
        self.lcr_written = True

    def _write_mcr(self, value: int) -> None:
        before = self._modem_lines()
        self.mcr = value & 0x1F
        self._note_deltas(before)
        self._refill()

    def _write_nothing(self, value: int) -> None:
        pass

    def _write_scr(self, value: int) -> None:
        self.scratch = value

    _readers = (_read_rbr, _read_ier, _read_iir, _read_lcr, _read_mcr, _read_lsr, _read_msr, _read_scr)
    _writers = (
        _write_nothing,
        _write_ier,
        _write_fcr,
        _write_lcr,
        _write_mcr,
        _write_nothing,
        _write_nothing,
        _write_scr,
    )

    # Inside

    def _transmit(self, byte: int) -> None:
        """THR full, shifted out and empty again, all at once."""
        with self._lock:
            loop = bool(self.mcr & MCR_LOOP)
            self.thr_pending = False
            self._update()
            if loop:
                self._arrive(byte)
        if not loop:
            self._output(BYTES[byte])
        with self._lock:
            self.thr_pending = bool(self.ier & IER_THRI)
            self._update()

    def _arrive(self, entry: int) -> None:
        """A character has been shifted in."""
        if len(self._fifo) < self._capacity:
            self._fifo.append(entry)
            if len(self._fifo) == 1:
                self._expose()
        else:
            self.errors |= LSR_OE
            if not self.fcr & FCR_ENABLE:
                self._fifo[0] = entry  # RBR is overwritten; a FIFO keeps what it has
                self._expose()
        self._restart_timeout()

    def _expose(self) -> None:
        """The errors of a character show in LSR when it gets to the top."""
        if self._fifo:
            self.errors |= self._fifo[0] >> 8

    def _refill(self) -> None:
        """Take what waits outside, as far as there is room."""
        waiting = self._waiting
        if waiting and not self.mcr & MCR_LOOP:
            for _ in range(min(len(waiting), self._capacity - len(self._fifo))):
                self._arrive(waiting.popleft() & self._mask)

    def _restart_timeout(self) -> None:
        self.timeout_pending = False
        self._timeout_at = None
        if self._fifo and self.fcr & FCR_ENABLE and self._clock is not None:
            self._timeout_at = self._clock() + 4 * self.character_time
            if self._on_timeout is not None:
                self._on_timeout(self._timeout_at)

    def _check_timeout(self) -> None:
        if not self._fifo or not self.fcr & FCR_ENABLE:
            self.timeout_pending = False
            self._timeout_at = None
        elif self._clock is None:
            self.timeout_pending = True
        elif self._timeout_at is not None and self._clock() >= self._timeout_at:
            self.timeout_pending = True
            self._timeout_at = None

    def _reason(self) -> int:
        """IIR's low four bits: the enabled interrupt of the highest priority."""
        ier = self.ier
        if ier & IER_RLSI and self.errors:
            return IIR_RLSI
        if ier & IER_RDI and len(self._fifo) >= self._trigger:
            return IIR_RDI
        if ier & IER_RDI and self.timeout_pending:
            return IIR_TIMEOUT
        if ier & IER_THRI and self.thr_pending:
            return IIR_THRI
        if ier & IER_MSI and self.deltas:
            return IIR_MSI
        return IIR_NONE

    def _update(self) -> None:
        self._check_timeout()
        self._drive()

    def _drive(self, anew: bool = False) -> None:
        """Bring the interrupt line to its level; ``anew``: say so even if it hasn't changed."""
        level = self._reason() != IIR_NONE
        if self.out2_gates_irq and self.mcr & (MCR_OUT2 | MCR_LOOP) != MCR_OUT2:
            level = False
        if level != self._level or anew:
            self._level = level
            if self._irq is not None:
                self._irq(level)

    def _modem_lines(self) -> int:
        """CTS, DSR, RI, DCD as in MSR; loopback connects RTS, DTR, OUT1 and OUT2 to them."""
        mcr = self.mcr
        if not mcr & MCR_LOOP:
            return self.lines
        return (
            (MSR_CTS if mcr & MCR_RTS else 0)
            | (MSR_DSR if mcr & MCR_DTR else 0)
            | (MSR_RI if mcr & MCR_OUT1 else 0)
            | (MSR_DCD if mcr & MCR_OUT2 else 0)
        )

    def _note_deltas(self, before: int) -> None:
        now = self._modem_lines()
        changed = before ^ now
        # Of the ring indicator only the end of ringing counts.
        self.deltas |= ((changed & ~MSR_RI) | (before & ~now & MSR_RI)) >> 4

    # State: the queues as bytes, the timeout as what is left of it

    @property
    def fifo_bytes(self) -> bytes:
        """Received characters that the guest hasn't read, the oldest first."""
        return bytes(entry & 0xFF for entry in self._fifo)

    @fifo_bytes.setter
    def fifo_bytes(self, value: bytes) -> None:
        self._fifo = deque(value)

    @property
    def fifo_errors(self) -> bytes:
        """The error bits of each character of :attr:`fifo_bytes`, as in LSR."""
        return bytes(entry >> 8 for entry in self._fifo)

    @fifo_errors.setter
    def fifo_errors(self, value: bytes) -> None:
        self._fifo = deque(byte | errors << 8 for byte, errors in zip(self._fifo, value, strict=True))

    @property
    def waiting_bytes(self) -> bytes:
        """What came from outside and waits for room."""
        return bytes(self._waiting)

    @waiting_bytes.setter
    def waiting_bytes(self, value: bytes) -> None:
        self._waiting = deque(value)

    @property
    def timeout_remaining(self) -> int:
        """Nanoseconds until the character timeout, 0 when none runs."""
        if self._timeout_at is None or self._clock is None:
            return 0
        return max(self._timeout_at - self._clock(), 1)

    @timeout_remaining.setter
    def timeout_remaining(self, value: int) -> None:
        self._timeout_at = self._clock() + value if value and self._clock is not None else None

    def state(self) -> dict[str, object]:
        """See :meth:`Device.state`; may be called from any thread."""
        with self._lock:
            return super().state()

    def restore(self, state: Mapping[str, object]) -> None:
        """See :meth:`Device.restore`; drives the interrupt line to the restored level."""
        with self._lock:
            super().restore(state)

    def _check_state(self, state: Mapping[str, object]) -> None:
        fifo, errors, fcr = state["fifo_bytes"], state["fifo_errors"], state["fcr"]
        assert isinstance(fifo, bytes) and isinstance(errors, bytes) and isinstance(fcr, int)
        room = FIFO_SIZE if fcr & FCR_ENABLE else 1
        if len(fifo) > room or len(errors) != len(fifo):
            raise DeviceError(
                f"serial: restore: {len(fifo)} bytes and {len(errors)} error flags in a FIFO of {room};"
                " must be one flag a byte, and fit"
            )

    def _restored(self) -> None:
        self._derive()
        self._drive(anew=True)
