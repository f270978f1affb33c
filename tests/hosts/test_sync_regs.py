"""KVM_CAP_SYNC_REGS: registers that travel in the page that kernel and host share, in both directions."""

from __future__ import annotations

import errno
from typing import Any

from guests import listen, make, to_exit, to_halt
from listing import Code, code
from offers import require
from suite import Host, cases

from kvmpy._native import ffi
from kvmpy.abi import constants as c
from kvmpy.kvm import Vcpu
from kvmpy.machine import exits
from kvmpy.machine.engine import open_engine
from kvmpy.machine.machine import Machine

REGS, SREGS, EVENTS = c.KVM_SYNC_X86_REGS, c.KVM_SYNC_X86_SREGS, c.KVM_SYNC_X86_EVENTS
ALL = REGS | SREGS | EVENTS

COUNTS = code(
    64,
    """
    again:
      48 ff c3   inc rbx
      e6 e9      out 0xe9, al
      eb f9      jmp again
    """,
)
TWICE = code(
    64,
    """
    e6 e9   out 0xe9, al
    01 d8   add eax, ebx
    e6 e9   out 0xe9, al
    f4      hlt
    """,
)


class Shared:
    """A vCPU that is entered by hand, and what the shared page says at its exits."""

    def __init__(self, host: Host, what: Code) -> None:
        require("KVM_CAP_SYNC_REGS")
        self.machine: Machine = make(host, what)
        self.cpu = self.machine.cpus[0]
        self.cpu.set_up()
        self.vcpu: Vcpu = self.cpu.vcpu.vcpu
        self.run = self.vcpu.run
        self.regs = self.vcpu.sync_regs.regs
        self.sregs = self.vcpu.sync_regs.sregs

    def enter(self) -> None:
        assert self.vcpu.enter() == 0
        assert exits.name_of(self.run.exit_reason) == "IO"


def same(shared: object, got: object) -> bool:
    return bytes(ffi.buffer(ffi.addressof(shared))) == bytes(ffi.buffer(got))


def test_synced_registers_are_those_of_the_ioctls(host: Host) -> None:
    shared = Shared(host, COUNTS)
    shared.vcpu.sync(ALL)
    for _ in range(2):
        shared.enter()
        assert same(shared.regs, shared.vcpu.get_regs())
        assert same(shared.sregs, shared.vcpu.get_sregs())
        assert same(shared.vcpu.sync_regs.events, shared.vcpu.get_vcpu_events())
    assert shared.regs.rbx == 2


def test_registers_that_were_not_asked_for_stay_as_they_are(host: Host) -> None:
    shared = Shared(host, COUNTS)
    shared.vcpu.sync(0)
    shared.enter()
    shared.regs.rbx, shared.sregs.gs.base = 0xAAAA, 0xBBBB
    shared.enter()
    assert (shared.regs.rbx, shared.sregs.gs.base) == (0xAAAA, 0xBBBB)
    shared.vcpu.sync(REGS)
    shared.enter()
    assert (shared.regs.rbx, shared.sregs.gs.base) == (3, 0xBBBB), "only one of the groups"
    assert shared.vcpu.get_sregs().gs.base == 0, "nor was what was written there taken"


def test_a_dirty_group_is_taken_at_the_next_entry(host: Host) -> None:
    shared = Shared(host, COUNTS)
    shared.vcpu.sync(REGS | SREGS)
    shared.enter()
    shared.regs.rbx, shared.sregs.gs.base = 0x1000, 0x7000
    shared.vcpu.sync_dirty(REGS)
    shared.enter()
    assert shared.run.kvm_dirty_regs == 0, "taken"
    assert (shared.regs.rbx, shared.sregs.gs.base) == (0x1001, 0), "the other group wasn't marked"
    shared.sregs.gs.base = 0x7000
    shared.vcpu.sync_dirty(SREGS)
    shared.enter()
    assert shared.vcpu.get_sregs().gs.base == shared.sregs.gs.base == 0x7000
    shared.enter()
    assert shared.regs.rbx == 0x1003, "a mark counts for one entry"


@cases(valid="kvm_valid_regs", dirty="kvm_dirty_regs")
def test_groups_that_do_not_exist_are_refused(host: Host, case: str) -> None:
    shared = Shared(host, COUNTS)
    shared.enter()
    for wrong in (1 << 20, 1 << 20 | REGS):
        setattr(shared.run, case, wrong)
        assert shared.vcpu.enter() == errno.EINVAL
    setattr(shared.run, case, 0)
    shared.enter()
    assert shared.vcpu.get_regs().rbx == 2, "nothing ran meanwhile"


def test_special_registers_that_cannot_be_are_refused_from_the_page_too(host: Host) -> None:
    shared = Shared(host, COUNTS)
    shared.vcpu.sync(ALL)
    shared.enter()
    shared.sregs.cr4 = 0  # long mode is on, and needs PAE
    shared.vcpu.sync_dirty(SREGS)
    assert shared.vcpu.enter() == errno.EINVAL


@cases(shared=ALL, ioctls=0)
def test_a_machine_finds_its_registers_either_way(host: Host, case: int) -> None:
    """In the shared page, or where the kernel has none by ioctls: a handler's change reaches the guest."""
    engine: Any = open_engine("kvm")
    host.defer(setattr, engine, "sync_regs", engine.sync_regs)
    engine.sync_regs &= case
    machine = make(host, TWICE, registers={"rax": 1, "rbx": 2})
    heard = listen(machine)
    cpu = machine.cpus[0]
    to_exit(machine, "IO")
    assert cpu.regs.rax == 1
    cpu.regs.rbx = 5
    to_halt(machine)
    assert heard == [1, 6]
    assert cpu.regs.rax == 6
    assert cpu.synced & ~case == 0
