# wait-poll: have a job done that takes 20 ms, and ask over and over whether it is. Every question is an exit, and the
# CPU is busy all the time. Compare wait-hlt.

        .include "lib/debug.inc"
        .include "lib/end.inc"

        .set    JOB, 0x5c8              # ports of the worker: begin a job of so many milliseconds
        .set    STATUS, 0x5cc           # 1: done
        .set    MILLISECONDS, 20

        .code16
        .globl  _start
        .text
_start:
        xor     %ax, %ax
        mov     %ax, %ds
        mov     $JOB, %dx
        mov     $MILLISECONDS, %eax
        out     %eax, (%dx)
        mov     $STATUS, %dx
1:      in      (%dx), %eax
        test    %eax, %eax
        jz      1b
        say     done
        exit    0

text    done, "done\n"
