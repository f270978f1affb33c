# time-pit: read the clock a thousand times from the timer chip (8254 PIT), which counts 65536 down to 0 in 55 ms.
# To be read in one piece its count is latched first, then comes in two bytes: three accesses a reading. Where
# the kernel has the timer they don't get to user space, but they leave the guest all the same. Compare
# time-rtc and time-pvclock.

        .include "lib/debug.inc"
        .include "lib/end.inc"

        .set    PIT_CHANNEL_0, 0x40
        .set    PIT_COMMAND, 0x43
        .set    PIT_RATE_GENERATOR, 0x34        # channel 0, low byte then high byte, mode 2
        .set    PIT_LATCH, 0x00                 # channel 0
        .set    READINGS, 1000

        .code64
        .globl  _start
        .text
_start:
        mov     $PIT_RATE_GENERATOR, %al
        out     %al, $PIT_COMMAND
        xor     %eax, %eax              # 0 stands for 65536
        out     %al, $PIT_CHANNEL_0
        out     %al, $PIT_CHANNEL_0

        mov     $READINGS, %ebx
        call    count
        mov     %eax, %ebp              # the first one
        xor     %edi, %edi              # in which bits any was different
1:      call    count
        xor     %ebp, %eax
        or      %eax, %edi
        dec     %ebx
        jnz     1b
        test    %edi, %edi              # a round is so short that more can't be told: did it move?
        jz      3f
        say     good
        exit    0
3:      say     bad
        exit    1

# eax = the count
count:  mov     $PIT_LATCH, %al
        out     %al, $PIT_COMMAND
        in      $PIT_CHANNEL_0, %al
        movzx   %al, %ecx
        in      $PIT_CHANNEL_0, %al
        movzx   %al, %eax
        shl     $8, %eax
        or      %ecx, %eax
        ret

text    good, "steady\n"
text    bad, "the clock stands still\n"
