# The same in 64-bit mode: the kernel makes its page tables, and gets a page fault, too.

        .include "kernel.inc"

        .set    CODE64, 0x18

        .code32
        .globl  _start
_start:
        mov     $stack_top, %esp
        cmp     $0x2badb002, %eax
        jne     failed
        movl    $directories + 3, tables        # 1 GiB, mapped to itself in pages of 2 MiB
        movl    $directory + 3, directories
        mov     $directory, %edi
        mov     $0x83, %eax
1:      mov     %eax, (%edi)
        add     $8, %edi
        add     $0x200000, %eax
        cmp     $directory + 4096, %edi
        jb      1b
        mov     %cr4, %eax
        or      $1 << 5, %eax           # PAE
        mov     %eax, %cr4
        mov     $tables, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx       # EFER.LME
        rdmsr
        or      $1 << 8, %eax
        wrmsr
        lgdt    gdt_pointer
        mov     %cr0, %eax
        or      $1 << 31, %eax
        mov     %eax, %cr0
        ljmp    $CODE64, $long
failed: mov     $1, %al
        out     %al, $EXIT
1:      hlt
        jmp     1b

        .code64
long:   mov     $DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $idt, %edi
        gate64  0, divide
        gate64  6, undefined
        gate64  13, protection
        gate64  14, fault
        lidt    idt_pointer

        xor     %edx, %edx
        mov     $1, %eax
        xor     %ecx, %ecx
        div     %ecx
        ud2
        mov     $0x58, %eax
        mov     %eax, %fs
        mov     $0x80000000, %ebx       # above what is mapped
        mov     (%rbx), %al
        mov     $done, %esi
        call    puts
        xor     %eax, %eax
        out     %al, $EXIT
1:      hlt
        jmp     1b

divide: mov     $divided, %esi
        call    puts
        addq    $2, (%rsp)
        iretq

undefined:
        mov     $was_undefined, %esi
        call    puts
        addq    $2, (%rsp)
        iretq

protection:
        pop     %rax
        cmp     $0x58, %eax
        jne     wrong
        mov     $protected, %esi
        call    puts
        addq    $2, (%rsp)
        iretq

fault:  pop     %rax
        test    %eax, %eax              # a read, by ring 0, of a page that isn't there
        jne     wrong
        mov     %cr2, %rax
        cmp     %rax, %rbx
        jne     wrong
        mov     $faulted, %esi
        call    puts
        addq    $2, (%rsp)
        iretq

wrong:  mov     $2, %al
        out     %al, $EXIT
1:      hlt
        jmp     1b

puts_routine

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      # 0x08 code, 32-bit
        .quad   0x00cf93000000ffff      # 0x10 data
        .quad   0x00af9b000000ffff      # 0x18 code, 64-bit
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
idt_pointer:
        .word   32 * 16 - 1
        .quad   idt
texts
        .bss
        .balign 4096
tables: .skip   4096
directories:
        .skip   4096
directory:
        .skip   4096
idt:    .skip   32 * 16
        .skip   4096
stack_top:
