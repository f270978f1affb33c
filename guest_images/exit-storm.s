# exit-storm: write to a port, over and over; every write is a VM exit. Something to measure and to trace.
#
# Port 0x80 shows a PC's power-on progress; nothing depends on what is written to it. The machine may put
# another number of writes (1 to 2^32 - 1) into edi before the start; registers are zero otherwise.

        .include "lib/serial.inc"
        .include "lib/end.inc"

        .set    POST_PORT, 0x80
        .set    WRITES, 10000

        .code64
        .globl  _start
        .text
_start:
        mov     $stack_top, %esp
        test    %edi, %edi
        jnz     1f
        mov     $WRITES, %edi
1:      mov     %edi, %ecx
2:      mov     %cl, %al
        out     %al, $POST_PORT
        dec     %ecx
        jnz     2b

        mov     %edi, %eax
        call    put_decimal
        mov     $done, %esi
        call    puts
        halt_forever

serial_routines

done:   .asciz  " port writes done\n"

        .bss
        .balign 16
        .skip   512
stack_top:
