// SPDX-License-Identifier: MIT
/*
 * Exceptions, interrupts, NMI and the instructions that Unicorn leaves to its user. The library's own delivery does the
 * work (IVT, 32- and 64-bit gates, task gates, TSS and IST stacks); a fault in it comes back here as an exception, a
 * double fault or, for the third, the end of unicorn.start().
 */
#include <errno.h>
#include <string.h>

#include "bus.h"
#include "translate.h"

#define DEBUG_EXCEPTION 1
#define BREAKPOINT 3
#define INVALID_OPCODE 6
#define STACK_FAULT 12
#define GENERAL_PROTECTION 13
#define PAGE_FAULT 14
#define PF_WRITE 2
#define PF_FETCH 16
#define FLAGS_AS_THEY_ARE 1	/* value of unicorn_cpu.flag_operation: in flag_operands[1] */
#define RFLAGS_IF (1ull << 9)
#define RFLAGS_RF (1ull << 16)

static bool interruptible(const struct kvmpy_translate *t)
{
	return t->env->rflags & RFLAGS_IF && !(t->env->mode & MODE_SHADOW);
}

/* Whether something is to be delivered, or told, before the next instruction. */
bool translate_has_event(const struct kvmpy_translate *t)
{
	if (t->exception >= 0 || (t->nmi && !(t->env->mode2 & MODE2_IN_NMI)))
		return true;
	return (t->interrupt >= 0 || t->attention & ATTENTION_WINDOW) && interruptible(t);
}

static void settle(struct kvmpy_translate *t)
{
	if (t->exception < 0 && t->interrupt < 0 && !t->nmi)
		__atomic_fetch_and(&t->attention, ~ATTENTION_EVENT, __ATOMIC_RELAXED);
}

/*
 * The error code of a fault in the delivery of another event: SDM vol. 3, 6.13. The library takes 16 bytes for the size of
 * a gate where it should count gates, and leaves out EXT.
 */
static void correct_error_code(struct kvmpy_translate *t, uint32_t vector)
{
	int32_t *code = &t->env->error_code;

	if (t->delivering < 0 || vector < 10 || vector > 13) {
		t->delivering = -1;
		return;
	}
	if (t->env->mode & MODE_LONG && *code == t->delivering * 16 + 2)
		*code = t->delivering * 8 + 2;
	if (!t->delivering_software)
		*code |= 1;
	t->delivering = -1;
}

/* Between two instructions: a fault in the delivery finds the event gone, as the manuals want it. */
void translate_deliver(struct kvmpy_translate *t, int vector)
{
	translate_check_task(t);
	t->delivering = vector;
	t->delivering_software = false;
	unicorn.deliver_interrupt(t->env, vector, 1);
	t->delivering = -1;
	unicorn.leave_code(t->cpu);
}

/* A fault pushes RF, so that a breakpoint on its instruction doesn't stop it again: SDM vol. 3, 18.3.1.1. */
static bool is_fault(const struct kvmpy_translate *t, uint32_t vector)
{
	return !t->env->is_software && vector != DEBUG_EXCEPTION && vector != 8 && vector != 18;
}

static void deliver_exception(struct kvmpy_translate *t, uint32_t vector)
{
	translate_check_task(t);
	if (is_fault(t, vector))
		t->env->rflags |= RFLAGS_RF;
	t->delivering = vector;
	t->delivering_software = t->env->is_software;
	unicorn.deliver_exception(t->cpu);
	t->delivering = -1;
}

static void deliver_pending(struct kvmpy_translate *t)
{
	int vector;

	if (t->exception >= 0) {
		vector = t->exception;
		t->exception = -1;
		settle(t);
		unicorn.raise(t->env, vector, t->exception_error);
	}
	if (t->nmi && !(t->env->mode2 & MODE2_IN_NMI)) {
		t->nmi = false;
		settle(t);
		t->env->mode2 |= MODE2_IN_NMI;
		translate_deliver(t, 2);
	}
	if (t->interrupt >= 0 && interruptible(t)) {
		vector = t->interrupt;
		t->interrupt = -1;
		settle(t);
		translate_deliver(t, vector);
	}
}

