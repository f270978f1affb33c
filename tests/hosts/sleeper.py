"""A guest that sleeps until an interrupt comes, and says which."""

from __future__ import annotations

from guests import asleep, enable_lapic, listen, make, not_on_pvm, to_exit
from listing import code
from suite import Host

from kvmpy.abi.constants import KVM_IRQCHIP_IOAPIC

VECTOR, OTHER = 0x40, 0x51
WOKEN = 3
LEVEL = 1 << 15  # level-triggered, in an entry of the I/O APIC and in a message

# Port 0x80 is nobody's: where KVM emulates the guest (kvm_pvm), it looks for interrupts only at exits, and this is one.
GUEST = code(
    64,
    """
    again:
      fb                  sti
      f4                  hlt
      e6 80               out 0x80, al
      fa                  cli
      b0 03               mov al, 3
      e6 e9               out 0xe9, al
      eb f5               jmp again
    handler:
      b0 40               mov al, 0x40
      e6 e9               out 0xe9, al
      b8 b0 00 e0 fe      mov eax, 0xfee000b0
      c7 00 00 00 00 00   mov dword ptr [rax], 0
      48 cf               iretq
    other:
      b0 51               mov al, 0x51
      e6 e9               out 0xe9, al
      b8 b0 00 e0 fe      mov eax, 0xfee000b0
      c7 00 00 00 00 00   mov dword ptr [rax], 0
      48 cf               iretq
    """,
)


class Sleeper:
    """The guest in its sleep, its local APIC on. ``said``: vectors (VECTOR, OTHER), and WOKEN each time it goes on."""

    def __init__(self, host: Host, irqchip: str) -> None:
        self._host = host
        self.machine = make(host, GUEST, handlers={VECTOR: "handler", OTHER: "other"}, irqchip=irqchip)
        self.said = listen(self.machine)
        enable_lapic(self.machine.cpus[0])
        self.sleep()

    def sleep(self) -> None:
        """Lets it fall asleep again."""
        asleep(self.machine)

    def says(self, *expected: int) -> None:
        """Runs the guest until it has said as much in all as is expected."""
        while len(self.said) < len(expected):
            to_exit(self.machine, "IO")
        assert self.said == list(expected)

    def lead(self, line: int) -> None:
        """Leads a line of the I/O APIC in the kernel to VECTOR, level-triggered."""
        because = "it keeps a level-triggered interrupt of the I/O APIC pending while the guest serves it"
        not_on_pvm(self._host, because)
        chip = self.machine.vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
        chip.chip.ioapic.redirtbl[line].bits = VECTOR | LEVEL
        self.machine.vm.set_irqchip(chip)
