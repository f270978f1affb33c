# work-hypercall: hand a thousand numbers to the host, each with a hypercall. An exit each, as with a port, but of an
# interface made for it: arguments in registers, and an answer. Compare work-pio.

        .include "lib/paravirt.inc"
        .include "lib/debug.inc"
        .include "lib/end.inc"

        .set    SUM, 0x5c4              # port of the worker
        .set    ITEMS, 1000

        .code64
        .globl  _start
        .text
_start:
        mov     $stack_top, %esp
        call    paravirt_setup
        jc      2f
        mov     $1, %ebx
1:      mov     $HC_ADD, %eax
        call    hypercall
        test    %rax, %rax
        jnz     2f
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

paravirt_routines

text    right, "right\n"
text    wrong, "the sum is wrong\n"

        .bss
        .balign 16
        .skip   512
stack_top:
