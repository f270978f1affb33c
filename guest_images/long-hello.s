# long-hello: print a line in 64-bit long mode.
#
# The machine made the page tables (all of memory is mapped to itself) and the GDT, so the CPU starts right
# here in 64-bit code. What is printed goes byte by byte to the serial port: each IN and OUT leaves the guest,
# a device in Python answers, and the guest goes on. See mode-switch for how a CPU gets here by itself.

        .include "lib/serial.inc"
        .include "lib/end.inc"

        .code64
        .globl  _start
        .text
_start:
        mov     $stack_top, %esp        # writing esp clears the upper half of rsp
        mov     $hello, %esi
        call    puts
        halt_forever

serial_routines

hello:  .asciz  "Hello from long mode\n"

        .bss
        .balign 16
        .skip   512
stack_top:
