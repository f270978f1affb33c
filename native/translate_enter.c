// SPDX-License-Identifier: MIT
/* enter(): completes the exit before, runs translated code to the next exit, and says what it was. */
#include <errno.h>
#include <string.h>

#include "translate.h"

#define DOUBLE_FAULT 8

#ifndef KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
#define KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES 1
#endif

/* Out of the instruction, with rip on it; the innermost unicorn.start() returns. */
void translate_leave(struct kvmpy_translate *t)
{
	t->stopped = true;
	t->restart = false;
	unicorn.stop(t->unicorn);
	unicorn.leave_code(t->cpu);
}

/* The same, for an exit (0, with *run filled in) or an error that needs no completion. */
void translate_stop(struct kvmpy_translate *t, int result)
{
	t->result = result;
	t->wait.kind = WAIT_NOTHING;
	t->vcpu->asked = 0;
	translate_leave(t);
}

/* Behind the instruction at rip. */
void translate_skip(struct kvmpy_translate *t, uint32_t length)
{
	struct unicorn_cpu *env = t->env;

	env->rip += length;
	if (!(env->mode & MODE_CODE64))
		env->rip &= 0xffffffff;
	env->mode &= ~MODE_SHADOW;
	env->rflags &= ~(1ull << 16);	/* RF */
}

/* unicorn.start() returned by itself: HLT, a triple fault, or something it can't do. */
static void tell(struct kvmpy_translate *t, int error)
{
	struct kvm_run *run = t->run;
	struct translate_instruction insn;

	t->result = 0;
	t->wait.kind = WAIT_NOTHING;
	if (t->env->exception_in_flight == DOUBLE_FAULT) {
		t->env->exception_in_flight = -1;
		run->exit_reason = KVM_EXIT_SHUTDOWN;
		return;
	}
	/* The next one can't be fetched: that isn't this one's business. */
	if (t->single.on && error && t->env->rip != t->single.rip) {
		translate_single_done(t);
		return;
	}
	if (!error) {
		run->exit_reason = KVM_EXIT_HLT;
		return;
	}
	translate_decode(t, &insn);
	run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	memset(&run->internal, 0, sizeof(run->internal));
	run->emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
	run->emulation_failure.ndata = 3;
	run->emulation_failure.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
	run->emulation_failure.insn_size = insn.available;
	memcpy(run->emulation_failure.insn_bytes, insn.bytes, TRANSLATE_LONGEST);
}

/* For hooks from which leaving isn't possible, or not enough: when unicorn.start() returns it is called again. */
void translate_restart(struct kvmpy_translate *t)
{
	t->stopped = t->restart = true;
	unicorn.stop(t->unicorn);
}

/* What runs on the engine's own stack. */
void translate_guest_main(struct kvmpy_translate *t)
{
	for (;;) {
		int error;

		do {
			t->stopped = t->restart = false;
			t->delivering = -1;
			t->inside = true;
			error = unicorn.start(t->unicorn, t->env->rip, -1, 0, 0);
			t->inside = false;
		} while (t->restart);
		if (!t->stopped)
			tell(t, error);
		translate_yield(t);
	}
}

void translate_park(struct kvmpy_translate *t)
{
	if (!t->inside)
		return;
	t->leave = true;
	translate_to_guest(t);
	t->leave = false;
}

static void complete_in(struct kvmpy_translate *t)
{
	uint64_t *rax = &t->env->regs[0];
	uint8_t *data = (uint8_t *)t->run + t->run->io.data_offset;
	uint32_t value = 0;

	memcpy(&value, data, t->wait.size);
	if (t->wait.size == 4)
		*rax = value;
	else
		memcpy(rax, &value, t->wait.size);
}

static void queue_exception(struct kvmpy_translate *t, int vector, int error_code)
{
	t->exception = vector;
	t->exception_error = error_code;
	t->exception_has_error = true;
	translate_attend(t, ATTENTION_EVENT);
}

static void complete_msr(struct kvmpy_translate *t)
{
	struct kvm_run *run = t->run;

	if (run->msr.error) {
		queue_exception(t, 13, 0);
		return;
	}
	if (t->wait.kind == WAIT_RDMSR) {
		t->env->regs[0] = (uint32_t)run->msr.data;
		t->env->regs[2] = run->msr.data >> 32;
	}
	translate_skip(t, t->wait.insn.length);
}

/*
 * The completion of an exit by hand: the vCPU is parked, or at the start of the instruction. A new rip that was set
 * during the exit stays: the instruction's other results still come (as in KVM's complete_fast_pio_in()).
 */
void translate_complete(struct kvmpy_translate *t)
{
	bool here = t->env->rip == t->wait.rip;

	switch (t->wait.kind) {
	case WAIT_IN:
		complete_in(t);
		/* fall through */
	case WAIT_OUT:
		translate_decode(t, &t->wait.insn);
		if (here)
			translate_skip(t, t->wait.insn.length);
		break;
	case WAIT_STRING:
		translate_complete_string(t, false);
		break;
	case WAIT_MMIO:
		translate_record_mmio(t);
		break;
	case WAIT_RDMSR:
	case WAIT_WRMSR:
		if (here)
			complete_msr(t);
		break;
	case WAIT_HYPERCALL:
		t->env->regs[0] = t->run->hypercall.ret;
		if (here)
			translate_skip(t, t->wait.insn.length);
		break;
	case WAIT_NOTHING:
	case WAIT_NO_MORE:
		break;
	}
	t->wait.kind = WAIT_NOTHING;
}

/* The way into the guest when not all is as the last exit left it. */
static int prepare(struct kvmpy_translate *t)
{
	struct kvm_run *run = t->run;
	uint64_t dirty = run->kvm_dirty_regs;
	uint32_t wrote = __atomic_load_n(&t->attention, __ATOMIC_ACQUIRE) & ATTENTION_WROTE;
	bool stop = translate_stop_asked(t);

	if (run->request_interrupt_window)
		translate_attend(t, ATTENTION_WINDOW);
	else
		__atomic_fetch_and(&t->attention, ~ATTENTION_WINDOW, __ATOMIC_RELAXED);
	/* An MMIO instruction runs on to its end first: the next block, or the next exit, sees what there is to do. */
	if (stop)
		translate_nudge(t);
	if (dirty | wrote || (t->wait.kind != WAIT_MMIO && (stop || translate_has_event(t))))
		translate_park(t);
	if (t->inside)
		return 0;
	if (dirty) {
		run->kvm_dirty_regs = 0;
		t->load_error = 0;
		translate_load(t, dirty);
		if (t->load_error)
			return t->load_error;
	}
	/* A single step ends behind an instruction completed by hand; otherwise the first one always runs. */
	t->steps = t->wait.kind != WAIT_NOTHING && t->wait.kind != WAIT_MMIO;
	translate_complete(t);
	if (wrote)
		translate_forget_written(t);
	if (unlikely(!t->holes_open) && translate_open_holes(t))
		return -ENOMEM;
	return stop && !translate_again(t, t->blocks + 1) ? -EINTR : 0;
}

static void leave_word(struct kvmpy_translate *t)
{
	struct kvm_run *run = t->run;
	const struct unicorn_cpu *env = t->env;

	run->if_flag = env->rflags >> 9 & 1;
	run->ready_for_interrupt_injection =
		run->if_flag && !(env->mode & MODE_SHADOW) && t->interrupt < 0 && t->exception < 0;
	run->cr8 = env->tpr;
	run->apic_base = t->apic_base;
	if (unlikely(run->kvm_valid_regs))
		translate_store(t, run->kvm_valid_regs);
}

int kvmpy_translate_enter(struct kvmpy_vcpu *vcpu)
{
	struct kvmpy_translate *t = vcpu->engine;
	struct kvm_run *run = t->run;
	int error;

	if (unlikely(t->kept.count))
		translate_compare_views(t);
	if (unlikely(run->kvm_dirty_regs || translate_stop_asked(t) || !t->inside || run->request_interrupt_window ||
		     t->attention)) {
		error = prepare(t);
		if (error) {
			leave_word(t);
			return error;
		}
	}
	t->env->tpr = run->cr8;	/* KVM API document: in and out */
	translate_to_guest(t);
	leave_word(t);
	return t->result;
}
