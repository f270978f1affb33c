# sieve: find the primes below a million with the sieve of Eratosthenes. Nothing but computing, in ring 3.
#
# An ELF image, for a change: it says by itself that a million zero bytes follow the code in memory (.bss).

        .include "lib/serial.inc"
        .include "lib/end.inc"
        .include "lib/ring3.inc"

        .set    LIMIT, 1000000

        .code64
        .globl  _start
        .text
_start:
        mov     $kernel_stack_top, %esp
        mov     $VECTOR_UD, %edi
        mov     $finished, %esi
        call    set_gate
        call    ring3_setup
        mov     $sieve, %edi
        mov     $user_stack_top, %esi
        jmp     enter_ring3

# Ring 3. composite[n] becomes 1 when n is a multiple of a smaller number.
sieve:  mov     $2, %ebx                # the number at hand
        xor     %r8d, %r8d              # primes so far
1:      cmpb    $0, composite(%rbx)
        jne     4f
        inc     %r8d                    # nothing smaller divides it: a prime
        mov     %rbx, %rcx              # its multiples up to its square are crossed out already
        imul    %rbx, %rcx
2:      cmp     $LIMIT, %rcx
        jae     4f
        movb    $1, composite(%rcx)
        add     %rbx, %rcx
        jmp     2b
4:      inc     %ebx
        cmp     $LIMIT, %ebx
        jb      1b
        ud2                             # back to ring 0

# Ring 0 again: print and end.
finished:
        mov     %r8d, %eax
        call    put_decimal
        mov     $below, %esi
        call    puts
        mov     $LIMIT, %eax
        call    put_decimal
        mov     $'\n', %al
        call    putc
        halt_forever

serial_routines
ring3_support

below:  .asciz  " primes below "

        .bss
        .balign 4096
composite:
        .skip   LIMIT
