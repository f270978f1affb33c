# real-echo: read a line from the serial port by interrupts and echo it.
#
# The UART raises IRQ 4 when a byte has arrived. The handler moves what there is into a ring buffer; the main
# program sleeps until there is something to echo. When the buffer is full, the handler turns the UART's
# interrupt off, and the bytes wait outside until the main program has caught up. Enter or Ctrl-D ends it.

        .include "lib/serial.inc"
        .include "lib/end.inc"
        .include "lib/pic.inc"

        .set    IRQ, 4
        .set    CTRL_D, 4
        .set    BUFFER_SIZE, 256        # positions are bytes, so they wrap by themselves

        .code16
        .globl  _start
        .text
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7c00, %sp

        movw    $received, 4 * (FIRST_VECTOR + IRQ)
        movw    $0, 4 * (FIRST_VECTOR + IRQ) + 2
        pic_setup IRQ
        mov     $prompt, %si
        call    puts

        mov     $SERIAL_MCR, %dx
        mov     $0x0b, %al              # ready (DTR, RTS), and OUT2: on a PC it lets the interrupt out
        out     %al, (%dx)

        xor     %edi, %edi              # bytes echoed
        xor     %bx, %bx
wait:   cli
        mov     tail, %bl
        cmp     head, %bl
        jne     show
        mov     $SERIAL_IER, %dx        # nothing left to do: interrupt when a byte has arrived
        mov     $0x01, %al
        out     %al, (%dx)
        sti                             # takes effect after the next instruction: no byte is slept through
        hlt
        jmp     wait

show:   sti
        mov     buffer(%bx), %al
        incb    tail
        cmp     $CTRL_D, %al
        je      finish
        cmp     $'\r', %al              # what a terminal sends for Enter
        je      finish
        cmp     $'\n', %al              # what a file has there
        je      finish
        call    putc
        inc     %edi
        jmp     wait

finish: mov     $'\n', %al
        call    putc
        mov     %edi, %eax
        call    put_decimal
        mov     $summary, %si
        call    puts
        exit    0

# The handler. It must empty the UART or turn its interrupt off: the controller only sees the line rise.
received:
        push    %ax
        push    %bx
        push    %dx
        xor     %bx, %bx
1:      mov     $SERIAL_STATUS, %dx
        in      (%dx), %al
        test    $STATUS_RECEIVED, %al
        jz      3f
        mov     head, %bl
        inc     %bl
        cmp     tail, %bl
        je      2f
        mov     $SERIAL_DATA, %dx
        in      (%dx), %al              # reading it also takes back the interrupt
        dec     %bl
        mov     %al, buffer(%bx)
        incb    head
        jmp     1b
2:      mov     $SERIAL_IER, %dx        # full
        xor     %al, %al
        out     %al, (%dx)
3:      end_of_interrupt
        pop     %dx
        pop     %bx
        pop     %ax
        iretw

serial_routines

prompt:  .asciz "Type a line: "
summary: .asciz " bytes came by interrupt\n"
head:    .byte  0                       # position where the next byte that arrives goes
tail:    .byte  0                       # position of the next byte to echo

        .bss
buffer: .skip   BUFFER_SIZE
