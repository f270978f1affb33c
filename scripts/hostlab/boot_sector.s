# Boot sector of the Bochs hosts: reads a list of pieces from the first ATA disk to where they belong in
# memory, and starts the kernel at its PVH entry. No boot loader, no BIOS calls, nothing packed: an emulator
# has no time for that.
#
# disk.py fills in what lies behind the code: at 0x100 of the sector the address to jump to and the address
# of the PVH start info (32 bits each), then the list. A piece is its first sector, the number of sectors
# and its address in memory, 32 bits each; a number of 0 ends the list. ATA: PIO data-in protocol of the
# ATA/ATAPI-6 standard, 28-bit addresses.

        .set    ORIGIN, 0x7c00
        .set    BEHIND_CODE, 0x100

        .set    DATA, 0x1f0             # ATA registers of the first controller
        .set    COUNT, 0x1f2
        .set    DEVICE, 0x1f6
        .set    COMMAND, 0x1f7          # read: status
        .set    CONTROL, 0x3f6
        .set    BUSY, 0x80
        .set    HAS_DATA, 0x08

        .code16
        .globl  _start
        .text
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        in      $0x92, %al              # gate A20 open, without a reset
        or      $2, %al
        and     $0xfe, %al
        out     %al, $0x92
        lgdt    gdt_pointer
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmp    $8, $protected

        .code32
protected:
        mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $ORIGIN, %esp
        cld
        mov     $2, %al                 # no interrupts from the disk: it is polled
        mov     $CONTROL, %dx
        out     %al, %dx
        mov     $list, %esi

piece:  lodsl                           # ebx: next sector, ebp: sectors left, edi: where to
        mov     %eax, %ebx
        lodsl
        mov     %eax, %ebp
        lodsl
        mov     %eax, %edi
        test    %ebp, %ebp
        jz      leave
command:
        mov     $256, %ecx              # the most that one command reads; 256 is written as 0
        cmp     %ecx, %ebp
        jae     1f
        mov     %ebp, %ecx
1:      call    read
        test    %ebp, %ebp
        jnz     command
        jmp     piece

leave:  mov     start_info, %ebx
        jmp     *entry

read:   mov     $DEVICE, %dx            # ecx sectors; moves ebx, ebp and edi on
        mov     %ebx, %eax
        shr     $24, %eax
        or      $0xe0, %al              # first device, block addresses
        out     %al, %dx
        mov     $COUNT, %dx
        mov     %cl, %al
        out     %al, %dx
        mov     %ebx, %eax              # the other three bytes of the address, lowest first
        inc     %edx
        out     %al, %dx
        shr     $8, %eax
        inc     %edx
        out     %al, %dx
        shr     $8, %eax
        inc     %edx
        out     %al, %dx
        mov     $COMMAND, %dx
        mov     $0x20, %al              # READ SECTORS
        out     %al, %dx
sector: push    %ecx
        mov     $COMMAND, %dx
1:      in      %dx, %al
        test    $BUSY, %al
        jnz     1b
        test    $HAS_DATA, %al
        jz      1b
        mov     $DATA, %dx
        mov     $256, %ecx
        rep insw
        pop     %ecx
        inc     %ebx
        dec     %ebp
        loop    sector
        ret

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      # code, 4 GiB
        .quad   0x00cf93000000ffff      # data, 4 GiB
gdt_pointer:
        .word   23
        .long   gdt

        .org    BEHIND_CODE             # an error here: the code has become too long
entry:  .long   0
start_info:
        .long   0
list:   .long   0
