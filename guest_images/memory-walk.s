# memory-walk: write to every page of memory. For watching dirty pages, resident memory, and what they cost.
#
# How much memory there is, the CMOS says, as on every PC since the AT: registers 0x34 and 0x35 hold the
# amount between 16 MiB and 4 GiB in units of 64 KiB (0x30 and 0x31: above 1 MiB in KiB, for machines of up
# to 16 MiB), 0x5b to 0x5d the amount above 4 GiB in units of 64 KiB. The walk is in ring 3; it doesn't
# change what memory holds: a page is dirty when it was written, whatever was written.

        .include "lib/serial.inc"
        .include "lib/end.inc"
        .include "lib/ring3.inc"

        .set    CMOS_INDEX, 0x70
        .set    CMOS_DATA, 0x71
        .set    EXTENDED, 0x30          # KiB above 1 MiB
        .set    ABOVE_16M, 0x34         # 64 KiB units above 16 MiB
        .set    ABOVE_4G, 0x5b          # 64 KiB units above 4 GiB
        .set    MAX_GIB, 128            # as many page directories are set aside

        .code64
        .globl  _start
        .text
_start:
        mov     $kernel_stack_top, %esp
        mov     $VECTOR_UD, %edi
        mov     $walked, %esi
        call    set_gate
        call    memory_size             # r8 = end of memory below 4 GiB, r9 = end above (or 0)
        call    map_memory
        call    ring3_setup
        mov     $walk, %edi
        mov     $user_stack_top, %esi
        jmp     enter_ring3

# cmos: ebx becomes the two-byte value at CMOS register cl. Changes eax, ecx.
cmos:   lea     1(%rcx), %eax
        out     %al, $CMOS_INDEX
        in      $CMOS_DATA, %al
        movzx   %al, %ebx
        shl     $8, %ebx
        mov     %ecx, %eax
        out     %al, $CMOS_INDEX
        in      $CMOS_DATA, %al
        mov     %al, %bl
        ret

memory_size:
        mov     $ABOVE_16M, %ecx
        call    cmos
        mov     %rbx, %r8
        shl     $16, %r8
        add     $16 << 20, %r8
        test    %ebx, %ebx
        jnz     1f
        mov     $EXTENDED, %ecx         # no more than 16 MiB
        call    cmos
        mov     %rbx, %r8
        shl     $10, %r8
        add     $1 << 20, %r8
1:      mov     $ABOVE_4G + 1, %ecx     # three bytes: the upper two ...
        call    cmos
        mov     %ebx, %r9d
        shl     $8, %r9d
        mov     $ABOVE_4G - 1, %ecx     # ... and the lowest
        call    cmos
        mov     %bh, %bl
        movzx   %bl, %ebx
        or      %rbx, %r9
        jz      2f
        shl     $16, %r9
        mov     $4 << 30, %rax
        add     %rax, %r9
        mov     $MAX_GIB << 30, %rax    # page tables don't reach further
        cmp     %rax, %r9
        cmova   %rax, %r9
2:      ret

# Map memory to itself, for ring 3 too, in pages of 2 MiB: one page directory for each GiB. The tables of
# lib/ring3.inc have the first.
map_memory:
        mov     %r8, %rdx               # rdx = up to where
        test    %r9, %r9
        cmovnz  %r9, %rdx
        mov     $1 << 30, %eax          # rax = address to be mapped next
        mov     $more_directories, %edi
        mov     $page_directories + 8, %esi
1:      cmp     %rdx, %rax
        jae     3f
        test    $(1 << 30) - 1, %eax
        jnz     2f
        lea     7(%rdi), %rcx           # a new GiB: enter its directory, which is the next page
        mov     %rcx, (%rsi)
        add     $8, %rsi
2:      lea     0x87(%rax), %rcx
        mov     %rcx, (%rdi)
        add     $8, %rdi
        add     $2 << 20, %rax
        jmp     1b
3:      ret

# Ring 3: every page from 0 to r8, and from 4 GiB to r9.
walk:   xor     %edi, %edi
        xor     %ebx, %ebx              # pages
1:      orb     $0, (%rdi)              # reads a byte and writes it back
        inc     %rbx
        add     $4096, %rdi
        cmp     %r8, %rdi
        jb      1b
        mov     $4 << 30, %rdi          # then once more, from here to r9
        mov     %r9, %r8
        xor     %r9d, %r9d
        cmp     %r8, %rdi
        jb      1b
        ud2                             # back to ring 0

walked: mov     %ebx, %eax
        call    put_decimal
        mov     $pages, %esi
        call    puts
        mov     %rbx, %rax
        shr     $8, %rax                # 256 pages are a MiB
        call    put_decimal
        mov     $mib, %esi
        call    puts
        halt_forever

serial_routines
ring3_support

pages:  .asciz  " pages written, "
mib:    .asciz  " MiB\n"

        .bss
        .balign 4096
more_directories:
        .skip   (MAX_GIB - 1) * 4096
