# console-uart: print ten lines through the serial port, as an unmodified guest does: two exits a byte, one to
# ask whether the chip is ready and one to send. Compare console-hypercall and console-ring.

        .include "lib/serial.inc"
        .include "lib/lines.inc"
        .include "lib/end.inc"

        .code64
        .globl  _start
        .text
_start:
        mov     $stack_top, %esp
        mov     $lines, %esi
1:      call    puts                    # leaves esi behind the string's end
        cmpb    $0, (%rsi)
        jne     1b
        halt_forever

serial_routines
console_lines

        .bss
        .balign 16
        .skip   512
stack_top:
