"""Several vCPUs: INIT and SIPI, interrupts from one to the other, and memory that both write."""

from __future__ import annotations

from guests import listen, make, start, state, to_halt
from listing import ORIGIN, Code, code
from suite import Host

from kvmpy.abi import constants as c
from kvmpy.machine.machine import Machine

AP_AT, AP_VECTOR = 0x2000, 2

# To the vCPU with APIC id 1: INIT, SIPI with vector 2 as often as ECX says, and wait for its word.
STARTER = code(
    64,
    """
      bb 00 00 e0 fe                  mov ebx, 0xfee00000
      c7 83 f0 00 00 00 ff 01 00 00   mov dword ptr [rbx + 0xf0], 0x1ff
      c7 83 10 03 00 00 00 00 00 01   mov dword ptr [rbx + 0x310], 0x1000000
      c7 83 00 03 00 00 00 45 00 00   mov dword ptr [rbx + 0x300], 0x4500
    again:
      c7 83 00 03 00 00 02 46 00 00   mov dword ptr [rbx + 0x300], 0x4602
    wait:
      f3 90                           pause
      80 3c 25 00 50 00 00 01         cmp byte ptr [0x5000], 1
      75 f4                           jne wait
      ff c9                           dec ecx
      75 e6                           jnz again
      b0 01                           mov al, 1
      e6 e9                           out 0xe9, al
      f4                              hlt
    """,
)
AP = code(
    16,
    """
      8c c8            mov ax, cs
      a3 10 50         mov [0x5010], ax
      66 89 16 20 50   mov [0x5020], edx
      ff 06 30 50      inc word ptr [0x5030]
      c6 06 00 50 01   mov byte ptr [0x5000], 1
    sleep:
      f4               hlt
    asleep:
      eb fd            jmp sleep
    """,
)


def pair(host: Host, first: Code, second: Code, **settings: object) -> Machine:
    """Two vCPUs: the first runs one code, the other's is where its SIPI is going to send it."""
    machine = make(host, first, cpus=2, irqchip="kernel", **settings)  # type: ignore[arg-type]
    machine.memory.write(AP_AT, second.data)
    return machine


HALTED = code(
    64,
    """
      f4   hlt
    """,
)


def test_init_and_sipi_start_the_other_vcpu(host: Host) -> None:
    machine = pair(host, STARTER, AP, registers={"rcx": 1})
    said = listen(machine)
    assert machine.cpus[1].vcpu.get_mp_state() == c.KVM_MP_STATE_UNINITIALIZED
    to_halt(machine)
    assert said == [1]
    memory = machine.memory
    assert memory.read_u16(0x5010) == AP_VECTOR << 8
    assert memory.read_u32(0x5020) >> 8 & 0xF in (0x6, 0xF), "the family, as CPUID says"
    sregs = machine.cpus[1].sregs
    assert (sregs.cs.selector, sregs.cs.base) == (AP_VECTOR << 8, AP_AT)
    assert sregs.cr0 & 1 == 0
    assert machine.cpus[1].regs.rip == AP.at["asleep"] - ORIGIN
    assert machine.cpus[1].vcpu.get_mp_state() == c.KVM_MP_STATE_HALTED


def test_a_second_sipi_goes_nowhere(host: Host) -> None:
    machine = pair(host, STARTER, AP, registers={"rcx": 3})
    to_halt(machine)
    assert machine.memory.read_u16(0x5030) == 1


def test_a_vcpu_without_sipi_stays_where_it_is(host: Host) -> None:
    machine = pair(host, HALTED, AP)
    to_halt(machine)
    assert machine.cpus[1].vcpu.get_mp_state() == c.KVM_MP_STATE_UNINITIALIZED
    assert machine.memory.read_u16(0x5030) == 0
    assert sum(machine.cpus[1].exits) == 0


NMI_SENDER = code(
    64,
    """
      bb 00 00 e0 fe                  mov ebx, 0xfee00000
      c7 83 f0 00 00 00 ff 01 00 00   mov dword ptr [rbx + 0xf0], 0x1ff
      c7 83 10 03 00 00 00 00 00 01   mov dword ptr [rbx + 0x310], 0x1000000
      c7 83 00 03 00 00 00 45 00 00   mov dword ptr [rbx + 0x300], 0x4500
      c7 83 00 03 00 00 02 46 00 00   mov dword ptr [rbx + 0x300], 0x4602
    wait:
      f3 90                           pause
      80 3c 25 00 50 00 00 01         cmp byte ptr [0x5000], 1
      75 f4                           jne wait
      c7 83 00 03 00 00 00 44 00 00   mov dword ptr [rbx + 0x300], 0x4400
    answer:
      f3 90                           pause
      80 3c 25 01 50 00 00 01         cmp byte ptr [0x5001], 1
      75 f4                           jne answer
      b0 01                           mov al, 1
      e6 e9                           out 0xe9, al
      f4                              hlt
    """,
)
NMI_AP = code(
    16,
    """
      c6 06 00 50 01   mov byte ptr [0x5000], 1
      fa               cli
    sleep:
      f4               hlt
      eb fd            jmp sleep
    """,
)
NMI_HANDLER = code(
    16,
    """
      c6 06 01 50 01   mov byte ptr [0x5001], 1
      cf               iret
    """,
)
HANDLER_AT = 0x3000


def test_an_nmi_from_the_other_vcpu_wakes_a_halted_one(host: Host) -> None:
    machine = pair(host, NMI_SENDER, NMI_AP)
    said = listen(machine)
    machine.memory.write(HANDLER_AT, NMI_HANDLER.data)
    machine.memory.write_u32(2 * 4, HANDLER_AT)  # the real-mode vector: offset, segment 0
    to_halt(machine)
    assert said == [1]


TURNS = 1000
ADDER = code(
    64,
    """
    again:
      f0 ff 04 25 00 50 00 00   lock inc dword ptr [0x5000]
      ff c9                     dec ecx
      75 f4                     jnz again
      f4                        hlt
    """,
)
PLAYER = code(
    64,
    """
    again:
      39 1c 25 00 50 00 00   cmp [0x5000], ebx
      75 f7                  jne again
      89 d8                  mov eax, ebx
      83 f0 01               xor eax, 1
      89 04 25 00 50 00 00   mov [0x5000], eax
      ff c9                  dec ecx
      75 e7                  jnz again
      f4                     hlt
    """,
)


def side_by_side(host: Host, code: Code, turns: int) -> Machine:
    """Two vCPUs from the start on the same code: RCX turns each, RBX says who they are."""
    machine = make(host, code, cpus=2, registers={"rcx": turns})
    start(machine, state(code, machine.memory.size, registers={"rcx": turns, "rbx": 1, "rsp": 0x7000}), 1)
    assert machine.cpus[1].regs.rip == ORIGIN
    return machine


def test_locked_additions_of_two_vcpus_all_count(host: Host) -> None:
    machine = side_by_side(host, ADDER, TURNS)
    to_halt(machine)
    assert machine.memory.read_u32(0x5000) == 2 * TURNS


def test_two_vcpus_take_turns(host: Host) -> None:
    machine = side_by_side(host, PLAYER, 5)
    to_halt(machine)
    assert machine.memory.read_u32(0x5000) == 0
    assert [cpu.regs.rcx for cpu in machine.cpus] == [0, 0]