static void __attribute__((noinline)) attend(struct kvmpy_translate *t)
{
	/* An instruction that was left in the middle is no place for an event, nor to stop. */
	if (translate_again(t, t->blocks))
		return;
	if (translate_stop_asked(t))
		translate_stop(t, -EINTR);
	if (t->attention & ATTENTION_WROTE) {
		/* Another thread wrote while the guest runs: it couldn't expect it to be seen any sooner. */
		translate_forget_written(t);
		unicorn.leave_code(t->cpu);
	}
	if (t->attention & ATTENTION_TASK)
		translate_check_task(t);
	if (t->attention & ATTENTION_STORES)
		translate_renew_stores(t);
	if (t->attention & ATTENTION_EVENT)
		deliver_pending(t);
	if (t->attention & ATTENTION_WINDOW && t->interrupt < 0 && interruptible(t)) {
		t->run->exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
		translate_stop(t, 0);
	}
	if (t->attention & ATTENTION_SINGLE)
		translate_single_block(t);
}

/* What is pending can't be delivered yet: where most blocks begin while a guest has its interrupts off. */
static bool must_wait(const struct kvmpy_translate *t)
{
	return !translate_stop_asked(t) && !(t->attention & ~(ATTENTION_EVENT | ATTENTION_WINDOW)) &&
	       !translate_has_event(t);
}

/*
 * A block begins, and there is a nudge; `where` is in its code. No instruction is half done. Blocks are counted as long as
 * the count tells whether one has begun since an access to MMIO.
 */
void translate_begin_block(struct unicorn_cpu *env, uintptr_t where)
{
	struct kvmpy_translate *t = env->engine;

	__atomic_exchange_n(&unicorn_front(env)->nudge, ++t->blocks <= t->mmio.block, __ATOMIC_SEQ_CST);
	if (likely(!(t->run->immediate_exit | t->attention)))
		return;
	translate_nudge(t);
	if (must_wait(t))
		return;
	unicorn.restore_state(t->cpu, where, true);
	attend(t);
}

/* INT n and its relatives are faults on the instruction when they can't be delivered: rip must stand on it. */
static void back_to_software_interrupt(struct kvmpy_translate *t, uint32_t vector)
{
	struct unicorn_cpu *env = t->env;
	uint8_t bytes[2];
	uint64_t rip = env->next_rip - 2;

	if (translate_read(t, env->segments[SEG_CS].base + rip, bytes, 2) != 2 || bytes[0] != 0xcd ||
	    bytes[1] != vector)
		rip++;
	env->rip = rip;
}

static bool debugged(const struct kvmpy_translate *t, uint32_t vector)
{
	return vector == BREAKPOINT && t->env->is_software && t->debug.control & KVM_GUESTDBG_ENABLE &&
	       t->debug.control & KVM_GUESTDBG_USE_SW_BP;
}

/* Of an instruction that modifies memory the library tells the read's fault, the processor a write's. */
static void correct_write_bit(struct kvmpy_translate *t)
{
	struct translate_instruction insn;

	if (t->env->error_code & (PF_WRITE | PF_FETCH) || t->env->cr[2] - t->env->rip < 16)
		return;
	translate_decode(t, &insn);
	if (translate_modifies_memory(&insn))
		t->env->error_code |= PF_WRITE;
}

/*
 * RCL and RCR have all flags worked out before they touch memory. When that faults, the library takes back which operation
 * the flags come from, but not its operands, where they now are.
 */
