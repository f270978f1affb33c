# smp-hello: start the other CPUs, one after another, and let each say hello.
#
# After power-on one CPU runs (the BSP); the others (APs) wait. Each CPU has a local APIC, at 0xfee00000 for
# everyone; through its interrupt command register (ICR) the BSP sends an AP first INIT (reset), then SIPI,
# "start in real mode at address vector * 4096". (Real CPUs want a pause of 10 ms between the two.) How many
# CPUs there are is asked from QEMU's fw_cfg device.

        .include "lib/serial.inc"
        .include "lib/end.inc"

        .set    FW_CFG_SELECTOR, 0x510
        .set    FW_CFG_DATA, 0x511
        .set    FW_CFG_NB_CPUS, 5

        .set    APIC, 0xfee00000
        .set    APIC_ID, APIC + 0x20
        .set    APIC_SPURIOUS, APIC + 0xf0      # bit 8 enables the APIC
        .set    APIC_ICR_LOW, APIC + 0x300      # writing it sends
        .set    APIC_ICR_HIGH, APIC + 0x310     # bits 24-31: to whom
        .set    ICR_BUSY, 1 << 12
        .set    ICR_INIT, 0x4500
        .set    ICR_SIPI, 0x4600
        .set    TRAMPOLINE, 0x8000              # where the APs start: a page below 1 MiB

        .globl  _start
        .text
        .code32
_start:
        mov     $stack_top, %esp
        mov     $TRAMPOLINE, %edi
        mov     $ap_start, %esi
        mov     $(ap_end - ap_start), %ecx
        cld
        rep movsb

        mov     $FW_CFG_SELECTOR, %dx
        mov     $FW_CFG_NB_CPUS, %ax
        out     %ax, (%dx)
        mov     $FW_CFG_DATA, %dx
        in      (%dx), %al              # low byte first
        movzx   %al, %ebp               # ebp = CPUs

        orl     $0x1ff, APIC_SPURIOUS   # enable ours; spurious interrupts would be number 0xff
        xor     %edi, %edi              # edi = CPU number = APIC id
        mov     $boot_cpu, %esi
        call    greet

next:   inc     %edi
        cmp     %ebp, %edi
        jae     done
        mov     $ICR_INIT, %eax
        call    send
        mov     $(ICR_SIPI | TRAMPOLINE >> 12), %eax
        call    send
1:      pause
        cmp     %edi, TRAMPOLINE + (ap_arrived - ap_start)
        jne     1b                      # until the AP has written its APIC id
        mov     $other_cpu, %esi
        call    greet
        jmp     next

done:   exit    0

# Send eax to the CPU whose APIC id is edi.
send:   mov     %edi, %ecx
        shl     $24, %ecx
        mov     %ecx, APIC_ICR_HIGH
        mov     %eax, APIC_ICR_LOW
1:      pause
        testl   $ICR_BUSY, APIC_ICR_LOW
        jnz     1b
        ret

greet:  push    %esi
        mov     $cpu, %esi
        call    puts
        mov     %edi, %eax
        call    put_decimal
        pop     %esi
        jmp     puts

serial_routines

cpu:       .asciz "CPU "
boot_cpu:  .asciz " started the machine\n"
other_cpu: .asciz " was started by INIT and SIPI\n"

# What an AP runs: a copy of this at TRAMPOLINE, in real mode with CS = TRAMPOLINE / 16 and IP = 0. It finds
# out which CPU it is, says so, and sleeps.
        .code16
ap_start:
        mov     %cs, %ax
        mov     %ax, %ds
        mov     $1, %eax
        cpuid                           # ebx bits 24-31: our APIC id
        shr     $24, %ebx
        mov     %ebx, ap_arrived - ap_start
        halt_forever
        .balign 4
ap_arrived:
        .long   0
ap_end:

        .bss
        .balign 16
        .skip   512
stack_top:
