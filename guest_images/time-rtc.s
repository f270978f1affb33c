# time-rtc: read the clock a thousand times, as a PC does: from the real-time clock. It is behind two ports, one for the
# number of a register and one for its value, and before the seconds are read one asks whether they are about to
# change: four exits a reading, and no finer than a second. Compare time-pit and time-pvclock.

        .include "lib/debug.inc"
        .include "lib/end.inc"

        .set    CMOS_INDEX, 0x70
        .set    CMOS_DATA, 0x71
        .set    SECONDS, 0
        .set    STATUS_A, 10            # bit 7: an update is in progress
        .set    READINGS, 1000

        .code64
        .globl  _start
        .text
_start:
        mov     $READINGS, %ebx
        call    seconds
        mov     %eax, %ebp              # the last one
1:      call    seconds
        mov     %eax, %ecx
        sub     %ebp, %eax
        jns     2f
        add     $60, %eax               # over the full minute
2:      cmp     $30, %eax               # half a minute and more ahead is really behind
        jae     3f
        mov     %ecx, %ebp
        dec     %ebx
        jnz     1b
        say     good
        exit    0
3:      say     bad
        exit    1

# eax = the seconds
seconds:
        mov     $STATUS_A, %al
        out     %al, $CMOS_INDEX
        in      $CMOS_DATA, %al
        test    %al, %al
        js      seconds
        mov     $SECONDS, %al
        out     %al, $CMOS_INDEX
        in      $CMOS_DATA, %al
        movzx   %al, %ecx               # two decimal digits, four bits each
        mov     %ecx, %eax
        shr     $4, %eax
        lea     (%rax,%rax,4), %eax     # ten times the first one ...
        add     %eax, %eax
        and     $0x0f, %ecx             # ... and the second
        add     %ecx, %eax
        ret

text    good, "steady\n"
text    bad, "the clock went back\n"
