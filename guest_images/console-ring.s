# console-ring: print the same ten lines as console-uart by leaving them in a ring that the host can see, and
# ring once when all are there.

        .include "lib/paravirt.inc"
        .include "lib/lines.inc"
        .include "lib/end.inc"

        .set    SIZE, 4096              # bytes in the ring: more than there are to print

        .code64
        .globl  _start
        .text
_start:
        mov     $stack_top, %esp
        call    paravirt_setup
        jc      5f
        mov     $ring, %ebx
        mov     $SIZE, %ecx
        mov     $HC_SHARE_TEXT, %eax
        call    hypercall
        test    %rax, %rax
        jnz     5f

        mov     $lines, %esi
        mov     $ring + RING_DATA, %edi
        xor     %ebx, %ebx              # bytes put in
1:      mov     (%rsi), %al
        inc     %esi
        test    %al, %al
        jz      2f
        mov     %al, (%rdi)
        inc     %edi
        inc     %ebx
        jmp     1b
2:      cmpb    $0, (%rsi)              # a line's end; the last one's?
        jne     1b
        mov     %ebx, ring + RING_HEAD  # only now: what HEAD counts is there

        mov     $HC_TAKE_TEXT, %eax
        call    hypercall
        cmp     %rax, %rbx
        jne     5f
        halt_forever
5:      exit    1

paravirt_routines
console_lines

        .bss
        .balign 16
ring:   .skip   RING_DATA + SIZE
        .skip   512
stack_top:
