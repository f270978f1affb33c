"""The 16550A, against the data sheet's tables, with no VM."""

from __future__ import annotations

import threading
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvmpy.devices import serial as uart
from kvmpy.devices.serial import Serial
from kvmpy.errors import DeviceError


class Bench:
    """A UART on the bench: what went out, and the level of its interrupt line with its edges."""

    def __init__(self, **options: object) -> None:
        self.sent = bytearray()
        self.edges: list[bool] = []
        self.uart = Serial(self.sent.extend, self.edges.append, **options)  # type: ignore[arg-type]

    def __getitem__(self, register: int) -> int:
        return self.uart.read(register, 1)

    def __setitem__(self, register: int, value: int) -> None:
        self.uart.write(register, value, 1)

    @property
    def level(self) -> bool:
        return bool(self.edges) and self.edges[-1]

    @property
    def rises(self) -> int:
        return sum(self.edges)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_reset_values_of_the_data_sheet(bench: Bench) -> None:
    assert [bench[register] for register in range(8)] == [0, 0, 0x01, 0, 0, 0x60, 0xB0, 0]


def test_bytes_go_out_before_any_set_up(bench: Bench) -> None:
    for byte in b"hi\xff":
        bench[uart.THR] = byte
    assert bench.sent == b"hi\xff"


def test_a_string_goes_out_in_one_piece() -> None:
    pieces: list[bytes] = []
    Serial(pieces.append).write_string(uart.THR, b"hello", 1)
    assert pieces == [b"hello"]


def test_a_string_is_bytes_where_each_does_something(bench: Bench) -> None:
    bench[uart.IER] = uart.IER_THRI
    bench.uart.write_string(uart.THR, b"ab", 1)
    assert bench.sent == b"ab"
    assert bench.rises == 3
    bench[uart.MCR] = uart.MCR_LOOP
    bench[uart.FCR] = 0x01
    bench.uart.write_string(uart.THR, b"cd", 1)
    assert bench.sent == b"ab"
    assert bench.uart.read_string(uart.RBR, 1, 2) == b"cd"
    bench.uart.write_string(uart.SCR, b"xy", 1)
    assert bench[uart.SCR] == ord("y")


@pytest.mark.parametrize(("lcr", "out"), [(0, 0x1F), (1, 0x3F), (2, 0x7F), (3, 0xFF)])
def test_word_length_masks_both_directions(bench: Bench, lcr: int, out: int) -> None:
    bench[uart.LCR] = lcr
    bench[uart.THR] = 0xFF
    bench.uart.write_string(uart.THR, b"\xff\xff", 1)
    bench.uart.receive(b"\xff")
    assert bench.sent == bytes([out] * 3)
    assert bench[uart.RBR] == out


def test_divisor_latch_hides_data_and_interrupt_enable(bench: Bench) -> None:
    bench[uart.IER] = 0x05
    bench[uart.LCR] = 0x83
    bench[uart.DLL], bench[uart.DLM] = 0x01, 0x02
    assert (bench[uart.DLL], bench[uart.DLM], bench.uart.divisor) == (1, 2, 0x201)
    assert not bench.sent
    bench[uart.LCR] = 0x03
    assert bench[uart.IER] == 0x05


def test_baud_and_character_time(bench: Bench) -> None:
    bench[uart.LCR] = 0x83
    bench[uart.DLL], bench[uart.DLM] = 1, 0
    bench[uart.LCR] = 0x03
    assert bench.uart.baud == 115200
    assert bench.uart.character_time == 10 * 1_000_000_000 // 115200
    bench[uart.LCR] = 0x1F  # 8 bits, parity, two stop bits
    assert bench.uart.character_time == 12 * 1_000_000_000 // 115200


def test_divisor_of_zero_is_no_division_by_zero(bench: Bench) -> None:
    bench[uart.LCR] = 0x80
    bench[uart.DLL] = bench[uart.DLM] = 0
    assert bench.uart.baud == 1
    assert bench.uart.character_time > 0


