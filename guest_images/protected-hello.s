# protected-hello: print a line in 32-bit protected mode.
#
# The machine starts the CPU with CR0.PE set and flat segments: base 0, limit 4 GiB, so that an offset is the
# address. Paging is off. The selectors (0x08 code, 0x10 data) name entries of the GDT that the machine made.

        .include "lib/serial.inc"
        .include "lib/end.inc"

        .code32
        .globl  _start
        .text
_start:
        mov     $stack_top, %esp
        mov     $hello, %esi
        call    puts
        halt_forever

serial_routines

hello:  .asciz  "Hello from protected mode\n"

        .bss
        .balign 16
        .skip   512
stack_top:
