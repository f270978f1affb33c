"""The binding against the real ``/dev/kvm``: every ioctl group does what its method says."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmpy._native import ffi
from kvmpy.abi import capabilities as cap
from kvmpy.abi import constants as c
from kvmpy.abi import exits
from kvmpy.errors import EngineError, KvmError
from kvmpy.kvm import System, Vcpu, Vm, cpuid, routing

PAGE = 4096
RAM = 64 * PAGE
CODE = 0x1000
STACK = 0x8000
TSC = 0x10
LSTAR = 0xC0000082
MTRR_DEF_TYPE = 0x2FF
NO_MSR = 0x4711


@pytest.fixture(scope="module")
def kvm() -> Iterator[System]:
    try:
        system = System()
    except EngineError as error:
        pytest.skip(str(error))
    with system:
        yield system


@pytest.fixture
def vm(kvm: System) -> Iterator[Vm]:
    with kvm.create_vm() as made:
        made.set_identity_map_addr(0xFEFFC000)
        made.set_tss_addr(0xFEFFD000)
        yield made


class Guest:
    """Memory from 0, and a vCPU in real mode at CODE with a stack; slot 0."""

    def __init__(self, vm: Vm, code: str = "f4", *, flags: int = 0) -> None:
        self.vm = vm
        self.ram = mmap.mmap(-1, RAM)
        self.address = int(ffi.cast("uintptr_t", ffi.from_buffer(self.ram)))
        vm.set_user_memory_region(0, 0, RAM, self.address, flags)
        self.load(code)
        self.vcpu = vm.create_vcpu(0)
        self.start()

    def load(self, code: str, at: int = CODE) -> None:
        data = bytes.fromhex(code)
        self.ram[at : at + len(data)] = data

    def start(self, **registers: int) -> None:
        sregs = self.vcpu.get_sregs()
        for name in ("cs", "ds", "es", "ss"):
            segment = getattr(sregs, name)
            segment.base = segment.selector = 0
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.get_regs()
        regs.rip, regs.rsp, regs.rflags = CODE, STACK, 2
        for name, value in registers.items():
            setattr(regs, name, value)
        self.vcpu.set_regs(regs)

    def enter(self) -> str:
        """One entry: the exit's name, or errno's."""
        problem = self.vcpu.enter()
        return errno.errorcode[problem] if problem else exits.reason(self.vcpu.run.exit_reason)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.vcpu.close()
        self.vm.close()
        self.ram.close()


def needs(vm: Vm | System, capability: int) -> None:
    if not vm.check_extension(capability):
        pytest.skip(f"this kernel lacks {cap.name(capability)}")


def refused(call: Callable[[], object], name: str, *words: str) -> KvmError:
    """Calls, expects KvmError with that errno and those words in its one line."""
    with pytest.raises(KvmError) as caught:
        call()
    assert errno.errorcode[caught.value.errno] == name
    for word in (name, *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


# Owning file descriptors and mappings


def resources() -> tuple[int, int]:
    maps = Path("/proc/self/maps").read_text().count("kvm-vcpu")
    return len(list(Path("/proc/self/fd").iterdir())), maps


def test_a_hundred_vms_leave_nothing_behind(kvm: System) -> None:
    before = resources()
    for _ in range(100):
        with kvm.create_vm() as vm:
            vm.enable_dirty_ring(512)
            with vm.create_vcpu(0) as vcpu, vm.get_stats(), vcpu.get_stats():
                assert resources() > before
    assert resources() == before


def test_a_vcpu_that_cannot_be_made_leaves_nothing_behind(vm: Vm) -> None:
    with vm.create_vcpu(0):
        before = resources()
        refused(lambda: vm.create_vcpu(0), "EEXIST", "KVM_CREATE_VCPU on the VM", "vCPU 0")
        assert resources() == before


def test_a_vcpu_whose_mapping_fails_leaves_nothing_behind(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resources()
    monkeypatch.setattr(vm, "mmap_size", 1 << 60)
    with pytest.raises(KvmError, match=r"mmap of 0x10+ bytes of vCPU 0: Cannot allocate memory"):
        vm.create_vcpu(0)
    assert resources() == before


def test_closing_twice_is_fine(kvm: System) -> None:
    vm = kvm.create_vm()
    vcpu = vm.create_vcpu(0)
    for thing in (vcpu, vcpu, vm, vm):
        thing.close()
        assert thing.closed and thing.fileno() == -1
    assert repr(vcpu) == "<Vcpu vCPU 0 (closed)>"


def test_closing_does_not_close_somebody_elses_file(kvm: System) -> None:
    vm = kvm.create_vm()
    number = vm.fd
    vm.close()
    reused = os.open("/dev/null", os.O_RDONLY)
    try:
        vm.close()
        assert reused == number
        os.fstat(reused)
    finally:
        os.close(reused)


def test_a_forgotten_vm_is_a_resource_warning_and_no_leak(kvm: System) -> None:
    before = resources()
    with pytest.warns(ResourceWarning, match="<Vm the VM fd .* was never closed"):
        kvm.create_vm()
        gc.collect()
    assert resources() == before


def test_a_forgotten_vcpu_is_unmapped_even_if_warnings_are_errors(
    vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: raised.append(what.exc_type))
    before = resources()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vm.create_vcpu(0)
        gc.collect()
    assert raised == [ResourceWarning]
    assert resources() == before


def test_a_closed_vcpu_answers_with_an_error_not_a_crash(vm: Vm) -> None:
    vcpu = vm.create_vcpu(0)
    vcpu.close()
    for name in ("run", "sync_regs", "coalesced_ring", "memory_fault"):
        with pytest.raises(KvmError, match="vCPU 0 is closed"):
            getattr(vcpu, name)
    refused(vcpu.get_regs, "EBADF", "KVM_GET_REGS on vCPU 0", "closed")
    assert vcpu.enter() == errno.EBADF


def test_a_vm_outlives_the_system_it_came_from() -> None:
    with System() as system:
        vm = system.create_vm()
    with vm, vm.create_vcpu(0) as vcpu:
        assert vcpu.run.exit_reason == 0


# /dev/kvm


def test_a_file_that_is_not_kvm_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="/dev/null isn't KVM: KVM_GET_API_VERSION on /dev/null: ENOTTY"):
        System("/dev/null")


def test_a_missing_file_is_an_engine_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"/kvm doesn't exist: \w+ "):
        System(str(tmp_path / "kvm"))


def test_the_system_says_what_it_is(kvm: System) -> None:
    assert kvm.get_api_version() == 12
    assert kvm.get_vcpu_mmap_size() >= 3 * PAGE
    assert kvm.check_extension(cap.KVM_CAP_USER_MEMORY) == 1
    assert kvm.check_extension(9999) == 0


def test_another_version_of_the_api_is_an_engine_error(kvm: System, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resources()
    monkeypatch.setattr(System, "get_api_version", lambda _: 13)
    with pytest.raises(EngineError, match="/dev/kvm speaks version 13 of the KVM API, kvmpy needs 12"):
        System()
    assert resources() == before


def test_lists_of_msrs_and_cpuid_leaves(kvm: System) -> None:
    assert {TSC, LSTAR} <= set(kvm.get_msr_index_list())
    features = kvm.get_msr_feature_index_list()
    assert set(kvm.get_msrs([*features, NO_MSR])) <= set(features)
    leaves = {entry[:2]: entry[3:] for entry in kvm.get_supported_cpuid()}
    assert leaves[(0, 0)][0] >= 0xD
    assert leaves[(1, 0)][3] & 1, "an FPU"
    assert isinstance(kvm.get_emulated_cpuid(), list)
    assert kvm.get_mce_cap_supported() & 1 << 24, "software error recovery"


def test_a_vm_type_that_is_none(kvm: System) -> None:
    refused(lambda: kvm.create_vm(77), "EINVAL", "KVM_CREATE_VM on /dev/kvm (type 77)")


# Registers


def test_general_registers_come_back(vm: Vm) -> None:
    with Guest(vm) as guest:
        regs = guest.vcpu.get_regs()
        names = [name for name, _ in ffi.typeof("struct kvm_regs").fields or ()]
        for number, name in enumerate(names):
            setattr(regs, name, 0x1111 * (number + 1))
        regs.rflags = 2
        guest.vcpu.set_regs(regs)
        again = guest.vcpu.get_regs(into=ffi.new("struct kvm_regs *"))
        assert {name: getattr(again, name) for name in names} == {name: getattr(regs, name) for name in names}


def test_into_is_filled_and_returned(vm: Vm) -> None:
    with Guest(vm) as guest:
        mine = ffi.new("struct kvm_regs *")
        assert guest.vcpu.get_regs(mine) is mine
        assert mine.rip == CODE


@pytest.mark.parametrize(
    "kind", ["sregs", "sregs2", "fpu", "xsave", "xcrs", "debugregs", "vcpu_events", "lapic"], ids=str
)
def test_state_that_was_got_can_be_set(vm: Vm, kind: str) -> None:
    vm.create_irqchip()
    with Guest(vm) as guest:
        state = getattr(guest.vcpu, f"get_{kind}")()
        getattr(guest.vcpu, f"set_{kind}")(state)
        again = getattr(guest.vcpu, f"get_{kind}")()
        if kind == "lapic":  # its timer runs
            return
        assert bytes(ffi.buffer(again)) == bytes(ffi.buffer(state))


def test_a_structure_of_another_kind_is_a_type_error(vm: Vm) -> None:
    with Guest(vm) as guest:
        with pytest.raises(
            TypeError, match=r"KVM_SET_SREGS takes a struct kvm_sregs \*, not struct kvm_regs \*"
        ):
            guest.vcpu.set_sregs(guest.vcpu.get_regs())
        with pytest.raises(TypeError, match="KVM_GET_REGS takes"):
            guest.vcpu.get_regs(ffi.new("struct kvm_interrupt *"))


def test_registers_the_cpu_forbids_are_explained(vm: Vm) -> None:
    with Guest(vm) as guest:
        sregs = guest.vcpu.get_sregs()
        sregs.cr0, sregs.cr4, sregs.efer = 0x80000001, 0, 0x100
        line = "KVM_SET_SREGS on vCPU 0: EINVAL: CR0.PG is set but CR4.PAE and EFER.LME disagree"
        refused(lambda: guest.vcpu.set_sregs(sregs), "EINVAL", line)


def test_fpu_and_xsave_show_the_same_registers(vm: Vm) -> None:
    with Guest(vm) as guest:
        xsave = guest.vcpu.get_xsave()
        area = ffi.buffer(xsave)
        area[160 + 3 * 16 : 160 + 4 * 16] = bytes(range(16))  # XMM3 in the legacy region
        area[512:513] = b"\x03"  # XSTATE_BV: x87 and SSE are there
        guest.vcpu.set_xsave(xsave)
        fpu = guest.vcpu.get_fpu()
        assert bytes(ffi.buffer(fpu.xmm[3])) == bytes(range(16))
        fpu.fcw = 0x27F
        guest.vcpu.set_fpu(fpu)
        assert bytes(ffi.buffer(guest.vcpu.get_xsave()))[:2] == b"\x7f\x02"
        assert ffi.sizeof(xsave[0]) == vm.xsave_size >= 4096


def test_an_xsave_buffer_that_is_too_small_is_not_given_to_the_kernel(
    vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Guest(vm) as guest:
        small = ffi.new("struct kvm_xsave *")
        monkeypatch.setattr(vm, "_xsave_size", 8192)
        with pytest.raises(
            KvmError, match="KVM_SET_XSAVE on vCPU 0: a buffer of 4096 bytes; 8192 are needed"
        ):
            guest.vcpu.set_xsave(small)


def test_refused_msrs_are_reported_and_the_rest_is_done(vm: Vm) -> None:
    with Guest(vm) as guest:
        values = {NO_MSR: 1, LSTAR: 0x1234, NO_MSR + 1: 2, NO_MSR + 2: 3, MTRR_DEF_TYPE: 0xC06, NO_MSR + 3: 4}
        assert guest.vcpu.set_msrs(values) == [NO_MSR, NO_MSR + 1, NO_MSR + 2, NO_MSR + 3]
        assert guest.vcpu.get_msrs(values) == {LSTAR: 0x1234, MTRR_DEF_TYPE: 0xC06}


def test_more_msrs_than_the_kernel_takes_at_once(vm: Vm) -> None:
    with Guest(vm) as guest:
        guest.vcpu.set_msrs({LSTAR: 0xABCD})
        fixed = list(range(0x268, 0x270))  # MTRRs of 4 KiB ranges
        values = {index: 0x0606060606060606 ^ index << 40 & 0 for index in fixed}
        assert guest.vcpu.set_msrs(values) == []
        wanted = [LSTAR, *fixed, *range(0x10000, 0x10000 + 300), *fixed[::-1], LSTAR]
        assert guest.vcpu.get_msrs(wanted) == {LSTAR: 0xABCD, **values}
        many = {0x20000 + number: 0 for number in range(300)} | {LSTAR: 0x77}
        assert len(guest.vcpu.set_msrs(many)) == 300
        assert guest.vcpu.get_msrs([LSTAR]) == {LSTAR: 0x77}


def test_the_msr_before_a_second_call_keeps_its_value(vm: Vm) -> None:
    """The header of the second call is written over the end of entry 254."""
    with Guest(vm) as guest:
        guest.vcpu.set_msrs({LSTAR: 0xABCD, MTRR_DEF_TYPE: 0xC06})
        assert guest.vcpu.get_msrs([LSTAR] * 254 + [MTRR_DEF_TYPE] + [LSTAR] * 46) == {
            LSTAR: 0xABCD,
            MTRR_DEF_TYPE: 0xC06,
        }


def test_no_msrs_at_all(vm: Vm) -> None:
    with Guest(vm) as guest:
        assert guest.vcpu.get_msrs([]) == {}
        assert guest.vcpu.set_msrs({}) == []


def test_a_cpuid_table_comes_back(kvm: System, vm: Vm) -> None:
    with Guest(vm, "0fa2 e680 f4") as guest:  # cpuid; out 0x80, al
        table = cpuid.pack([(0, 0, 0, 0x1A, 1, 2, 3), (0x40000000, 0, 0, 0x40000001, 4, 5, 6)])
        guest.vcpu.set_cpuid2(table)
        assert guest.vcpu.get_cpuid2()[0][:6] == (0, 0, 0, 0x1A, 1, 2)
        guest.start(rax=0)
        assert guest.enter() == "IO"
        regs = guest.vcpu.get_regs()
        assert (regs.rax, regs.rbx, regs.rcx, regs.rdx) == (0x1A, 1, 2, 3)


def test_a_cpuid_table_of_tuples_is_packed(kvm: System, vm: Vm) -> None:
    with Guest(vm) as guest:
        entries = kvm.get_supported_cpuid()
        guest.vcpu.set_cpuid2(entries)
        assert [entry[:3] for entry in guest.vcpu.get_cpuid2()] == [entry[:3] for entry in entries]
        refused(lambda: guest.vcpu.set_cpuid2(entries * 9), "E2BIG", "256 entries is the most")


# Running


def test_port_output_and_halt(vm: Vm) -> None:
    with Guest(vm, "b041 e6e9 f4") as guest:
        assert guest.enter() == "IO"
        run = guest.vcpu.run
        assert (run.io.direction, run.io.size, run.io.port, run.io.count) == (
            exits.KVM_EXIT_IO_OUT,
            1,
            0xE9,
            1,
        )
        assert ffi.cast("unsigned char *", run)[run.io.data_offset] == 0x41
        assert guest.enter() == "HLT"


def test_immediate_exit_and_signals_are_eintr(vm: Vm) -> None:
    with Guest(vm, "ebfe") as guest:
        guest.vcpu.run.immediate_exit = 1
        assert guest.enter() == "EINTR"
        guest.vcpu.run.immediate_exit = 0
        previous = signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            assert guest.enter() == "EINTR"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)


def test_the_signal_mask_lets_a_blocked_signal_end_the_run(vm: Vm) -> None:
    with Guest(vm, "ebfe") as guest:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        try:
            guest.vcpu.set_signal_mask(set(range(1, 65)) - {signal.SIGUSR1, signal.SIGKILL, signal.SIGSTOP})
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            assert guest.enter() == "EINTR"
            assert signal.sigtimedwait({signal.SIGUSR1}, 0) is not None
            guest.vcpu.set_signal_mask(None)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        with pytest.raises(KvmError, match="no signal 65: they go from 1 to 64"):
            guest.vcpu.set_signal_mask([65])


def test_registers_travel_in_the_shared_page(vm: Vm) -> None:
    needs(vm, cap.KVM_CAP_SYNC_REGS)
    with Guest(vm, "b82143 e6e9 e6e9 f4") as guest:
        guest.vcpu.sync(c.KVM_SYNC_X86_REGS | c.KVM_SYNC_X86_SREGS)
        assert guest.enter() == "IO"
        assert guest.vcpu.sync_regs.regs.rax & 0xFFFF == 0x4321
        assert guest.vcpu.sync_regs.sregs.cs.selector == 0
        guest.vcpu.sync_regs.regs.rax = 0x99
        guest.vcpu.sync_dirty(c.KVM_SYNC_X86_REGS)
        assert guest.vcpu.run.kvm_dirty_regs == c.KVM_SYNC_X86_REGS
        assert guest.enter() == "IO"
        assert guest.vcpu.run.kvm_dirty_regs == 0
        assert guest.vcpu.get_regs().rax == 0x99


def test_single_steps(vm: Vm) -> None:
    with Guest(vm, "90 90 f4") as guest:
        guest.vcpu.set_guest_debug(c.KVM_GUESTDBG_ENABLE | c.KVM_GUESTDBG_SINGLESTEP)
        for step in (1, 2):
            assert guest.enter() == "DEBUG"
            assert guest.vcpu.run.debug.arch.pc == CODE + step
        guest.vcpu.set_guest_debug(0)
        assert guest.enter() == "HLT"


def test_a_breakpoint_register(vm: Vm) -> None:
    with Guest(vm, "90 90 90 f4") as guest:
        control = c.KVM_GUESTDBG_ENABLE | c.KVM_GUESTDBG_USE_HW_BP
        guest.vcpu.set_guest_debug(control, (CODE + 2, 0, 0, 0, 0, 0, 0, 0x402))
        assert guest.enter() == "DEBUG"
        assert guest.vcpu.run.debug.arch.pc == CODE + 2


def test_linear_addresses_are_translated(vm: Vm) -> None:
    with Guest(vm) as guest:
        assert guest.vcpu.translate(0x1234) == 0x1234


# Interrupts


def test_an_interrupt_without_irqchip(vm: Vm) -> None:
    with Guest(vm, "fb 90 f4") as guest:
        guest.load("e677 cf", at=0x2000)  # out 0x77, al; iret
        guest.load("0020 0000", at=0x21 * 4)
        guest.vcpu.interrupt(0x21)
        assert guest.enter() == "IO"
        assert guest.vcpu.run.io.port == 0x77
        assert guest.enter() == "HLT"
        refused(lambda: guest.vcpu.interrupt(999), "EINVAL", "vector 999", "0 to 255")


def test_a_second_external_interrupt_has_to_wait(vm: Vm) -> None:
    vm.enable_split_irqchip()
    with vm.create_vcpu(0) as vcpu:
        vcpu.interrupt(0x21)
        refused(
            lambda: vcpu.interrupt(0x22), "EEXIST", "KVM_INTERRUPT on vCPU 0 (vector 34)", "already queued"
        )


def test_an_interrupt_is_not_queued_beside_pics_in_the_kernel(vm: Vm) -> None:
    vm.create_irqchip()
    with vm.create_vcpu(0) as vcpu:
        refused(lambda: vcpu.interrupt(0x21), "ENXIO", "interrupt controller in the kernel")


def test_the_interrupt_window(vm: Vm) -> None:
    with Guest(vm, "90 fb 90 90 ebfe") as guest:
        guest.vcpu.run.request_interrupt_window = 1
        assert guest.enter() == "IRQ_WINDOW_OPEN"
        assert guest.vcpu.run.ready_for_interrupt_injection


def test_an_nmi(vm: Vm) -> None:
    with Guest(vm, "90 f4") as guest:
        guest.load("e677 cf", at=0x2000)
        guest.load("0020 0000", at=2 * 4)
        guest.vcpu.nmi()
        assert guest.vcpu.get_vcpu_events().nmi.pending == 1
        assert guest.enter() == "IO"
        assert guest.vcpu.run.io.port == 0x77


def pic_requests(vm: Vm, chip: int = c.KVM_IRQCHIP_PIC_MASTER) -> int:
    return int(vm.get_irqchip(chip).chip.pic.irr)


def test_interrupt_lines_and_routes(vm: Vm) -> None:
    vm.create_irqchip()
    vm.irq_line(5, 1)
    assert pic_requests(vm) == 1 << 5
    vm.set_gsi_routing([*routing.default(), routing.irqchip(50, c.KVM_IRQCHIP_PIC_SLAVE, 3)])
    assert vm.irq_line_status(50, 1) != 0
    assert pic_requests(vm, c.KVM_IRQCHIP_PIC_SLAVE) == 1 << 3
    refused(lambda: vm.set_gsi_routing([routing.irqchip(1, 7, 0)]), "EINVAL", "1 routes")


def test_an_eventfd_pulses_a_line(vm: Vm) -> None:
    vm.create_irqchip()
    eventfd = os.eventfd(0)
    try:
        vm.irqfd(eventfd, 6)
        refused(lambda: vm.irqfd(eventfd, 6), "EBUSY", f"eventfd {eventfd}, GSI 6")
        os.eventfd_write(eventfd, 1)
        give_up = time.monotonic() + 10  # the kernel may leave it to a work queue
        while not pic_requests(vm) and time.monotonic() < give_up:
            time.sleep(0.001)
        assert pic_requests(vm) == 1 << 6
        vm.irqfd(eventfd, 6, deassign=True)
        os.eventfd_write(eventfd, 1)
        assert os.eventfd_read(eventfd) == 1, "KVM no longer reads it"
    finally:
        os.close(eventfd)


def test_an_msi_reaches_a_local_apic(vm: Vm) -> None:
    vm.enable_split_irqchip()
    with Guest(vm) as guest:
        lapic = guest.vcpu.get_lapic()
        registers = ffi.buffer(lapic.regs)
        registers[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")  # software enable
        guest.vcpu.set_lapic(lapic)
        assert vm.signal_msi(0xFEE00000, 0x41) == 1
        requests = bytes(ffi.buffer(guest.vcpu.get_lapic().regs))[0x220:0x224]
        assert int.from_bytes(requests, "little") == 1 << (0x41 - 0x40)
        refused(lambda: vm.get_irqchip(c.KVM_IRQCHIP_IOAPIC), "ENXIO")


def test_interrupt_controllers_keep_their_order(vm: Vm) -> None:
    refused(vm.create_pit2, "ENOENT", "needs KVM_CREATE_IRQCHIP")
    with vm.create_vcpu(0):
        refused(vm.create_irqchip, "EINVAL", "before the first one")


def test_the_state_of_pic_ioapic_and_pit(vm: Vm) -> None:
    vm.create_irqchip()
    vm.create_pit2(c.KVM_PIT_SPEAKER_DUMMY)
    for chip in range(c.KVM_NR_IRQCHIPS):
        state = vm.get_irqchip(chip)
        assert state.chip_id == chip
        vm.set_irqchip(state)
    state = vm.get_irqchip(c.KVM_IRQCHIP_IOAPIC)
    state.chip.ioapic.redirtbl[4].bits = 0x10034
    vm.set_irqchip(state)
    assert vm.get_irqchip(c.KVM_IRQCHIP_IOAPIC).chip.ioapic.redirtbl[4].bits == 0x10034
    pit = vm.get_pit2()
    pit.channels[2].count, pit.channels[2].mode = 0x1234, 3
    vm.set_pit2(pit)
    assert vm.get_pit2().channels[2].count == 0x1234
    vm.reinject_control(False)


def test_mp_state(vm: Vm) -> None:
    vm.create_irqchip()
    with vm.create_vcpu(0) as first, vm.create_vcpu(1) as second:
        assert first.get_mp_state() == c.KVM_MP_STATE_RUNNABLE
        assert second.get_mp_state() == c.KVM_MP_STATE_UNINITIALIZED
        second.set_mp_state(c.KVM_MP_STATE_RUNNABLE)
        assert second.get_mp_state() == c.KVM_MP_STATE_RUNNABLE
        refused(lambda: first.set_mp_state(99), "EINVAL", "state 99")


# Events and rings


def test_port_writes_signal_an_eventfd(vm: Vm) -> None:
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    vm.ioeventfd(eventfd, 0x77, 1, pio=True, datamatch=5)
    vm.ioeventfd(eventfd, 0x78, pio=True)  # of any length
    refused(lambda: vm.ioeventfd(eventfd, 0x77, 1, pio=True, datamatch=5), "EEXIST", "port 0x77, length 1")
    try:
        with Guest(vm, "b005 e677 e678 e778 b006 e677 f4") as guest:
            assert guest.enter() == "IO"
            assert ffi.cast("unsigned char *", guest.vcpu.run)[guest.vcpu.run.io.data_offset] == 6
            assert os.eventfd_read(eventfd) == 3
            vm.ioeventfd(eventfd, 0x78, pio=True, deassign=True)
            refused(lambda: vm.ioeventfd(eventfd, 0x78, pio=True, deassign=True), "ENOENT")
            assert guest.enter() == "HLT"
            guest.start()
            guest.load("e678 f4")
            assert guest.enter() == "IO"
    finally:
        os.close(eventfd)


def test_coalesced_writes_wait_in_the_ring(vm: Vm) -> None:
    needs(vm, cap.KVM_CAP_COALESCED_PIO)
    vm.register_coalesced(0x20000 * 4, PAGE)
    vm.register_coalesced(0x77, 1, pio=True)
    # mov ax, 0x8000; mov ds, ax … writes to 0x80000, beyond the slot
    with Guest(vm, "b80080 8ed8 c606000041 c70602004342 e677 f4") as guest:
        assert guest.enter() == "HLT"
        assert guest.vcpu.take_coalesced() == [
            (0x80000, b"\x41", False),
            (0x80002, b"\x43\x42", False),
            (0x77, b"\x00", True),
        ]
        assert guest.vcpu.take_coalesced() == []
        vm.unregister_coalesced(0x77, 1, pio=True)
        guest.start()
        assert guest.enter() == "IO"
        assert len(guest.vcpu.take_coalesced()) == 2


def test_the_coalesced_ring_goes_round(vm: Vm) -> None:
    needs(vm, cap.KVM_CAP_COALESCED_PIO)
    vm.register_coalesced(0x77, 1, pio=True)
    with Guest(vm, "e677 fec0 ebfa") as guest:  # out 0x77, al; inc al; again
        seen: list[int] = []
        while len(seen) < 1000:
            assert guest.enter() == "IO"  # full: the write comes as an exit
            seen += [data[0] for _, data, _ in guest.vcpu.take_coalesced()]
            seen.append(ffi.cast("unsigned char *", guest.vcpu.run)[guest.vcpu.run.io.data_offset])
        assert seen == [number & 0xFF for number in range(len(seen))]


# Memory


def test_slots_that_cannot_be(vm: Vm) -> None:
    with Guest(vm) as guest:

        def new(slot: int, gpa: int, size: int, flags: int = 0) -> None:
            vm.set_user_memory_region(slot, gpa, size, guest.address, flags)

        refused(lambda: new(1, PAGE, PAGE), "EEXIST", "slot 1, 0x1000 bytes at 0x1000", "overlaps")
        refused(lambda: new(1, 0x100001, PAGE), "EINVAL", "whole pages")
        refused(lambda: new(1, 0x100000, PAGE, flags=0x100), "EINVAL")
        new(1, 0x100000, PAGE)
        new(1, 0x200000, PAGE)  # moved
        new(1, 0x200000, 0)  # deleted
        new(2, 0x200000, PAGE)


def test_a_write_to_a_read_only_slot_is_an_exit(vm: Vm) -> None:
    needs(vm, cap.KVM_CAP_READONLY_MEM)
    with Guest(vm, "b80080 8ed8 a00000 c606010041 f4") as guest:
        rom = mmap.mmap(-1, PAGE)
        rom[0] = 0x5A
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(rom)))
        vm.set_user_memory_region(1, 0x80000, PAGE, address, c.KVM_MEM_READONLY)
        assert guest.enter() == "MMIO"
        mmio = guest.vcpu.run.mmio
        assert (mmio.phys_addr, mmio.is_write, mmio.len, mmio.data[0]) == (0x80001, 1, 1, 0x41)
        assert guest.vcpu.get_regs().rax & 0xFF == 0x5A


def test_the_newer_memory_ioctl(vm: Vm) -> None:
    needs(vm, cap.KVM_CAP_USER_MEMORY2)
    ram = mmap.mmap(-1, RAM)
    ram[0x1000:0x1003] = bytes.fromhex("e677f4")
    vm.set_user_memory_region2(3, 0, RAM, int(ffi.cast("uintptr_t", ffi.from_buffer(ram))))
    with Guest.__new__(Guest) as guest:
        guest.vm, guest.ram = vm, ram
        guest.vcpu = vm.create_vcpu(0)
        guest.start()
        assert guest.enter() == "IO"


def dirty_pages(bitmap: bytes | bytearray) -> set[int]:
    bits = int.from_bytes(bitmap, "little")
    return {page for page in range(len(bitmap) * 8) if bits >> page & 1}


WRITER = "a20050 a20060 f4"  # mov [0x5000], al; mov [0x6000], al; hlt


def test_the_dirty_log(vm: Vm) -> None:
    with Guest(vm, WRITER, flags=c.KVM_MEM_LOG_DIRTY_PAGES) as guest:
        vm.get_dirty_log(0)
        assert guest.enter() == "HLT"
        log = bytearray(RAM // PAGE // 8)
        assert vm.get_dirty_log(0, log) is log
        assert {5, 6} <= dirty_pages(log)
        assert vm.get_dirty_log(0) == bytes(8)
        odd = (1 << 20, RAM + PAGE)  # 65 pages: the kernel writes whole words
        with mmap.mmap(-1, RAM + PAGE) as ram:
            address = int(ffi.cast("uintptr_t", ffi.from_buffer(ram)))
            vm.set_user_memory_region(1, *odd, address, c.KVM_MEM_LOG_DIRTY_PAGES)
            assert vm.get_dirty_log(1) == bytes(16)
            vm.set_user_memory_region(1, odd[0], 0, 0)
        refused(lambda: vm.get_dirty_log(5), "ENOENT", "slot 5", "KVM_MEM_LOG_DIRTY_PAGES")
        with pytest.raises(KvmError, match="slot 0 takes 8 bytes, not 7"):
            vm.get_dirty_log(0, bytearray(7))


def test_the_dirty_log_cleared_by_hand(vm: Vm) -> None:
    needs(vm, cap.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
    vm.enable_manual_dirty_log_protect()
    with Guest(vm, WRITER, flags=c.KVM_MEM_LOG_DIRTY_PAGES) as guest:
        assert guest.enter() == "HLT"
        assert {5, 6} <= dirty_pages(vm.get_dirty_log(0))
        vm.clear_dirty_log(0, 0, 64, (1 << 5).to_bytes(8, "little"))
        assert dirty_pages(vm.get_dirty_log(0)) & {5, 6} == {6}
        refused(lambda: vm.clear_dirty_log(0, 1, 63, bytes(8)), "EINVAL", "63 pages from 1", "multiple of 64")
        with pytest.raises(KvmError, match="64 pages take a bitmap of 8 bytes, not 4"):
            vm.clear_dirty_log(0, 0, 64, bytes(4))


def test_the_dirty_ring(vm: Vm) -> None:
    needs(vm, cap.KVM_CAP_DIRTY_LOG_RING)
    vm.enable_dirty_ring(1024)
    with Guest(vm, WRITER, flags=c.KVM_MEM_LOG_DIRTY_PAGES) as guest:
        for _ in range(3):
            assert guest.enter() == "HLT"
            taken = guest.vcpu.take_dirty()
            assert {(0, 5), (0, 6)} <= set(taken)
            assert vm.reset_dirty_rings() == len(taken)
            assert guest.vcpu.take_dirty() == []
            guest.start()
        refused(lambda: vm.get_dirty_log(0), "ENXIO", "dirty rings")


def test_a_vcpu_without_dirty_ring_says_so(vm: Vm) -> None:
    with vm.create_vcpu(0) as vcpu, pytest.raises(KvmError, match="vCPU 0 has no dirty ring"):
        vcpu.take_dirty()


# Filters and capabilities


def test_msr_accesses_come_to_user_space(vm: Vm) -> None:
    needs(vm, cap.KVM_CAP_X86_USER_SPACE_MSR)
    vm.enable_user_space_msrs(exits.KVM_MSR_EXIT_REASON_UNKNOWN | exits.KVM_MSR_EXIT_REASON_FILTER)
    # Of two MSRs from LSTAR on, the first may be read.
    access = c.KVM_MSR_FILTER_READ | c.KVM_MSR_FILTER_WRITE
    vm.set_msr_filter([(access, LSTAR, 2, b"\x01")])
    with Guest(vm, "66b9820000c0 0f32 6641 0f32 f4") as guest:  # ecx = LSTAR; rdmsr; inc ecx; rdmsr
        assert guest.enter() == "X86_RDMSR"
        msr = guest.vcpu.run.msr
        assert (msr.index, msr.reason) == (LSTAR + 1, exits.KVM_MSR_EXIT_REASON_FILTER)
        msr.data, msr.error = 0x1_0000_0055, 0
        assert guest.enter() == "HLT"
        regs = guest.vcpu.get_regs()
        assert (regs.rax, regs.rdx) == (0x55, 1)
        vm.set_msr_filter([])
        guest.start()
        assert guest.enter() == "HLT"
        vm.set_msr_filter([(access, LSTAR + 1, 1, b"\x01")], default_deny=True)
        guest.start()
        assert guest.enter() == "X86_RDMSR"
        assert msr.index == LSTAR


def test_msr_filters_that_cannot_be(vm: Vm) -> None:
    with pytest.raises(KvmError, match="17 ranges; 16 are the most"):
        vm.set_msr_filter([(3, 0, 1, b"\1")] * 17)
    with pytest.raises(KvmError, match="1 bytes of bits for 9 MSRs from 0x10"):
        vm.set_msr_filter([(3, 0x10, 9, b"\1")])
    with pytest.raises(KvmError, match="12288 are the most"):
        vm.set_msr_filter([(3, 0, 12289, bytes(2000))])
    refused(lambda: vm.set_msr_filter([(0, 0, 8, b"\1")]), "EINVAL", "1 ranges")


def test_a_capability_that_is_none(vm: Vm) -> None:
    refused(lambda: vm.enable_cap(9999, 1), "EINVAL", "KVM_ENABLE_CAP on the VM (capability 9999)")
    with vm.create_vcpu(0) as vcpu:
        refused(lambda: vcpu.enable_cap(9999), "EINVAL", "KVM_ENABLE_CAP on vCPU 0")


def test_attributes(vm: Vm) -> None:
    assert not vm.has_device_attr(1234, 5)
    with vm.create_vcpu(0) as vcpu:
        if not vcpu.has_device_attr(c.KVM_VCPU_TSC_CTRL, c.KVM_VCPU_TSC_OFFSET):
            pytest.skip("this kernel has no attribute for the TSC offset (Linux 5.16)")
        before = vcpu.get_tsc_offset()
        assert 0 <= before < 1 << 64
        vcpu.set_tsc_offset(-1000)
        assert vcpu.get_tsc_offset() in ((1 << 64) - 1000, before), "or the host ignores it, like PVM"
        refused(lambda: vcpu.get_device_attr(77, 0, 0), "ENXIO", "group 77, attribute 0")


def test_devices(vm: Vm) -> None:
    refused(lambda: vm.create_device(99), "ENODEV", "type 99", "no device of that type")
    try:
        assert vm.create_device(c.KVM_DEV_TYPE_VFIO, test=True) is None
    except KvmError:
        pytest.skip("this kernel has no VFIO device (CONFIG_KVM_VFIO)")
    device = vm.create_device(c.KVM_DEV_TYPE_VFIO)
    assert device is not None
    with device:
        assert device.has_device_attr(c.KVM_DEV_VFIO_GROUP, c.KVM_DEV_VFIO_GROUP_ADD)
        assert not device.has_device_attr(99, 0)


# Clocks and counters


def test_clocks(vm: Vm) -> None:
    clock = vm.get_clock()
    assert vm.get_clock().clock >= clock.clock
    clock.clock, clock.flags = 1 << 40, 0
    vm.set_clock(clock)
    assert vm.get_clock().clock >= 1 << 40
    with vm.create_vcpu(0) as vcpu:
        assert vcpu.get_tsc_khz() > 100_000
        refused(lambda: vcpu.set_tsc_khz(1), "EINVAL", "1 kHz")


def test_the_kernels_counters(vm: Vm) -> None:
    needs(vm, cap.KVM_CAP_BINARY_STATS_FD)
    with Guest(vm, "e677 e677 f4") as guest, vm.get_stats() as of_vm, guest.vcpu.get_stats() as of_vcpu:
        assert of_vm.id.startswith("kvm-")
        assert of_vcpu.id == f"{of_vm.id}/vcpu-0"
        before = of_vcpu.read()
        assert guest.enter() == "IO"
        assert guest.enter() == "IO"
        after = of_vcpu.read()
        exits_of = {counter.name: counter for counter in of_vcpu.counters}["exits"]
        assert (exits_of.kind, exits_of.unit, exits_of.size) == ("cumulative", "", 1)
        assert _number(after["exits"]) >= _number(before["exits"]) + 2
        histogram = {counter.name: counter for counter in of_vcpu.counters}["halt_wait_hist"]
        assert (histogram.kind, histogram.unit) == ("logarithmic histogram", "seconds")
        assert histogram.scale == pytest.approx(1e-9)
        assert len(_list(after["halt_wait_hist"])) == histogram.size > 1


def _number(value: int | list[int]) -> int:
    assert isinstance(value, int)
    return value


def _list(value: int | list[int]) -> list[int]:
    assert isinstance(value, list)
    return value


# What a host may lack


def test_nested_state(vm: Vm) -> None:
    needs(vm, cap.KVM_CAP_NESTED_STATE)
    with vm.create_vcpu(0) as vcpu:
        vcpu.set_cpuid2(vm.system.get_supported_cpuid())
        state = vcpu.get_nested_state()
        assert len(state) >= 128
        vcpu.set_nested_state(state)
        with pytest.raises(KvmError, match="100 bytes for a state of 128"):
            vcpu.set_nested_state(bytes(100))


def test_guest_memory_of_its_own(vm: Vm) -> None:
    needs(vm, cap.KVM_CAP_GUEST_MEMFD)
    with vm.create_guest_memfd(RAM) as memory:
        assert memory.fd > 0
    refused(lambda: vm.create_guest_memfd(0), "EINVAL", "0x0 bytes", "whole pages")


def test_ioctls_this_host_lacks_say_so(vm: Vm) -> None:
    with vm.create_vcpu(0) as vcpu:
        try:
            vcpu.smi()
        except KvmError as error:
            assert "KVM_SMI on vCPU 0: ENOTTY: this kernel doesn't know the ioctl" in str(error)


@pytest.mark.parametrize("method", ["tpr_access_reporting", "set_vapic_addr"])
def test_the_task_priority_helpers(vm: Vm, method: str) -> None:
    needs(vm, cap.KVM_CAP_VAPIC)
    vm.create_irqchip()
    argument: Any = {"tpr_access_reporting": True, "set_vapic_addr": 0x1000}[method]
    with Guest(vm) as guest:
        vcpu: Vcpu = guest.vcpu
        getattr(vcpu, method)(argument)
