# work-pio: hand a thousand numbers to a device, each by writing it to a port. Every write is an exit, and the guest
# waits until the device has done with it. Compare work-mmio, work-eventfd and work-hypercall.

        .include "lib/debug.inc"
        .include "lib/end.inc"

        .set    ITEM, 0x5c0             # ports of the worker: a number to be added,
        .set    SUM, 0x5c4              # and the sum
        .set    ITEMS, 1000

        .code64
        .globl  _start
        .text
_start:
        mov     $1, %ebx
1:
        mov     $ITEM, %edx
        mov     %ebx, %eax
        out     %eax, (%dx)
        inc     %ebx
        cmp     $ITEMS, %ebx
        jbe     1b

        mov     $SUM, %edx
        in      (%dx), %eax
        cmp     $(ITEMS * (ITEMS + 1) / 2), %eax
        jne     2f
        say     right
        halt_forever
2:      say     wrong
        exit    1

text    right, "right\n"
text    wrong, "the sum is wrong\n"
