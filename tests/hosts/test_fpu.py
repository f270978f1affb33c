"""x87, SSE and AVX registers: kept while the host works with its own, shown to it, and taken from it."""

from __future__ import annotations

import math
import struct
from typing import Any

from guests import make, not_on_pvm, to_exit
from listing import Code, code
from suite import Host, needs

from kvmpy._native import ffi
from kvmpy.abi.capabilities import KVM_CAP_XSAVE2
from kvmpy.errors import KvmError
from kvmpy.machine.machine import Machine
from kvmpy.x86.cpuid import CpuidTable

CR4_OSXSAVE = 1 << 18
XCR0_AVX = 7  # x87, SSE, AVX
MXCSR_AT, XMM_AT, YMM_LEAF, HEADER_AT, FXSAVE = 24, 160, 2, 512, 512  # in the XSAVE area
PAGE = 4096
FROM, TO = 0x5000, 0x6000

# Port 0xe9 is the way out.
SSE = code(
    64,
    """
      f3 0f 6f 04 25 00 50 00 00      movdqu xmm0, [0x5000]
      f3 44 0f 6f 0c 25 10 50 00 00   movdqu xmm9, [0x5010]
      dd 04 25 20 50 00 00            fld qword ptr [0x5020]
      d9 eb                           fldpi
      e6 e9                           out 0xe9, al
      f3 0f 7f 04 25 00 60 00 00      movdqu [0x6000], xmm0
      f3 44 0f 7f 0c 25 10 60 00 00   movdqu [0x6010], xmm9
      dd 1c 25 20 60 00 00            fstp qword ptr [0x6020]
      dd 1c 25 28 60 00 00            fstp qword ptr [0x6028]
      d9 3c 25 30 60 00 00            fnstcw [0x6030]
      0f ae 1c 25 34 60 00 00         stmxcsr [0x6034]
      e6 e9                           out 0xe9, al
    """,
)
AVX = code(
    64,
    """
      c5 fe 6f 04 25 00 50 00 00   vmovdqu ymm0, [0x5000]
      c5 7e 6f 2c 25 20 50 00 00   vmovdqu ymm13, [0x5020]
      e6 e9                        out 0xe9, al
      c5 fe 7f 04 25 00 60 00 00   vmovdqu [0x6000], ymm0
      c5 7e 7f 2c 25 20 60 00 00   vmovdqu [0x6020], ymm13
      e6 e9                        out 0xe9, al
    """,
)


def guest(host: Host, code: Code) -> Machine:
    """A machine with the code in ring 0; under kvm_pvm, which emulates that, in ring 3."""
    return make(host, code, ring=3 if host.module == "kvm_pvm" else 0)


def host_works() -> None:
    """The host uses its own x87, SSE and, by copying, AVX registers."""
    roots = [
        math.sqrt(number) for number in range(50)
    ]  # no pow() or sin(): on amd-bochs the C library's overflow
    assert math.isclose(sum(root * root for root in roots), 1225)
    assert bytes(bytearray(range(256)) * 64)[-1] == 255


def pattern(length: int, seed: int) -> bytes:
    """Bytes that are all different as long as there are so many."""
    return bytes((seed + 7 * n) % 251 for n in range(length))


def leave(machine: Machine) -> None:
    """Runs to the guest's next word; what it did before is done."""
    to_exit(machine, "IO")


def area(machine: Machine) -> bytearray:
    """The vCPU's XSAVE area."""
    return bytearray(ffi.buffer(machine.cpus[0].vcpu.get_xsave()))


def put_area(machine: Machine, data: bytearray) -> None:
    """The other way round."""
    vcpu = machine.cpus[0].vcpu
    xsave = vcpu.get_xsave()
    ffi.buffer(xsave)[:] = data
    vcpu.set_xsave(xsave)


def test_x87_and_sse_registers_live_through_an_exit(host: Host) -> None:
    machine = guest(host, SSE)
    numbers = pattern(32, 3)
    machine.memory.write(FROM, numbers + struct.pack("<d", 1.25))
    leave(machine)
    host_works()
    leave(machine)
    assert machine.memory.read(TO, 32) == numbers
    assert struct.unpack("<dd", machine.memory.read(TO + 32, 16)) == (math.pi, 1.25)
    assert machine.memory.read_u16(TO + 0x30) == 0x37F
    assert machine.memory.read_u32(TO + 0x34) == 0x1F80


def test_the_host_sees_x87_and_sse_registers(host: Host) -> None:
    machine = guest(host, SSE)
    numbers = pattern(32, 5)
    machine.memory.write(FROM, numbers + struct.pack("<d", -2.0))
    leave(machine)
    fpu = machine.cpus[0].vcpu.get_fpu()
    assert bytes(ffi.buffer(fpu.xmm[0])) == numbers[:16]
    assert bytes(ffi.buffer(fpu.xmm[9])) == numbers[16:]
    assert bytes(ffi.buffer(fpu.fpr[1]))[:10] == b"\0" * 7 + b"\x80\0\xc0", "-2.0 in 80 bits"
    data = area(machine)
    assert data[XMM_AT : XMM_AT + 16] == numbers[:16]
    assert data[XMM_AT + 9 * 16 : XMM_AT + 10 * 16] == numbers[16:]


