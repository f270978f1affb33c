# mode-switch: from real mode through protected mode to long mode, as every PC does when it starts.
#
# Real to protected: load a GDT, set CR0.PE, jump to a code segment of the GDT.
# Protected to long: set CR4.PAE, point CR3 to page tables, set EFER.LME, set CR0.PG, jump to a 64-bit
# code segment. Each jump is what makes the CPU load the new kind of code segment.

        .include "lib/serial.inc"
        .include "lib/end.inc"

        .set    CODE32, 0x08
        .set    CODE64, 0x10
        .set    DATA, 0x18

        .set    CR0_PE, 1 << 0          # protection enable
        .set    CR0_PG, 1 << 31         # paging
        .set    CR4_PAE, 1 << 5         # page-table entries of 64 bits
        .set    EFER, 0xc0000080        # extended feature enable register, an MSR
        .set    EFER_LME, 1 << 8        # long mode enable

        .globl  _start
        .text
        .code16
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $_start, %esp           # the stack grows down, away from the code; all 32 bits, for later
        mov     $in_real, %si
        call    puts16

        lgdtl   gdt_pointer
        mov     %cr0, %eax
        or      $CR0_PE, %eax
        mov     %eax, %cr0
        ljmpl   $CODE32, $protected

        .code32
protected:
        mov     $DATA, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $in_protected, %esi
        call    puts32

        mov     %cr4, %eax
        or      $CR4_PAE, %eax
        mov     %eax, %cr4
        mov     $pml4, %eax
        mov     %eax, %cr3
        mov     $EFER, %ecx
        rdmsr
        or      $EFER_LME, %eax
        wrmsr
        mov     %cr0, %eax
        or      $CR0_PG, %eax
        mov     %eax, %cr0              # long mode is active from here, still with 32-bit code
        ljmpl   $CODE64, $long

        .code64
long:
        mov     $in_long, %esi
        call    puts64
        halt_forever

        .code16
serial_routines 16
        .code32
serial_routines 32
        .code64
serial_routines 64

in_real:      .asciz "Real mode: 16 bits, segments of 64 KiB\n"
in_protected: .asciz "Protected mode: 32 bits, segments from a table\n"
in_long:      .asciz "Long mode: 64 bits, everything paged\n"

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      # 0x08 code, 32-bit, base 0, limit 4 GiB
        .quad   0x00af9b000000ffff      # 0x10 code, 64-bit
        .quad   0x00cf93000000ffff      # 0x18 data, base 0, limit 4 GiB
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        # One page of 2 MiB, mapped to itself, is enough: present (1), writable (2), large (0x80).
        .balign 4096
pml4:   .quad   page_directories + 3
        .fill   511, 8, 0
page_directories:
        .quad   page_directory + 3
        .fill   511, 8, 0
page_directory:
        .quad   0x83
        .fill   511, 8, 0