static void correct_rotate_flags(struct kvmpy_translate *t, uint32_t vector)
{
	struct unicorn_cpu *env = t->env;
	struct translate_instruction insn;
	uint64_t linear = env->segments[SEG_CS].base + env->rip;

	if (vector == PAGE_FAULT && (env->error_code & PF_FETCH || env->cr[2] - linear < TRANSLATE_LONGEST))
		return;		/* of the instruction's own bytes */
	translate_decode(t, &insn);
	if (translate_rotates_memory(&insn))
		env->flag_operation = FLAGS_AS_THEY_ARE;
}

/* Handlers whose first instruction can't be fetched fault for ever, and no block ever begins. */
static void stop_if_asked(struct kvmpy_translate *t)
{
	if (unlikely(t->single.on))
		return translate_single_done(t);
	if (likely(!translate_stop_asked(t)))
		return;
	t->result = -EINTR;
	t->wait.kind = WAIT_NOTHING;
	t->stopped = true;
	unicorn.stop(t->unicorn);
}

static void on_exception(void *engine, uint32_t vector, void *user)
{
	struct kvmpy_translate *t = user;

	(void)engine;
	if (t->delivering < 0 && vector >= STACK_FAULT && vector <= PAGE_FAULT && !t->env->is_software)
		correct_rotate_flags(t, vector);
	correct_error_code(t, vector);
	if (t->env->is_software)
		back_to_software_interrupt(t, vector);
	if (unlikely(debugged(t, vector))) {
		t->env->exception_in_flight = -1;
		translate_debug_exit(t, BREAKPOINT, 0);
		return;
	}
	if (vector == PAGE_FAULT)
		correct_write_bit(t);
	deliver_exception(t, vector);
	stop_if_asked(t);
	/* A read that faults at its second page leaves a mark, without which there are no hooks of reads. */
	if (!t->stopped && (vector == GENERAL_PROTECTION || vector == PAGE_FAULT))
		translate_restart(t);
}

/* KVM API document, KVM_EXIT_HYPERCALL; from above ring 0 KVM refuses by itself. */
static void hypercall(struct kvmpy_translate *t)
{
	struct kvm_run *run = t->run;
	uint64_t *regs = t->env->regs;

	run->exit_reason = KVM_EXIT_HYPERCALL;
	memset(&run->hypercall, 0, sizeof(run->hypercall));
	run->hypercall.nr = regs[0];
	run->hypercall.args[0] = regs[3];
	run->hypercall.args[1] = regs[1];
	run->hypercall.args[2] = regs[2];
	run->hypercall.args[3] = regs[6];
	run->hypercall.longmode = !!(t->env->mode & MODE_CODE64);
	if (!run->hypercall.longmode) {
		run->hypercall.nr = (uint32_t)run->hypercall.nr;
		for (int i = 0; i < 4; i++)
			run->hypercall.args[i] = (uint32_t)run->hypercall.args[i];
	}
	t->result = 0;
	t->wait.kind = WAIT_HYPERCALL;
	t->wait.rip = t->env->rip;
	if (translate_yield(t)) {
		translate_complete(t);
		t->wait.kind = WAIT_NO_MORE;
		return;
	}
	t->stopped = true;
	unicorn.stop(t->unicorn);
}

static bool is_hypercall(const struct translate_instruction *insn)
{
	const uint8_t *bytes = insn->bytes + insn->length - 3;

	return insn->opcode == 0x0f && insn->length >= 3 && insn->available >= insn->length && bytes[1] == 0x01 &&
	       (bytes[2] == 0xc1 || bytes[2] == 0xd9);
}

static bool on_invalid(void *engine, void *user)
{
	struct kvmpy_translate *t = user;

	(void)engine;
	translate_decode(t, &t->wait.insn);
	if (!is_hypercall(&t->wait.insn)) {
		if (unlikely(translate_single_undefined(t)))
			return true;
		t->delivering = -1;
		deliver_exception(t, INVALID_OPCODE);
		stop_if_asked(t);
		return true;
	}
	if (translate_protected(t) && translate_cpl(t)) {
		t->env->regs[0] = -1;	/* KVM_EPERM */
		translate_skip(t, t->wait.insn.length);
		return true;
	}
	hypercall(t);
	return true;
}