def test_the_guest_sees_what_the_host_wrote_to_them(host: Host) -> None:
    machine = guest(host, SSE)
    machine.memory.write(FROM, pattern(40, 3))  # registers in use: KVM_SET_FPU doesn't mark any as such
    leave(machine)
    vcpu = machine.cpus[0].vcpu
    fpu = vcpu.get_fpu()
    ffi.buffer(fpu.xmm[0])[:] = pattern(16, 11)
    vcpu.set_fpu(fpu)
    data = area(machine)
    assert data[XMM_AT : XMM_AT + 16] == pattern(16, 11)
    data[XMM_AT + 9 * 16 : XMM_AT + 10 * 16] = pattern(16, 13)
    data[MXCSR_AT : MXCSR_AT + 2] = b"\xc0\x1f"
    data[HEADER_AT] |= 3  # x87 and SSE are in use
    put_area(machine, data)
    leave(machine)
    assert machine.memory.read(TO, 32) == pattern(16, 11) + pattern(16, 13)
    assert machine.memory.read_u32(TO + 0x34) == 0x1FC0


def with_avx(host: Host) -> Machine:
    """The guest with AVX, allowed by CR4 and XCR0."""
    machine = guest(host, AVX)
    cpu = machine.cpus[0]
    cpu.set_up()
    cpu.sregs.cr4 |= CR4_OSXSAVE
    xcrs = cpu.vcpu.get_xcrs()
    assert (xcrs.nr_xcrs, xcrs.xcrs[0].xcr) == (1, 0)
    xcrs.xcrs[0].value = XCR0_AVX
    cpu.vcpu.set_xcrs(xcrs)
    machine.memory.write(FROM, pattern(64, 17))
    return machine


def upper_halves(machine: Machine) -> int:
    """Where the upper halves of the YMM registers are in the XSAVE area (CPUID leaf 0xd, subleaf 2, EBX)."""
    return CpuidTable(machine.cpus[0].vcpu.get_cpuid2()).get(0xD, YMM_LEAF).ebx


@needs("flag avx")
def test_avx_registers_live_through_an_exit(host: Host) -> None:
    machine = with_avx(host)
    leave(machine)
    host_works()
    leave(machine)
    assert machine.memory.read(TO, 64) == pattern(64, 17)


@needs("flag avx")
def test_the_host_sees_avx_registers(host: Host) -> None:
    machine = with_avx(host)
    leave(machine)
    data, at, numbers = area(machine), upper_halves(machine), pattern(64, 17)
    assert data[HEADER_AT] & 4, "AVX is in use"
    assert data[XMM_AT : XMM_AT + 16] + data[at : at + 16] == numbers[:32]
    assert data[XMM_AT + 13 * 16 :][:16] + data[at + 13 * 16 :][:16] == numbers[32:]


@needs("flag avx")
def test_the_guest_sees_what_the_host_wrote_to_avx_registers(host: Host) -> None:
    machine = with_avx(host)
    leave(machine)
    data, at, numbers = area(machine), upper_halves(machine), pattern(32, 23)
    data[HEADER_AT] |= 7
    data[XMM_AT + 13 * 16 : XMM_AT + 14 * 16] = numbers[:16]
    data[at + 13 * 16 : at + 14 * 16] = numbers[16:]
    put_area(machine, data)
    leave(machine)
    assert machine.memory.read(TO, 64) == pattern(64, 17)[:32] + numbers


@needs("flag avx")
def test_the_guest_sees_a_state_that_was_taken_before(host: Host) -> None:
    machine = with_avx(host)
    leave(machine)
    kept = area(machine)
    put_area(machine, bytearray(len(kept)))
    assert area(machine) != kept
    put_area(machine, kept)
    leave(machine)
    assert machine.memory.read(TO, 64) == pattern(64, 17)


def components(table: CpuidTable) -> int:
    """How long an XSAVE area with all that CPUID leaf 0xd lists is (SDM vol. 1 ch. 13.2)."""
    first = table.get(0xD, 0)
    mask = first.eax | first.edx << 32
    leaves = (table.get(0xD, number) for number in range(2, 63) if mask >> number & 1)
    return max((leaf.ebx + leaf.eax for leaf in leaves), default=FXSAVE + 64)


def test_the_xsave_size_has_room_for_all_that_cpuid_lists(host: Host) -> None:
    machine = guest(host, SSE)
    machine.cpus[0].set_up()
    vm, vcpu = machine.vm, machine.cpus[0].vcpu
    needed = max(PAGE, components(CpuidTable(vcpu.get_cpuid2())))
    xsave: Any = vcpu.get_xsave()
    assert vm.xsave_size == needed
    assert ffi.sizeof(xsave[0]) == needed
    if vm.check_extension(KVM_CAP_XSAVE2):
        assert vm.check_extension(KVM_CAP_XSAVE2) == needed


@needs("flag xsave")
def test_xcr0_takes_no_bit_that_cpuid_lacks(host: Host) -> None:
    not_on_pvm(host, "it takes any value for XCR0")
    machine = guest(host, SSE)
    cpu = machine.cpus[0]
    cpu.set_up()
    xcrs = cpu.vcpu.get_xcrs()
    xcrs.xcrs[0].value = 1 | 1 << 62
    try:
        cpu.vcpu.set_xcrs(xcrs)
    except KvmError as error:
        assert "KVM_SET_XCRS" in str(error)
    else:
        raise AssertionError("XCR0 took bit 62")
