// SPDX-License-Identifier: MIT
/* The stack translated code runs on, and the switch between it and the caller's of enter(). */
#include <errno.h>
#include <sys/mman.h>

#include "translate.h"

#define STACK_SIZE (512 << 10)
#define GUARD 4096

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FIBER_START(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define FIBER_FINISH(save, bottom, size) __sanitizer_finish_switch_fiber(save, bottom, size)
/* Whatever is mapped at a stack's address next must not inherit what was poisoned in frames nobody returned from. */
#define FIBER_FORGET(stack, size) __asan_unpoison_memory_region(stack, size)
#else
#define FIBER_START(save, bottom, size) ((void)0)
#define FIBER_FINISH(save, bottom, size) ((void)0)
#define FIBER_FORGET(stack, size) ((void)0)
#endif

/*
 * translate_switch(void **save, void *to): the registers that the System V ABI lets a function expect unchanged go onto
 * the stack being left, whose pointer goes to *save; then the same the other way round. Neither side changes the
 * control words of the FPU and SSE.
 */
void translate_switch(void **save, void *to);
void translate_begin(void);

__asm__(
	".text\n"
	".type translate_switch, @function\n"
	".hidden translate_switch\n"
	".globl translate_switch\n"
	"translate_switch:\n"
	"	push %rbp\n"
	"	push %rbx\n"
	"	push %r12\n"
	"	push %r13\n"
	"	push %r14\n"
	"	push %r15\n"
	"	mov %rsp, (%rdi)\n"
	"	mov %rsi, %rsp\n"
	"	pop %r15\n"
	"	pop %r14\n"
	"	pop %r13\n"
	"	pop %r12\n"
	"	pop %rbx\n"
	"	pop %rbp\n"
	"	ret\n"
	".size translate_switch, . - translate_switch\n"
	/* The first switch to a new stack returns to here, with the engine in rbx. */
	".type translate_begin, @function\n"
	".hidden translate_begin\n"
	".globl translate_begin\n"
	"translate_begin:\n"
	"	mov %rbx, %rdi\n"
	"	call translate_run\n"
	"	ud2\n"
	".size translate_begin, . - translate_begin\n"
);

void translate_run(struct kvmpy_translate *t) __attribute__((used, visibility("hidden")));

void translate_run(struct kvmpy_translate *t)
{
	FIBER_FINISH(NULL, &t->host_stack, &t->host_stack_size);
	translate_guest_main(t);
}

int translate_stack_new(struct kvmpy_translate *t)
{
	uint8_t *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
	uint64_t *top;

	if (stack == MAP_FAILED)
		return -ENOMEM;
	if (mprotect(stack, GUARD, PROT_NONE)) {
		munmap(stack, STACK_SIZE);
		return -ENOMEM;
	}
	t->stack = stack;
	top = (uint64_t *)(stack + STACK_SIZE);
	*--top = 0;
	*--top = 0;
	*--top = (uint64_t)translate_begin;
	*--top = 0;			/* rbp */
	*--top = (uint64_t)t;		/* rbx */
	for (int i = 0; i < 4; i++)
		*--top = 0;
	t->guest_sp = top;
	return 0;
}

void translate_stack_free(struct kvmpy_translate *t)
{
	if (t->stack) {
		FIBER_FORGET(t->stack, STACK_SIZE);
		munmap(t->stack, STACK_SIZE);
	}
	t->stack = NULL;
}

void translate_to_guest(struct kvmpy_translate *t)
{
	translate_running(t);
	FIBER_START(&t->host_fiber, t->stack, STACK_SIZE);
	translate_switch(&t->host_sp, t->guest_sp);
	FIBER_FINISH(t->host_fiber, NULL, NULL);
	translate_running(NULL);
}

/* Back to whoever called enter(), until the next time. */
bool translate_yield(struct kvmpy_translate *t)
{
	FIBER_START(&t->fiber, t->host_stack, t->host_stack_size);
	translate_switch(&t->guest_sp, t->host_sp);
	FIBER_FINISH(t->fiber, &t->host_stack, &t->host_stack_size);
	return !t->leave;
}
