# spin: run for ever without ever leaving the guest. Only a timeout or a stop from outside ends it.

        .code64
        .globl  _start
        .text
_start:
        jmp     _start
