# real-hello: print a line in 16-bit real mode, the mode every x86 CPU starts in.
#
# An address is segment * 16 + offset. The machine starts this guest with CS = 0 and IP = 0x7c00, where it
# was loaded; the other segment registers are set here rather than trusted.

        .include "lib/serial.inc"
        .include "lib/end.inc"

        .code16
        .globl  _start
        .text
_start:
        xor     %ax, %ax
        mov     %ax, %ds                # data: the first 64 KiB, like the code
        mov     %ax, %ss
        mov     $0x7c00, %sp            # the stack grows down, away from the code

        mov     $hello, %si
        call    puts
        halt_forever

serial_routines

hello:  .asciz  "Hello from real mode\n"
