"""i8042: the keyboard controller, for what isn't a keyboard: reset, the A20 gate, and the self tests.

Sources: the controller in IBM's PS/2 hardware interface reference, and QEMU where that is silent.
"""

from __future__ import annotations

from collections import deque

from kvmpy.devices.device import ByteDevice
from kvmpy.errors import DeviceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DATA = 0
COMMAND = STATUS = 4

STATUS_OUTPUT_FULL = 0x01
STATUS_SYSTEM = 0x04
STATUS_COMMAND = 0x08
STATUS_UNLOCKED = 0x10
STATUS_AUX = 0x20

MODE_KEYBOARD_IRQ = 0x01
MODE_AUX_IRQ = 0x02
MODE_SYSTEM = 0x04
MODE_KEYBOARD_OFF = 0x10
MODE_AUX_OFF = 0x20

OUTPUT_RESET = 0x01  # low resets the CPU
OUTPUT_A20 = 0x02
OUTPUT_WRITABLE = 0xCF  # the two others mirror "output buffer full"
OUTPUT_DEFAULT = 0xCF

READ_MODE = 0x20
WRITE_MODE = 0x60
AUX_OFF = 0xA7
AUX_ON = 0xA8
TEST_AUX = 0xA9
SELF_TEST = 0xAA
TEST_KEYBOARD = 0xAB
KEYBOARD_OFF = 0xAD
KEYBOARD_ON = 0xAE
READ_INPUT = 0xC0
READ_OUTPUT = 0xD0
WRITE_OUTPUT = 0xD1
WRITE_KEYBOARD_BUFFER = 0xD2
WRITE_AUX_BUFFER = 0xD3
WRITE_AUX = 0xD4
A20_OFF = 0xDD
A20_ON = 0xDF
PULSE = 0xF0
TAKES_DATA = frozenset((WRITE_MODE, WRITE_OUTPUT, WRITE_KEYBOARD_BUFFER, WRITE_AUX_BUFFER, WRITE_AUX))

ACK = 0xFA
KEYBOARD_TAKES_DATA = frozenset((0xED, 0xF0, 0xF3))  # LEDs, scan code set, typematic rate
KEYBOARD_ANSWERS: dict[int, tuple[int, ...]] = {
    0xEE: (0xEE,),  # echo
    0xF2: (ACK, 0xAB, 0x83),  # identify: an MF2 keyboard
    0xFF: (ACK, 0xAA),  # reset: self test passed
}
QUEUE = 16

AUX_BYTE = 0x100  # in the queue: a byte that comes from the auxiliary side


class I8042(ByteDevice):
    """Ports 0x60 (data) and 0x64 (command and status), attached at 0x60 with length 5; 0x61..0x63 aren't its
    own (attach port 0x61's device there) and read as ones. Wider accesses are split into bytes.

    ``on_reset()`` is called by command 0xfe (any pulse of line 0, or an output port write with bit 0 low),
    ``on_a20(enabled)`` when the gate changes, ``irq(level)`` and ``aux_irq(level)`` are lines 1 and 12.
    The keyboard answers set-up commands as one that nobody types on does; there is no mouse.
    """

    name = "i8042"
    LENGTH = 5
    FIELDS = {
        "status": 0xFF,
        "mode": 0xFF,
        "output_port": 0xFF,
        "pending": 0xFF,
        "keyboard_pending": 0xFF,
        "last": 0xFF,
        "queue_bytes": bytes,
        "queue_aux": bytes,
    }

    def __init__(
        self,
        on_reset: Callable[[], None] | None = None,
        on_a20: Callable[[bool], None] | None = None,
        irq: Callable[[bool], None] | None = None,
        aux_irq: Callable[[bool], None] | None = None,
    ) -> None:
        self._on_reset = on_reset
        self._on_a20 = on_a20
        self._irqs = (irq, aux_irq)
        self._levels = [False, False]
        self._queue: deque[int] = deque()
        self._power_up()

    def _power_up(self) -> None:
        self.status = STATUS_COMMAND | STATUS_UNLOCKED
        self.mode = MODE_KEYBOARD_IRQ | MODE_AUX_IRQ
        self.output_port = OUTPUT_DEFAULT
        self.pending = 0  # the controller command that waits for its byte at the data port
        self.keyboard_pending = 0  # the same for the keyboard's
        self.last = 0  # what an empty data port reads
        self._queue.clear()

    def reset(self) -> None:
        """As after power on; A20 is on."""
        a20_was_off = not self.output_port & OUTPUT_A20
        self._power_up()
        self._update()
        if a20_was_off and self._on_a20 is not None:
            self._on_a20(True)

    def read_byte(self, offset: int) -> int:
        """Status, or the next byte of the output buffer (the last again, when there is none)."""
        if offset == STATUS:
            return self.status
        if offset != DATA:
            return 0xFF
        if self._queue:
            self.last = self._queue.popleft() & 0xFF
            self._drive(False, False)  # each byte is an edge of its own
            self._update()
        return self.last

    def write_byte(self, offset: int, value: int) -> None:
        """A command, or a command's byte."""
        if offset == COMMAND:
            self.status |= STATUS_COMMAND
            self._command(value)
        elif offset == DATA:
            self.status &= ~STATUS_COMMAND
            pending, self.pending = self.pending, 0
            if pending:
                self._command_byte(pending, value)
            else:
                self._keyboard(value)

    # The controller

    def _command(self, command: int) -> None:
        self.pending = 0
        if command in TAKES_DATA:
            self.pending = command
        elif command >= PULSE:
            if not command & OUTPUT_RESET and self._on_reset is not None:
                self._on_reset()
        elif command in (A20_OFF, A20_ON):
            a20 = OUTPUT_A20 if command == A20_ON else 0
            self._set_output(self.output_port & ~OUTPUT_A20 | a20)
        elif command in self._mode_changes:
            clear, set_ = self._mode_changes[command]
            self.mode = self.mode & ~clear | set_
            self._update()
        else:
            if command == SELF_TEST:
                self.status |= STATUS_SYSTEM
                self.mode |= MODE_SYSTEM
            answer = self._answer(command)
            if answer is not None:
                self._put(answer)

    _mode_changes = {
        AUX_OFF: (0, MODE_AUX_OFF),
        AUX_ON: (MODE_AUX_OFF, 0),
        KEYBOARD_OFF: (0, MODE_KEYBOARD_OFF),
        KEYBOARD_ON: (MODE_KEYBOARD_OFF, 0),
    }

    def _answer(self, command: int) -> int | None:
        if command == READ_OUTPUT:
            buffered = 0x20 if self.status & STATUS_AUX else 0x10
            return self.output_port | (buffered if self._queue else 0)
        return {
            READ_MODE: self.mode,
            TEST_AUX: 0x00,
            SELF_TEST: 0x55,
            TEST_KEYBOARD: 0x00,
            READ_INPUT: 0x80,  # not locked
        }.get(command)

    def _command_byte(self, command: int, value: int) -> None:
        if command == WRITE_MODE:
            self.mode = value
            self.status = self.status & ~STATUS_SYSTEM | value & MODE_SYSTEM
            self._update()
        elif command == WRITE_OUTPUT:
            self._set_output(value)
        elif command == WRITE_KEYBOARD_BUFFER:
            self._put(value)
        elif command == WRITE_AUX_BUFFER:
            self._put(value | AUX_BYTE)
        # WRITE_AUX: no mouse, so nobody answers.

    def _set_output(self, value: int) -> None:
        changed = (self.output_port ^ value) & OUTPUT_A20
        self.output_port = value & OUTPUT_WRITABLE
        if changed and self._on_a20 is not None:
            self._on_a20(bool(value & OUTPUT_A20))
        if not value & OUTPUT_RESET and self._on_reset is not None:
            self._on_reset()

    # The keyboard

    def _keyboard(self, value: int) -> None:
        pending, self.keyboard_pending = self.keyboard_pending, 0
        if pending:
            answer: tuple[int, ...] = (
                (ACK, 2) if pending == 0xF0 and value == 0 else (ACK,)
            )  # 2: the scan code set
        elif value in KEYBOARD_TAKES_DATA:
            self.keyboard_pending = value
            answer = (ACK,)
        else:
            answer = KEYBOARD_ANSWERS.get(value, (ACK,))
        for byte in answer:
            self._put(byte)

    # The output buffer and its interrupts

    def _put(self, entry: int) -> None:
        if len(self._queue) < QUEUE:
            self._queue.append(entry)
        self._update()

    def _update(self) -> None:
        full = bool(self._queue)
        aux = full and bool(self._queue[0] & AUX_BYTE)
        self.status &= ~(STATUS_OUTPUT_FULL | STATUS_AUX)
        self.status |= (STATUS_OUTPUT_FULL if full else 0) | (STATUS_AUX if aux else 0)
        self._drive(
            full and not aux and bool(self.mode & MODE_KEYBOARD_IRQ),
            aux and bool(self.mode & MODE_AUX_IRQ),
        )

    def _drive(self, keyboard: bool, aux: bool, anew: bool = False) -> None:
        for line, level in enumerate((keyboard, aux)):
            changed = self._levels[line] != level
            self._levels[line] = level
            irq = self._irqs[line]
            if irq is not None and (changed or anew):
                irq(level)

    # State

    @property
    def queue_bytes(self) -> bytes:
        """What the guest hasn't read yet."""
        return bytes(entry & 0xFF for entry in self._queue)

    @queue_bytes.setter
    def queue_bytes(self, value: bytes) -> None:
        self._queue = deque(value)

    @property
    def queue_aux(self) -> bytes:
        """For each byte of :attr:`queue_bytes` 1 if it comes from the auxiliary side."""
        return bytes(entry >> 8 for entry in self._queue)

    @queue_aux.setter
    def queue_aux(self, value: bytes) -> None:
        self._queue = deque(byte | aux << 8 for byte, aux in zip(self._queue, value, strict=True))

    def _check_state(self, state: Mapping[str, object]) -> None:
        queue, aux = state["queue_bytes"], state["queue_aux"]
        assert isinstance(queue, bytes) and isinstance(aux, bytes)
        if len(queue) > QUEUE or len(aux) != len(queue) or any(flag > 1 for flag in aux):
            raise DeviceError(
                f"i8042: restore: {len(queue)} bytes and {len(aux)} flags queued;"
                f" must be one flag (0 or 1) a byte, at most {QUEUE}"
            )

    def _restored(self) -> None:
        self._levels = [False, False]
        self._drive(False, False, anew=True)
        self._update()
        if self._on_a20 is not None:
            self._on_a20(bool(self.output_port & OUTPUT_A20))
