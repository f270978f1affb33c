# long-user: run a program in ring 3, serve its requests, and keep it out of the kernel's memory.
#
# Ring 0 (the "kernel") copies the program to 4 MiB and takes the first 2 MiB, its own home, away from ring 3.
# The program computes; with ud2 it asks for a number to be printed; at last it reads where it may not.

        .include "lib/serial.inc"
        .include "lib/end.inc"
        .include "lib/ring3.inc"

        .set    PROGRAM, 0x400000       # where the program is loaded; its stack ends 64 KiB above
        .set    LIMIT, 10000

        .code64
        .globl  _start
        .text
_start:
        mov     $kernel_stack_top, %esp
        mov     $VECTOR_UD, %edi
        mov     $request, %esi
        call    set_gate
        mov     $VECTOR_PF, %edi
        mov     $page_fault, %esi
        call    set_gate
        andb    $~4, first_gib          # the first 2 MiB are for ring 0 only
        call    ring3_setup

        mov     $program, %esi
        mov     $PROGRAM, %edi
        mov     $(program_end - program), %ecx
        cld
        rep movsb

        mov     $starting, %esi
        call    puts
        mov     $PROGRAM, %edi
        mov     $PROGRAM + 0x10000, %esi
        jmp     enter_ring3

# ud2 in ring 3: print the number in edi and a line's end, and go on behind the ud2.
request:
        mov     FRAME_CS(%rsp), %eax
        and     $3, %eax                # the ring it came from
        call    put_decimal
        mov     $asks, %esi
        call    puts
        mov     %edi, %eax
        call    put_decimal
        mov     $'\n', %al
        call    putc
        addq    $2, FRAME_RIP(%rsp)     # ud2 has two bytes
        iretq

# Ring 3 touched what it may not.
page_fault:
        mov     $kept_out, %esi
        call    puts
        mov     %cr2, %rax              # the address
        call    put_hex
        mov     $error_code, %esi
        call    puts
        pop     %rax                    # 1 the page is present + 4 the access came from ring 3
        call    put_decimal
        mov     $'\n', %al
        call    putc
        halt_forever

serial_routines
ring3_support

starting:   .asciz "ring 0: starting a program in ring 3\n"
asks:       .asciz " is the ring that asks to print "
kept_out:   .asciz "ring 0: page fault at "
error_code: .asciz ", error code "

# The program. It is linked here but runs at PROGRAM, so it must not name its own addresses (jumps are fine:
# they are relative). Collatz: from n go to n/2 when n is even, else to 3n+1. Which start below LIMIT takes
# the most steps to reach 1?
program:
        xor     %r8d, %r8d              # the most steps so far
        xor     %r9d, %r9d              # where they started
        mov     $1, %ebx
1:      mov     %ebx, %eax
        xor     %ecx, %ecx
2:      cmp     $1, %rax
        je      5f
        inc     %ecx
        shr     %rax                    # even: this is n/2, and the carry flag is clear
        jnc     2b
        lea     1(%rax,%rax), %rax      # odd: undo it, then 3n+1
        lea     1(%rax,%rax,2), %rax
        jmp     2b
5:      cmp     %r8d, %ecx
        jbe     6f
        mov     %ecx, %r8d
        mov     %ebx, %r9d
6:      inc     %ebx
        cmp     $LIMIT, %ebx
        jb      1b

        mov     %r9d, %edi              # 6171
        ud2
        mov     %r8d, %edi              # 261
        ud2
        mov     0x100000, %eax          # the kernel's first instruction: none of ring 3's business
        ud2                             # not reached
program_end:
