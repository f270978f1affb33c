# console-hypercall: print the same ten lines as console-uart, each with one hypercall, which is one exit.

        .include "lib/paravirt.inc"
        .include "lib/lines.inc"
        .include "lib/end.inc"

        .code64
        .globl  _start
        .text
_start:
        mov     $stack_top, %esp
        call    paravirt_setup
        jc      2f
        mov     $lines, %esi
1:      call    print                   # leaves esi behind the string's end
        cmpb    $0, (%rsi)
        jne     1b
        halt_forever
2:      exit    1                       # no kvmpy, nobody to print

paravirt_routines
console_lines

        .bss
        .balign 16
        .skip   512
stack_top:
