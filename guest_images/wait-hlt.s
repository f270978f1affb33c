# wait-hlt: have a job done that takes 20 ms, and sleep until an interrupt says that it is. The guest leaves the CPU to
# others meanwhile. Compare wait-poll.

        .include "lib/debug.inc"
        .include "lib/end.inc"
        .include "lib/pic.inc"

        .set    JOB, 0x5c8              # ports of the worker: begin a job of so many milliseconds
        .set    STATUS, 0x5cc           # 1: done; reading it also takes the interrupt back
        .set    WORKER_IRQ, 5
        .set    MILLISECONDS, 20

        .code16
        .globl  _start
        .text
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7c00, %sp
        movw    $finished, 4 * (FIRST_VECTOR + WORKER_IRQ)      # offset and segment of the handler
        movw    $0, 4 * (FIRST_VECTOR + WORKER_IRQ) + 2
        pic_setup WORKER_IRQ

        mov     $JOB, %dx
        mov     $MILLISECONDS, %eax
        out     %eax, (%dx)
1:      cli
        testb   $1, flag
        jnz     2f
        sti                             # takes effect after the next instruction: no kick is slept through
        hlt
        jmp     1b
2:      say     done
        exit    0

finished:
        push    %ax
        push    %dx
        mov     $STATUS, %dx
        in      (%dx), %al
        mov     %al, flag
        end_of_interrupt
        pop     %dx
        pop     %ax
        iretw

text    done, "done\n"
flag:   .byte   0