/* A flat segment as SYSCALL and SYSENTER load it. */
static void flat(struct unicorn_segment *segment, uint16_t selector, uint32_t flags)
{
	*segment = (struct unicorn_segment) { .selector = selector, .limit = 0xffffffff, .flags = flags };
}

#define CODE64 0x00a09b00
#define CODE32 0x00c09b00
#define DATA32 0x00c09300

/* APM vol. 3, SYSCALL. Compatibility mode has it as on AMD's processors, for the CPUID doesn't say Intel there. */
static void on_syscall(void *engine, void *user)
{
	struct kvmpy_translate *t = user;
	struct unicorn_cpu *env = t->env;
	uint16_t selector = env->star >> 32 & 0xfffc;
	struct translate_instruction insn;
	uint64_t flags;

	(void)engine;
	if (!(env->efer & 1) || !translate_protected(t))
		unicorn.raise(env, INVALID_OPCODE, 0);
	translate_decode(t, &insn);
	flags = unicorn.read_flags(env);
	translate_skip(t, insn.length);
	env->regs[1] = env->rip;
	if (env->mode & MODE_LONG) {
		env->regs[11] = flags & ~(1ull << 16);
		env->rip = env->mode & MODE_CODE64 ? env->lstar : env->cstar;
		unicorn.write_flags(env, flags & ~env->fmask & ~(1ull << 16), -1);
	} else {
		env->rip = (uint32_t)env->star;
		unicorn.write_flags(env, flags & ~(RFLAGS_IF | 1 << 16 | 1 << 17), -1);
	}
	flat(&env->segments[SEG_CS], selector, env->mode & MODE_LONG ? CODE64 : CODE32);
	flat(&env->segments[SEG_SS], selector + 8, DATA32);
	env->rflags &= ~0xcd5ull;
	unicorn.update_mode(env);
	unicorn.leave_code(t->cpu);
}

/* SDM vol. 2, SYSENTER. */
static void on_sysenter(void *engine, void *user)
{
	struct kvmpy_translate *t = user;
	struct unicorn_cpu *env = t->env;
	uint16_t selector = env->sysenter_cs & 0xfffc;
	bool is_long = env->mode & MODE_LONG;
	uint64_t flags;

	(void)engine;
	if (!translate_protected(t) || !selector)
		unicorn.raise(env, GENERAL_PROTECTION, 0);
	flags = unicorn.read_flags(env) & ~(RFLAGS_IF | 1ull << 17 | 1ull << 16);
	unicorn.write_flags(env, flags, -1);
	env->regs[4] = is_long ? env->sysenter_esp : (uint32_t)env->sysenter_esp;
	env->rip = is_long ? env->sysenter_eip : (uint32_t)env->sysenter_eip;
	flat(&env->segments[SEG_CS], selector, is_long ? CODE64 : CODE32);
	flat(&env->segments[SEG_SS], selector + 8, DATA32);
	env->rflags &= ~0xcd5ull;
	unicorn.update_mode(env);
	unicorn.leave_code(t->cpu);
}

int translate_hook_events(struct kvmpy_translate *t)
{
	void *u = t->unicorn;
	size_t hook;

	return unicorn.hook(u, &hook, UNICORN_HOOK_INTERRUPT, on_exception, t, 1, 0) ||
	       unicorn.hook(u, &hook, UNICORN_HOOK_INVALID, on_invalid, t, 1, 0) ||
	       unicorn.hook(u, &hook, UNICORN_HOOK_INSTRUCTION, on_syscall, t, 1, 0, UNICORN_INSN_SYSCALL) ||
	       unicorn.hook(u, &hook, UNICORN_HOOK_INSTRUCTION, on_sysenter, t, 1, 0, UNICORN_INSN_SYSENTER);
}
