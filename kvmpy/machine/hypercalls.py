"""Hypercalls: what a guest asks the host for by name, instead of by touching hardware that isn't there.

    @machine.hypercall(0x100)
    def greet(call):
        address, length = call.args[:2]
        print(call.read(address, length))
        return length

The convention is KVM's (kernel documentation, "Linux KVM Hypercall"): the number in RAX, up to four arguments in RBX,
RCX, RDX, RSI, the answer in RAX, everything else as it was. Outside 64-bit code only the lower halves count, and the
upper half of RAX is zero afterwards. Pointers are guest physical addresses. Errors are the negative codes below.

A guest gets here in one of two ways, and finds out by CPUID which (:mod:`kvmpy.x86.persona`):

``vmcall``    VMCALL or VMMCALL, where the engine hands them out (translate). KVM answers them itself, with
              -KVM_ENOSYS for a number it doesn't know; a PVM host never even comes back from one in ring 0
``doorbell``  any write to port 0xea: the same registers, the same answer. It works everywhere
"""

from __future__ import annotations

from kvmpy.errors import DeviceError, GuestMemoryError, UsageError
from kvmpy.machine.cpu import fresh

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmpy.machine.cpu import Cpu
    from kvmpy.machine.machine import Machine

    Handler = Callable[["Call"], int | None]

DOORBELL = 0xEA
"""The doorbell's port: below 0x100, so that OUT names it itself and RDX stays free for an argument."""

# What a hypercall answers when it fails, negated: include/uapi/linux/kvm_para.h.
KVM_EPERM, KVM_E2BIG, KVM_EFAULT, KVM_EINVAL, KVM_EOPNOTSUPP, KVM_ENOSYS = 1, 7, 14, 22, 95, 1000

OPCODES = (b"\x0f\x01\xc1", b"\x0f\x01\xd9")  # VMCALL, VMMCALL
PVM = "/sys/module/kvm_pvm"
MASK32, MASK64 = 0xFFFFFFFF, (1 << 64) - 1


class Refused(Exception):
    """Raised in a handler: the guest gets ``-code`` (KVM_EINVAL, …). An exception of any other kind stops the vCPU."""

    def __init__(self, code: int) -> None:
        super().__init__(f"-{code}")
        self.code = code


class Call:
    """One hypercall as its handler sees it: ``nr``, ``args`` (four), the ``cpu`` that makes it, ``long``: from 64-bit
    code. The guest gets what the handler returns, None as 0."""

    __slots__ = ("args", "cpu", "long", "nr")

    def __init__(self, cpu: Cpu, nr: int, args: tuple[int, int, int, int], long: bool) -> None:
        self.cpu = cpu
        self.nr = nr
        self.args = args
        self.long = long

    def read(self, gpa: int, length: int, most: int = 1 << 20) -> bytes:
        """The guest's buffer of ``length`` bytes at a guest physical address.

        Not all of it in memory: the guest gets -KVM_EFAULT; longer than ``most``: -KVM_E2BIG.
        """
        if length > most:
            raise Refused(KVM_E2BIG)
        try:
            return self.cpu.machine.memory.read(gpa, length)
        except GuestMemoryError:
            raise Refused(KVM_EFAULT) from None

    def write(self, gpa: int, data: bytes) -> None:
        """Fills the guest's buffer; all of it, or -KVM_EFAULT and none where it isn't writable memory."""
        try:
            self.cpu.machine.memory.write(gpa, data)
        except GuestMemoryError:
            raise Refused(KVM_EFAULT) from None

    def check(self, gpa: int, length: int, alignment: int = 1) -> None:
        """For a buffer that host and guest will share: -KVM_EFAULT outside memory, -KVM_EINVAL if it isn't aligned."""
        if gpa % alignment:
            raise Refused(KVM_EINVAL)
        try:
            self.cpu.machine.memory.address(gpa, length)
        except GuestMemoryError:
            raise Refused(KVM_EFAULT) from None

    def __repr__(self) -> str:
        arguments = ", ".join(f"{value:#x}" for value in self.args)
        return f"<hypercall {self.nr:#x}({arguments}) of vCPU {self.cpu.index}>"


class Hypercalls:
    """A machine's hypercalls by number, and the doorbell.

    Made by the first ``@machine.hypercall``; a vCPU that hasn't run yet then says so in its CPUID. ``calls`` counts
    them by number, the refused ones too.
    """

    name = "doorbell"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.calls: dict[int, int] = {}
        self._handlers: dict[int, Handler] = {}
        machine.ports.attach(DOORBELL, 1, self, self.name)
        self._announce()

    def _announce(self) -> None:
        from kvmpy.x86.persona import announce

        for cpu in self.machine.cpus:
            if not cpu.has_run:
                announce(cpu.cpuid, DOORBELL, instruction=not self.machine.engine.in_kernel)

    def add(self, nr: int, handler: Handler) -> None:
        """``handler(call)`` serves hypercall ``nr`` from now on. UsageError for a number that is taken or can't be."""
        if not 0 <= nr <= MASK64:
            raise UsageError(f"hypercall {nr:#x}: a number is what RAX holds, 0 to {MASK64:#x}")
        if nr in self._handlers:
            raise UsageError(f"hypercall {nr:#x} is served already, by {_name_of(self._handlers[nr])}")
        self._handlers[nr] = handler

    def remove(self, nr: int) -> None:
        """The number is unknown again. UsageError if it was anyway."""
        if self._handlers.pop(nr, None) is None:
            raise UsageError(f"hypercall {nr:#x} isn't served by anybody")

    def call(self, cpu: Cpu, nr: int, args: tuple[int, int, int, int], long: bool, ring: int) -> int:
        """Serves one hypercall; what RAX holds afterwards. What the handler raises (but Refused) comes out."""
        if not long:
            nr, args = nr & MASK32, tuple(arg & MASK32 for arg in args)  # type: ignore[assignment]
        handler = self._handlers.get(nr)
        if ring:
            answer = -KVM_EPERM  # as KVM: the kernel speaks for its programs
        elif handler is None:
            answer = -KVM_ENOSYS
        else:
            try:
                answer = self._answer(handler, handler(Call(cpu, nr, args, long)))
            except Refused as refused:
                answer = -refused.code
        self.calls[nr] = self.calls.get(nr, 0) + 1
        return answer & (MASK64 if long else MASK32)

    @staticmethod
    def _answer(handler: Handler, answer: object) -> int:
        if answer is None:
            return 0
        if not isinstance(answer, int) or not -(1 << 63) <= answer <= MASK64:
            raise DeviceError(
                f"hypercall handler {_name_of(handler)}: it answered {answer!r},"
                " not None or an integer that fits in RAX (64 bits)"
            )
        return int(answer)

    # The doorbell is a device.

    def read(self, offset: int, size: int) -> int:
        """The interface's version: 1."""
        return 1

    def write(self, offset: int, value: int, size: int) -> None:
        """Somebody rings: a hypercall of the vCPU on whose thread this is, by its registers. The value is ignored."""
        cpu = self.machine.current_cpu()
        regs, sregs = fresh(cpu.regs), fresh(cpu.sregs)
        long = bool(sregs.efer & (1 << 10) and sregs.cs.l)
        arguments = (regs.rbx, regs.rcx, regs.rdx, regs.rsi)
        # The OUT is done whatever comes of it; RIP is past it when the vCPU goes on.
        cpu.regs.rax = self.call(cpu, regs.rax, arguments, long, _ring(sregs))


def _ring(sregs: Any) -> int:
    """The current privilege level (SDM vol. 3A 5.5: SS.DPL; real mode has only ring 0)."""
    return int(sregs.ss.dpl) if sregs.cr0 & 1 else 0


def instruction(machine: Machine, exit_: Any) -> None:
    """KVM_EXIT_HYPERCALL: VMCALL or VMMCALL reached user space; from above ring 0 none does, engines refuse it."""
    registry = machine.hypercall_registry
    details = exit_.run.hypercall
    details.ret = MASK64 - KVM_ENOSYS + 1
    if registry is not None:
        args = details.args
        four = (args[0], args[1], args[2], args[3])
        details.ret = registry.call(exit_.cpu, details.nr, four, bool(details.longmode), 0)


def where_stuck(cpu: Cpu) -> str:
    """Why a vCPU whose time was up may have got nowhere: it was at a hypercall that this host never ends. Or ""."""
    import os

    if not cpu.machine.engine.in_kernel or not os.path.exists(PVM):
        return ""
    from kvmpy.machine.crash import code_at, linear_rip

    if code_at(cpu, linear_rip(cpu), 3) not in OPCODES:
        return ""
    return (
        f"vCPU {cpu.index} was at VMCALL or VMMCALL, which never returns on this host (PVM):"
        f" the guest can write to port {DOORBELL:#x} instead"
    )


def _name_of(handler: object) -> str:
    return getattr(handler, "__qualname__", None) or repr(handler)
