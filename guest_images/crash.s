# crash: end in a triple fault, as a guest with a bad bug does.
#
# An undefined instruction makes the CPU look for a handler in the IDT. The IDT is empty, which is another
# fault, and so is looking for the handler of that one: after the third the CPU gives up and shuts down.

        .include "lib/serial.inc"
        .include "lib/end.inc"

        .code64
        .globl  _start
        .text
_start:
        mov     $stack_top, %esp
        mov     $goodbye, %esi
        call    puts
        lidt    empty_idt
        ud2
        halt_forever                    # not reached

serial_routines

goodbye: .asciz "About to crash\n"

empty_idt:
        .word   0                       # limit
        .quad   0                       # base

        .bss
        .balign 16
        .skip   512
stack_top:
