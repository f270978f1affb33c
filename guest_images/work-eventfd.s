# work-eventfd: hand a thousand numbers to the host through a ring in memory, and ring a bell for each. The bell is a
# write that the kernel turns into an event for another thread (ioeventfd): the guest doesn't wait for the work,
# and user space doesn't see the exit. This is how virtio works. Compare work-pio.

        .include "lib/paravirt.inc"
        .include "lib/debug.inc"
        .include "lib/end.inc"

        .set    BELL, 0xfea01000
        .set    SUM, 0x5c4              # port of the worker
        .set    ITEMS, 1000
        .set    SIZE, 1024              # numbers in the ring: there is room for all

        .code64
        .globl  _start
        .text
_start:
        mov     $stack_top, %esp
        call    paravirt_setup
        jc      2f
        mov     $ring, %ebx
        mov     $SIZE, %ecx
        mov     $HC_SHARE_WORK, %eax
        call    hypercall
        test    %rax, %rax
        jnz     2f

        mov     $BELL, %edx
        mov     $1, %ebx
1:      mov     %ebx, ring + RING_DATA - 4(,%rbx,4)
        mov     %ebx, ring + RING_HEAD
        mov     %ebx, (%rdx)            # any value will do
        inc     %ebx
        cmp     $ITEMS, %ebx
        jbe     1b

        mov     $SUM, %edx
        in      (%dx), %eax             # the host finishes what is left before it answers
        cmp     $(ITEMS * (ITEMS + 1) / 2), %eax
        jne     2f
        say     right
        halt_forever
2:      say     wrong
        exit    1

paravirt_routines

text    right, "right\n"
text    wrong, "the sum is wrong\n"

        .bss
        .balign 16
ring:   .skip   RING_DATA + 4 * SIZE
        .skip   512
stack_top:
