# real-irq: a timer that interrupts.
#
# The timer chip (8254 PIT) counts down at 1193182 Hz. At zero it starts again and raises IRQ 0; the
# interrupt controller (8259 PIC) turns that into interrupt 0x20; the CPU looks up 0x20 in the table at
# address 0, four bytes an entry, and calls the handler. Between the ticks the CPU sleeps.

        .include "lib/serial.inc"
        .include "lib/end.inc"
        .include "lib/pic.inc"

        .set    PIT_CHANNEL_0, 0x40
        .set    PIT_COMMAND, 0x43
        .set    PIT_RATE_GENERATOR, 0x34        # channel 0, low byte then high byte, mode 2
        .set    DIVISOR, 1193182 / 100          # 100 ticks a second
        .set    TICKS, 5

        .code16
        .globl  _start
        .text
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7c00, %sp

        movw    $tick, 4 * (FIRST_VECTOR + 0)   # offset and segment of the handler for IRQ 0
        movw    $0, 4 * (FIRST_VECTOR + 0) + 2
        pic_setup 0

        mov     $PIT_RATE_GENERATOR, %al
        out     %al, $PIT_COMMAND
        mov     $(DIVISOR & 0xff), %al
        out     %al, $PIT_CHANNEL_0
        mov     $(DIVISOR >> 8), %al
        out     %al, $PIT_CHANNEL_0

        xor     %edi, %edi              # ticks printed
wait:   cli
        cmp     ticks, %di
        jne     show
        sti                             # takes effect after the next instruction: no tick is slept through
        hlt
        jmp     wait

show:   sti
        inc     %edi
        mov     $message, %si
        call    puts
        mov     %edi, %eax
        call    put_decimal
        mov     $'\n', %al
        call    putc
        cmp     $TICKS, %edi
        jb      wait
        cli
        exit    0

# The handler: count, and tell the controller that it may send the next one.
tick:   push    %ax
        incw    ticks
        end_of_interrupt
        pop     %ax
        iretw

serial_routines

message: .asciz "Tick "
        .balign 2
ticks:  .word   0
