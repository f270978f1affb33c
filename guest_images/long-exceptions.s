# long-exceptions: an IDT of its own, five exceptions provoked one after another, each caught and printed.
#
# They are provoked in ring 3, where most exceptions come from in practice. For every one there is an entry in
# a list: the code that provokes it. The handler prints the exception and starts the next entry.

        .include "lib/serial.inc"
        .include "lib/end.inc"
        .include "lib/ring3.inc"

        .code64
        .globl  _start
        .text
_start:
        mov     $kernel_stack_top, %esp
        mov     $VECTOR_DE, %edi
        mov     $divide_error, %esi
        call    set_gate
        mov     $VECTOR_BP, %edi
        mov     $breakpoint, %esi
        call    set_gate
        mov     $VECTOR_UD, %edi
        mov     $undefined_opcode, %esi
        call    set_gate
        mov     $VECTOR_GP, %edi
        mov     $general_protection, %esi
        call    set_gate
        mov     $VECTOR_PF, %edi
        mov     $page_fault, %esi
        call    set_gate
        call    ring3_setup
        mov     $attempts, %ebp         # rbp walks through the list; the attempts leave it alone

next:   mov     (%rbp), %rdi
        add     $8, %rbp
        test    %rdi, %rdi
        jz      done
        mov     $kernel_stack_top, %esp # the frame of the last exception isn't needed any more
        mov     $user_stack_top, %esi
        jmp     enter_ring3

done:   mov     $all_caught, %esi
        call    puts
        halt_forever

# The handlers. For #GP and #PF the CPU pushes an error code, for the others it doesn't.
divide_error:
        mov     $name_de, %esi
        jmp     print
breakpoint:
        mov     $name_bp, %esi
        jmp     print
undefined_opcode:
        mov     $name_ud, %esi
print:  call    puts
        jmp     next

general_protection:
        mov     $name_gp, %esi
        call    print_with_error
        mov     $'\n', %al
        call    putc
        jmp     next

page_fault:
        mov     $name_pf, %esi
        call    print_with_error
        mov     $at, %esi
        call    puts
        mov     %cr2, %rax              # the address that was touched
        call    put_hex
        mov     $'\n', %al
        call    putc
        jmp     next

print_with_error:
        call    puts
        mov     $error_code, %esi
        call    puts
        mov     8(%rsp), %eax           # above our return address
        jmp     put_decimal

# What ring 3 does.
divide: xor     %eax, %eax
        div     %eax                    # by zero

trap:   int3                            # what a debugger puts in place of an instruction

undefined:
        ud2                             # guaranteed to stay undefined

halt:   hlt                             # ring 3 may not stop the CPU

touch:  mov     $0xdeadb000, %eax
        movb    $1, (%rax)              # not mapped: error code 2 (a write) + 4 (from ring 3)

serial_routines
ring3_support

        .balign 8
attempts:
        .quad   divide, trap, undefined, halt, touch, 0

name_de: .asciz "#DE divide error\n"
name_bp: .asciz "#BP breakpoint\n"
name_ud: .asciz "#UD undefined opcode\n"
name_gp: .asciz "#GP general protection"
name_pf: .asciz "#PF page fault"
error_code: .asciz ", error code "
at:         .asciz ", address "
all_caught: .asciz "All caught\n"
