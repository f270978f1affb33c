# compute: what the processor computes in a given time, without any exit: two loops that time themselves.
#
# A boot sector, so that it runs on any machine there is: 16 bit at 0x7c00, then straight to 64-bit mode. ROUNDS times it
# runs each loop between two RDTSC, and sends the ticks of each, as 64-bit numbers, to the debug console's port.
#
#   count   DEC and JNZ, COUNT times: nothing but registers and the jump
#   sieve   the primes below LIMIT crossed out in an array of bytes: memory, too
#
# Then it writes 0 to the exit port.

        .set    ROUNDS, 7
        .set    COUNT, 20000000
        .set    LIMIT, 1000000
        .set    ARRAY, 0x200000
        .set    TABLES, 0x10000         # three pages: 4-level page tables for the first GiB
        .set    DEBUG_CONSOLE, 0xe9
        .set    EXIT_PORT, 0x501

        .set    CODE64, 0x08
        .set    CR4_PAE, 1 << 5
        .set    EFER, 0xc0000080
        .set    EFER_LME, 1 << 8
        .set    PE_AND_PG, 1 << 31 | 1

        .globl  _start
        .text
        .code16
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $_start, %sp
        mov     $TABLES >> 4, %ax
        mov     %ax, %es

        cld
        xor     %di, %di                # page tables: all zero, then one entry, one entry, 512 pages of 2 MiB
        xor     %eax, %eax
        mov     $3 * 1024, %cx
        rep stosl
        movl    $TABLES + 0x1003, %es:0
        movl    $TABLES + 0x2003, %es:0x1000
        mov     $0x2000, %di
        mov     $0x83, %eax             # present, writable, large
1:      mov     %eax, %es:(%di)
        add     $8, %di
        add     $0x200000, %eax
        cmp     $0x3000, %di
        jb      1b

        mov     $CR4_PAE, %eax
        mov     %eax, %cr4
        mov     $TABLES, %eax
        mov     %eax, %cr3
        mov     $EFER, %ecx
        rdmsr
        or      $EFER_LME, %eax
        wrmsr
        lgdt    gdt_pointer
        mov     %cr0, %eax
        or      $PE_AND_PG, %eax
        mov     %eax, %cr0
        ljmp    $CODE64, $long

        .code64
long:   mov     $ROUNDS, %r12d
again:  call    start
        mov     $COUNT, %ecx
1:      dec     %rcx
        jnz     1b
        call    stop

        mov     $ARRAY, %edi            # nothing is crossed out yet
        mov     $LIMIT, %ecx
        xor     %eax, %eax
        rep stosb
        call    start
        mov     $2, %ebx                # the number at hand
1:      cmpb    $0, ARRAY(%rbx)
        jne     3f
        mov     %rbx, %rcx              # its multiples up to its square are crossed out already
        imul    %rbx, %rcx
2:      cmp     $LIMIT, %rcx
        jae     3f
        movb    $1, ARRAY(%rcx)
        add     %rbx, %rcx
        jmp     2b
3:      inc     %ebx
        cmp     $LIMIT, %ebx
        jb      1b
        call    stop

        dec     %r12d
        jnz     again
        mov     $EXIT_PORT, %edx
        xor     %eax, %eax
        out     %al, %dx
4:      hlt
        jmp     4b

start:  rdtsc
        shl     $32, %rdx
        lea     (%rdx, %rax), %r8
        ret

stop:   rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        sub     %r8, %rax
        mov     $8, %ecx
1:      out     %al, $DEBUG_CONSOLE
        shr     $8, %rax
        dec     %ecx
        jnz     1b
        ret

        .balign 8
gdt:    .quad   0
        .quad   0x00af9b000000ffff      # 0x08 code, 64-bit
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .org    510
        .word   0xaa55
