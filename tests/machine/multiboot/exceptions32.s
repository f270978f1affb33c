# A Multiboot kernel in the style of kvm-unit-tests, 32 bit: own GDT and IDT, exceptions on purpose, a line for each on the
# serial port, the status on port 0xf4.

        .include "kernel.inc"

        .code32
        .globl  _start
_start:
        mov     $stack_top, %esp
        cmp     $0x2badb002, %eax       # the loader's magic
        jne     failed
        lgdt    gdt_pointer
        ljmp    $CODE32, $1f
1:      mov     $DATA, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $idt, %edi
        gate32  0, divide
        gate32  6, undefined
        gate32  13, protection
        lidt    idt_pointer

        xor     %edx, %edx              # divide error
        mov     $1, %eax
        xor     %ecx, %ecx
        div     %ecx
        ud2
        mov     $0x58, %ax              # beyond the GDT
        mov     %ax, %fs
        mov     $done, %esi
        call    puts
        xor     %eax, %eax
        out     %al, $EXIT
failed: mov     $1, %al
        out     %al, $EXIT
1:      hlt
        jmp     1b

divide: mov     $divided, %esi
        call    puts
        addl    $2, (%esp)              # behind DIV
        iret

undefined:
        mov     $was_undefined, %esi
        call    puts
        addl    $2, (%esp)
        iret

protection:
        pop     %eax
        cmp     $0x58, %eax             # the selector is the error code
        jne     failed
        mov     $protected, %esi
        call    puts
        addl    $2, (%esp)              # behind MOV to FS
        iret

puts_routine

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      # 0x08 code, 32-bit
        .quad   0x00cf93000000ffff      # 0x10 data
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
idt_pointer:
        .word   32 * 8 - 1
        .long   idt
texts
        .bss
        .balign 4096
idt:    .skip   32 * 8
        .skip   4096
stack_top:
