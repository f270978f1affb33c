# time-pvclock: read the clock a thousand times (or as often as edi says) from memory: no exit a reading, and in
# nanoseconds. Ring 0 asks for the clock; reading it is for everybody, here for ring 3. Compare time-rtc.

        .include "lib/pvclock.inc"
        .include "lib/debug.inc"
        .include "lib/ring3.inc"
        .include "lib/end.inc"

        .set    READINGS, 1000

        .code64
        .globl  _start
        .text
_start:
        mov     $kernel_stack_top, %esp
        mov     %edi, %ebp
        test    %ebp, %ebp
        jnz     1f
        mov     $READINGS, %ebp
1:      call    pvclock_setup
        jc      failed
        mov     $VECTOR_UD, %edi
        mov     $back, %esi
        call    set_gate
        call    ring3_setup
        mov     $program, %edi
        mov     $user_stack_top, %esi
        jmp     enter_ring3

# Ring 3.
program:
        call    pvclock_read
        mov     %rax, first
        mov     %rax, %r8               # the last one
2:      call    pvclock_read
        cmp     %r8, %rax
        jb      3f
        mov     %rax, %r8
        dec     %ebp
        jnz     2b
3:      ud2                             # ebp = 0: all went well

back:   mov     %r8, last
        test    %ebp, %ebp
        jnz     failed
        say     good
        exit    0
failed: say     bad
        exit    1

pvclock_routines
ring3_support

text    good, "steady\n"
text    bad, "the clock went back, or there is none\n"

        .bss
        .balign 8
first:  .skip   8
last:   .skip   8