def test_reserved_bits_read_zero(bench: Bench) -> None:
    for register, kept in ((uart.IER, 0x0F), (uart.MCR, 0x1F), (uart.LCR, 0xFF), (uart.SCR, 0xFF)):
        bench[register] = 0xFF
        assert bench[register] == kept
        bench[register] = 0
    assert bench[uart.IER] == 0


def test_status_registers_are_read_only(bench: Bench) -> None:
    bench[uart.LSR] = 0xFF
    bench[uart.MSR] = 0xFF
    assert (bench[uart.LSR], bench[uart.MSR]) == (0x60, 0xB0)


def test_wider_accesses_are_bytes_at_the_next_registers(bench: Bench) -> None:
    bench.uart.write(uart.LCR, 0x5A_00_0A_03, 4)  # LCR, MCR, LSR, MSR
    assert (bench[uart.LCR], bench[uart.MCR]) == (0x03, 0x0A)
    bench.uart.write(uart.SCR, 0x77_66, 2)
    assert bench.uart.read(uart.SCR, 2) == 0xFF66
    assert bench.uart.read(uart.MCR, 2) == 0x600A


# Receiving


def test_received_bytes_without_fifo_come_one_by_one(bench: Bench) -> None:
    bench.uart.receive(b"abc")
    assert bench.uart.waiting == 2
    got = bytearray()
    while bench[uart.LSR] & uart.LSR_DR:
        got.append(bench[uart.RBR])
    assert got == b"abc"
    assert bench[uart.RBR] == 0


def test_every_byte_is_an_edge_for_a_handler_that_reads_one(bench: Bench) -> None:
    bench[uart.IER] = uart.IER_RDI
    bench.uart.receive(b"abc")
    for count in (1, 2, 3):
        assert bench.rises == count
        assert bench[uart.IIR] == uart.IIR_RDI
        bench[uart.RBR]
    assert not bench.level


@pytest.mark.parametrize(("bits", "level"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_trigger_levels(bits: int, level: int) -> None:
    bench = Bench(clock=lambda: 0)
    bench[uart.FCR] = bits | 1
    bench[uart.IER] = uart.IER_RDI
    bench.uart.receive(bytes(level - 1))
    assert not bench.level
    assert bench[uart.IIR] == 0xC1
    bench.uart.receive(b"x")
    assert bench.level
    assert bench[uart.IIR] == 0xC4
    bench[uart.RBR]
    assert not bench.level


def test_fifo_disabled_clears_it_and_the_iir_bits(bench: Bench) -> None:
    bench[uart.FCR] = 0x01
    bench.uart.receive(b"abc")
    assert bench[uart.IIR] & uart.IIR_FIFO == uart.IIR_FIFO
    bench[uart.FCR] = 0x00
    assert bench[uart.IIR] & uart.IIR_FIFO == 0
    assert not bench[uart.LSR] & uart.LSR_DR


def test_fifo_bits_need_the_enable_bit(bench: Bench) -> None:
    bench.uart.receive(b"a")
    bench[uart.FCR] = uart.FCR_CLEAR_RECEIVE | 0xC0
    assert bench[uart.LSR] & uart.LSR_DR
    assert bench.uart.fcr == 0


def test_clearing_the_receive_fifo_clears_itself(bench: Bench) -> None:
    bench[uart.FCR] = 0x01
    bench.uart.receive(b"abc", paced=False)
    bench[uart.FCR] = 0x01 | uart.FCR_CLEAR_RECEIVE
    assert not bench[uart.LSR] & uart.LSR_DR
    bench.uart.receive(b"d")
    assert bench[uart.RBR] == ord("d")


def test_overrun_without_fifo_destroys_the_old_byte(bench: Bench) -> None:
    bench.uart.receive(b"ab", paced=False)
    assert bench[uart.LSR] == 0x63
    assert bench[uart.LSR] == 0x61  # reading cleared the error
    assert bench[uart.RBR] == ord("b")


def test_overrun_with_fifo_loses_the_new_byte(bench: Bench) -> None:
    bench[uart.FCR] = 0x01
    bench.uart.receive(bytes(range(17)), paced=False)
    assert bench[uart.LSR] & uart.LSR_OE
    assert bench.uart.read_string(uart.RBR, 1, 17) == bytes(range(16)) + b"\0"


def test_errors_show_when_their_character_is_on_top(bench: Bench) -> None:
    bench[uart.FCR] = 0x01
    bench[uart.IER] = uart.IER_RLSI
    bench.uart.receive(b"a")
    bench.uart.receive_damaged(ord("b"), parity=True)
    bench.uart.receive_damaged(ord("c"), framing=True)
    assert bench[uart.LSR] == 0x61 | uart.LSR_FIFO_ERROR
    assert not bench.level
    assert bench[uart.RBR] == ord("a")
    assert bench[uart.IIR] == 0xC6
    assert bench[uart.LSR] == 0x61 | uart.LSR_PE | uart.LSR_FIFO_ERROR
    assert bench[uart.LSR] == 0x61 | uart.LSR_FIFO_ERROR  # c is damaged as well
    bench[uart.RBR]
    assert bench[uart.LSR] == 0x61 | uart.LSR_FE | uart.LSR_FIFO_ERROR
    bench[uart.RBR]
    assert bench[uart.LSR] == 0x60


def test_break_is_a_zero_with_its_bit(bench: Bench) -> None:
    bench.uart.receive_break()
    assert bench[uart.LSR] == 0x61 | uart.LSR_BI
    assert bench[uart.RBR] == 0


def test_character_timeout_at_once_without_a_clock(bench: Bench) -> None:
    bench[uart.FCR] = 0xC1
    bench[uart.IER] = uart.IER_RDI
    bench.uart.receive(b"ab")
    for count in (1, 2):
        assert bench.rises == count
        assert bench[uart.IIR] == 0xCC
        bench[uart.RBR]
    assert not bench.level
    assert bench[uart.IIR] == 0xC1


def test_character_timeout_after_four_characters() -> None:
    time = [1000]
    bench = Bench(clock=lambda: time[0])
    bench[uart.LCR] = 0x03
    bench[uart.FCR] = 0xC1
    bench[uart.IER] = uart.IER_RDI
    bench.uart.receive(b"ab")
    due = bench.uart.poll()
    assert due == 1000 + 4 * bench.uart.character_time
    time[0] = due - 1
    assert bench[uart.IIR] == 0xC1
    assert not bench.level
    time[0] = due
    assert bench.uart.poll() is None
    assert bench.level
    assert bench[uart.IIR] == 0xCC
    bench[uart.RBR]  # starts it again
    assert not bench.level
    assert bench.uart.poll() == due + 4 * bench.uart.character_time
    bench[uart.RBR]
    assert bench.uart.poll() is None


def test_no_timeout_without_the_fifo() -> None:
    bench = Bench(clock=lambda: 0)
    bench.uart.receive(b"a")
    assert bench.uart.poll() is None


# Interrupts


def test_enabling_the_transmitter_interrupt_asks_at_once(bench: Bench) -> None:
    bench[uart.IER] = uart.IER_THRI
    assert bench.level
    assert bench[uart.IIR] == uart.IIR_THRI
    assert not bench.level  # reading IIR was the acknowledgement
    assert bench[uart.IIR] == uart.IIR_NONE
    bench[uart.IER] = uart.IER_THRI  # no rising edge, no new request
    assert not bench.level
    bench[uart.IER] = 0
    bench[uart.IER] = uart.IER_THRI
    assert bench.level


def test_disabling_the_transmitter_interrupt_forgets_it(bench: Bench) -> None:
    bench[uart.IER] = uart.IER_THRI
    bench[uart.IER] = 0
    assert bench.edges == [True, False]
    assert bench.uart.state()["thr_pending"] is False


def test_reading_the_line_status_drops_its_interrupt(bench: Bench) -> None:
    bench[uart.IER] = uart.IER_RLSI
    bench.uart.receive_break()
    assert bench.edges == [True]
    bench[uart.LSR]
    assert bench.edges == [True, False]


def test_clearing_the_fifo_is_an_edge_when_more_waits(bench: Bench) -> None:
    bench[uart.FCR] = 0x01
    bench[uart.IER] = uart.IER_RDI
    bench.uart.receive(bytes(20))
    bench[uart.FCR] = 0x01 | uart.FCR_CLEAR_RECEIVE
    assert bench.edges == [True, False, True]
    assert bench.uart.state()["fifo_bytes"] == bytes(4)


def test_clearing_the_fifo_ends_the_timeout() -> None:
    bench = Bench(clock=lambda: 0)
    bench[uart.FCR] = 0xC1
    bench.uart.receive(b"a")
    bench[uart.FCR] = 0xC1 | uart.FCR_CLEAR_RECEIVE
    assert bench.uart.poll() is None


def test_time_passes_for_a_guest_that_polls_the_line_status() -> None:
    time = [0]
    bench = Bench(clock=lambda: time[0])
    bench[uart.FCR] = 0xC1
    bench[uart.IER] = uart.IER_RDI
    bench.uart.receive(b"a")
    time[0] = 1 << 40
    assert not bench.level
    bench[uart.LSR]
    assert bench.level


def test_each_byte_sent_is_an_edge(bench: Bench) -> None:
    bench[uart.IER] = uart.IER_THRI
    for count, byte in enumerate(b"abc", start=2):
        bench[uart.THR] = byte
        assert bench.rises == count
        assert bench.level
    assert bench.sent == b"abc"


def test_priorities(bench: Bench) -> None:
    bench[uart.IER] = 0x0F
    bench.uart.set_modem(cts=False)
    bench.uart.receive_damaged(1, parity=True)
    assert bench[uart.IIR] == uart.IIR_RLSI
    bench[uart.LSR]
    assert bench[uart.IIR] == uart.IIR_RDI
    bench[uart.RBR]
    assert bench[uart.IIR] == uart.IIR_THRI
    assert bench[uart.IIR] == uart.IIR_MSI
    bench[uart.MSR]
    assert bench[uart.IIR] == uart.IIR_NONE
    assert bench.edges == [True, False]


def test_iir_acknowledges_the_transmitter_only_when_it_is_the_reason(bench: Bench) -> None:
    bench[uart.IER] = uart.IER_THRI | uart.IER_RDI
    bench.uart.receive(b"a")
    assert bench[uart.IIR] == uart.IIR_RDI
    bench[uart.RBR]
    assert bench[uart.IIR] == uart.IIR_THRI


def test_masked_interrupts_stay_silent_until_enabled(bench: Bench) -> None:
    bench.uart.receive(b"a")
    assert not bench.edges
    bench[uart.IER] = uart.IER_RDI
    assert bench.edges == [True]
    bench[uart.IER] = 0
    assert bench.edges == [True, False]


def test_out2_gates_only_when_asked() -> None:
    bench = Bench(out2_gates_irq=True)
    bench[uart.IER] = uart.IER_RDI
    bench.uart.receive(b"a")
    assert not bench.level
    bench[uart.MCR] = uart.MCR_OUT2
    assert bench.level
    bench[uart.MCR] = uart.MCR_OUT2 | uart.MCR_LOOP
    assert not bench.level


# Modem lines and loopback


def test_modem_deltas_and_the_trailing_edge_of_the_ring(bench: Bench) -> None:
    bench[uart.IER] = uart.IER_MSI
    bench.uart.set_modem(ri=True)
    assert bench[uart.MSR] == 0xF0  # ringing begins: no delta
    assert not bench.level
    bench.uart.set_modem(ri=False, cts=False)
    assert bench.level
    assert bench[uart.MSR] == 0xA0 | uart.MSR_TERI | uart.MSR_DCTS
    assert bench[uart.MSR] == 0xA0
    assert not bench.level


@pytest.mark.parametrize(
    ("mcr", "line", "delta"),
    [
        (uart.MCR_RTS, uart.MSR_CTS, uart.MSR_DCTS),
        (uart.MCR_DTR, uart.MSR_DSR, uart.MSR_DDSR),
        (uart.MCR_OUT1, uart.MSR_RI, 0),
        (uart.MCR_OUT2, uart.MSR_DCD, uart.MSR_DDCD),
    ],
)
def test_loopback_connects_modem_outputs_to_inputs(bench: Bench, mcr: int, line: int, delta: int) -> None:
    bench[uart.MCR] = uart.MCR_LOOP
    bench[uart.MSR]
    assert bench[uart.MSR] == 0
    bench[uart.MCR] = uart.MCR_LOOP | mcr
    assert bench[uart.MSR] == line | delta


def test_loopback_ring_ends(bench: Bench) -> None:
    bench[uart.MCR] = uart.MCR_LOOP | uart.MCR_OUT1
    bench[uart.MSR]
    bench[uart.MCR] = uart.MCR_LOOP
    assert bench[uart.MSR] == uart.MSR_TERI


def test_loopback_returns_what_is_sent_and_hides_the_line(bench: Bench) -> None:
    bench[uart.MCR] = uart.MCR_LOOP
    bench[uart.IER] = uart.IER_RDI
    bench.uart.receive(b"x")
    assert not bench[uart.LSR] & uart.LSR_DR
    bench[uart.THR] = 0xAE
    assert not bench.sent
    assert bench.level
    assert bench[uart.RBR] == 0xAE
    bench[uart.THR], bench[uart.THR] = 1, 2
    assert bench[uart.LSR] & uart.LSR_OE
    bench[uart.RBR]
    bench[uart.MCR] = 0
    assert bench[uart.RBR] == ord("x")  # what waited outside comes now


# State and threads


def test_restore_continues_and_drives_the_line() -> None:
    first = Bench()
    first[uart.LCR] = 0x03
    first[uart.FCR] = 0x81
    first[uart.IER] = 0x05
    first.uart.receive(bytes(range(40)))
    first.uart.receive_damaged(7, parity=True)
    second = Bench()
    second.uart.restore(first.uart.state())
    assert second.uart.state() == first.uart.state()
    assert second.level
    second.uart.restore(first.uart.state())
    assert second.edges == [True, True]  # said again, as the controller may have been restored to anything
    assert second.uart.read_string(uart.RBR, 1, 40) == bytes(range(40))


def test_a_running_timeout_is_restored_as_what_is_left() -> None:
    first = Bench(clock=lambda: 5)
    first[uart.FCR] = 0xC1
    first.uart.receive(b"a")
    second = Bench(clock=lambda: 1_000_000)
    second.uart.restore(first.uart.state())
    assert second.uart.poll() == 1_000_000 + 4 * first.uart.character_time


@pytest.mark.parametrize(
    "change",
    [
        {"fifo_bytes": b"ab", "fifo_errors": b"\0\0"},
        {"fifo_bytes": b"a"},
        {"divisor": 0x10000},
        {"ier": True},
    ],
)
def test_restore_refuses_and_leaves_all(change: dict[str, object]) -> None:
    bench = Bench()
    before = bench.uart.state()
    with pytest.raises(DeviceError):
        bench.uart.restore({**before, "scratch": 9, **change})
    assert bench.uart.state() == before


def test_reset_keeps_scratch_and_divisor(bench: Bench) -> None:
    bench[uart.LCR] = 0x80
    bench[uart.DLL] = 3
    bench[uart.LCR] = 0x03
    bench[uart.SCR] = 0x42
    bench[uart.IER] = uart.IER_THRI
    bench.uart.reset()
    assert not bench.level
    assert (bench[uart.IER], bench[uart.LCR], bench[uart.SCR], bench.uart.divisor) == (0, 0, 0x42, 3)


def test_input_from_another_thread_arrives_whole_and_in_order() -> None:
    bench = Bench()
    bench[uart.FCR] = 0x01
    sent = bytes(index & 0xFF for index in range(5000))
    sender = threading.Thread(
        target=lambda: [bench.uart.receive(sent[at : at + 7]) for at in range(0, 5000, 7)]
    )
    sender.start()
    got = bytearray()
    while len(got) < len(sent):
        if bench[uart.LSR] & uart.LSR_DR:
            got.append(bench[uart.RBR])
        elif not sender.is_alive() and not bench[uart.LSR] & uart.LSR_DR:
            break
    sender.join()
    assert got == sent


def test_output_may_call_back() -> None:
    echo: list[Serial] = []

    def send_back(data: bytes) -> None:
        echo[0].receive(data)

    port = Serial(send_back)
    echo.append(port)
    port.write(uart.IER, uart.IER_THRI, 1)
    port.write(uart.THR, ord("e"), 1)
    assert port.read(uart.RBR, 1) == ord("e")


def test_an_output_that_fails_is_heard_and_can_be_tried_again(bench: Bench) -> None:
    def broken(data: bytes) -> None:
        raise BrokenPipeError

    port = Serial(broken)
    port.write(uart.IER, uart.IER_THRI, 1)
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            port.write(uart.THR, 1, 1)
    assert port.read(uart.LSR, 1) == 0x60


class FifoModel(RuleBasedStateMachine):
    """The receiver against two queues: the FIFO and what waits outside."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.capacity = 1
        self.trigger = 1
        self.fifo: deque[int] = deque()
        self.waiting: deque[int] = deque()
        self.overrun = False
        self.bench[uart.LCR] = 0x03
        self.bench[uart.IER] = uart.IER_RDI

    def refill(self) -> None:
        while self.waiting and len(self.fifo) < self.capacity:
            self.fifo.append(self.waiting.popleft())

    @rule(data=st.binary(max_size=40))
    def receive(self, data: bytes) -> None:
        self.waiting.extend(data)
        self.refill()
        assert self.bench.uart.receive(data) == len(self.waiting)

    @rule(data=st.binary(max_size=20))
    def receive_unpaced(self, data: bytes) -> None:
        for byte in data:
            if len(self.fifo) < self.capacity:
                self.fifo.append(byte)
            else:
                self.overrun = True
                if self.capacity == 1:
                    self.fifo[0] = byte
        self.bench.uart.receive(data, paced=False)

    @rule()
    def read(self) -> None:
        expected = self.fifo.popleft() if self.fifo else 0
        self.refill()
        assert self.bench[uart.RBR] == expected

    @precondition(lambda self: self.fifo)
    @rule(count=st.integers(1, 40))
    def read_string(self, count: int) -> None:
        expected = bytearray()
        for _ in range(count):
            expected.append(self.fifo.popleft() if self.fifo else 0)
            self.refill()
        assert self.bench.uart.read_string(uart.RBR, 1, count) == expected

    @rule(level=st.sampled_from([0, 1, 2, 3]), clear=st.booleans(), enable=st.booleans())
    def control(self, level: int, clear: bool, enable: bool) -> None:
        self.bench[uart.FCR] = level << 6 | (uart.FCR_CLEAR_RECEIVE if clear else 0) | enable
        switched = enable != (self.capacity == 16)
        if not enable and not switched:
            return
        self.capacity, self.trigger = (16, (1, 4, 8, 14)[level]) if enable else (1, 1)
        if clear or switched:
            self.fifo.clear()
            self.refill()

    @rule()
    def save_and_restore(self) -> None:
        fresh = Bench()
        fresh.uart.restore(self.bench.uart.state())
        self.bench = fresh

    @rule()
    def status(self) -> None:
        value = self.bench[uart.LSR]
        assert bool(value & uart.LSR_DR) == bool(self.fifo)
        assert bool(value & uart.LSR_OE) == self.overrun
        self.overrun = False

    @invariant()
    def interrupt(self) -> None:
        reason = self.bench[uart.IIR] & 0x0F
        if len(self.fifo) >= self.trigger:
            assert reason == uart.IIR_RDI
        else:
            assert reason == (uart.IIR_TIMEOUT if self.fifo else uart.IIR_NONE)
        assert self.bench.level == bool(self.fifo)
        assert self.bench.uart.waiting == len(self.waiting)


FifoModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFifo = FifoModel.TestCase
