# work-mmio: hand a thousand numbers to a device, each by writing it to memory that isn't there. Every write is an
# exit, as with a port, and the hypervisor even has to find out what the instruction was. Compare work-pio.

        .include "lib/debug.inc"
        .include "lib/end.inc"

        .set    ITEM, 0xfea00000        # the worker: a number to be added,
        .set    SUM, 0xfea00004         # and the sum
        .set    ITEMS, 1000

        .code64
        .globl  _start
        .text
_start:
        mov     $1, %ebx
1:
        mov     $ITEM, %edx
        mov     %ebx, (%rdx)
        inc     %ebx
        cmp     $ITEMS, %ebx
        jbe     1b

        mov     $SUM, %edx
        mov     (%rdx), %eax
        cmp     $(ITEMS * (ITEMS + 1) / 2), %eax
        jne     2f
        say     right
        halt_forever
2:      say     wrong
        exit    1

text    right, "right\n"
text    wrong, "the sum is wrong\n"
