// SPDX-License-Identifier: MIT
/* The way of a rescue: from KVM's failure through the helper back to KVM, with exits for devices in between. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dirty.h"
#include "rescue.h"
#include "translate_api.h"

#define MOST_TOGETHER 256	/* instructions in a row: an interrupt waits that long */
#define TURNS 1024		/* rescues until Python may look for signals */
#define PIO_DATA 4096		/* KVM_PIO_PAGE_OFFSET, in bytes */
#define IOAPIC 0xfec00000u
#define APIC_BASE 0xfffff000u
#define DR6_STEP 0xffff4ff0ull
#define AGAIN 1			/* the rescue is over: enter KVM */

/* The exit is KVM's again. */
int rescue_fail(struct kvmpy_rescue *r, int why)
{
	struct kvm_run *run = r->vcpu->run;

	r->why = why;
	r->under_way = false;
	run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	memcpy(run->padding, r->failure, sizeof(r->failure));
	return 0;
}

/* Asked in front of each instruction behind the first. */
static bool goes_on(void *user, const uint8_t *code, uint32_t size)
{
	struct kvmpy_rescue *r = user;
	uint64_t sign;
	uint8_t head;
	uint32_t carry = kvmpy_rescue_decode(code, size, r->bits, &sign, &head);

	if (r->vcpu->debug || !r->most || carry & ~r->carried || r->vcpu->run->immediate_exit)
		return false;
	if (!kvmpy_rescue_known(r, code, size))
		return false;
	r->most--;
	r->together++;
	kvmpy_rescue_count(r, code, size);
	return true;
}

static void wrote(void *user, uint32_t slot, uint64_t page)
{
	struct kvmpy_rescue *r = user;

	if (r->vcpu->dirty)
		kvmpy_dirty_note(r->vcpu->dirty, slot, page);
}

/* Behind the instructions that were done, whatever is to be said of the one the helper stands at. */
static int finish(struct kvmpy_rescue *r)
{
	struct kvm_run *run = r->vcpu->run;
	int result;

	r->under_way = false;
	result = rescue_carry_back(r);
	if (result != 1)
		return result;
	if (r->vcpu->debug & KVM_GUESTDBG_SINGLESTEP) {
		run->exit_reason = KVM_EXIT_DEBUG;
		memset(&run->debug, 0, sizeof(run->debug));
		run->debug.arch.exception = 1;
		run->debug.arch.pc = run->s.regs.sregs.cs.base + run->s.regs.regs.rip;
		run->debug.arch.dr6 = DR6_STEP;
		run->debug.arch.dr7 = 0x400;
		return 0;
	}
	return AGAIN;
}

/* The helper stands at an instruction it begun by itself: that one isn't done. */
static bool at_another(struct kvmpy_rescue *r)
{
	struct kvm_regs now;

	if (!r->together)
		return false;
	kvmpy_translate_get_regs(r->helper, &now);
	return now.rip != r->regs.rip;
}

static int leave_out(struct kvmpy_rescue *r)
{
	kvmpy_rescue_uncount(r);
	kvmpy_translate_single_begin(r->helper, false);
	return finish(r);
}

static bool is_kernels(const struct kvmpy_rescue *r, uint64_t gpa)
{
	if (r->apic && (gpa & ~0xfffull) == (r->vcpu->run->s.regs.sregs.apic_base & APIC_BASE))
		return true;
	return r->ioapic && (gpa & ~0xfffull) == IOAPIC;
}

static int make_access(struct kvmpy_rescue *r)
{
	struct kvm_run *run = r->vcpu->run, *from = r->helper->run;

	if (at_another(r))
		return leave_out(r);
	if (from->exit_reason == KVM_EXIT_MMIO && is_kernels(r, from->mmio.phys_addr))
		return rescue_fail(r, KVMPY_RESCUE_DEVICE);
	run->exit_reason = from->exit_reason;
	if (from->exit_reason == KVM_EXIT_MMIO) {
		run->mmio = from->mmio;
	} else {
		run->io = from->io;
		run->io.data_offset = PIO_DATA;
		memcpy((uint8_t *)run + PIO_DATA, (uint8_t *)from + from->io.data_offset, from->io.size * from->io.count);
	}
	r->under_way = r->accessed = true;
	return 0;
}

static void take_answer(struct kvmpy_rescue *r)
{
	struct kvm_run *run = r->vcpu->run, *to = r->helper->run;

	if (to->exit_reason == KVM_EXIT_MMIO)
		memcpy(to->mmio.data, run->mmio.data, sizeof(to->mmio.data));
	else
		memcpy((uint8_t *)to + to->io.data_offset, (uint8_t *)run + PIO_DATA, to->io.size * to->io.count);
}

static int enter_helper(struct kvmpy_rescue *r);

/* The translator doesn't know it: Python says whether the guest's processor does. */
static int undefined(struct kvmpy_rescue *r)
{
	bool ruled = r->ruled;

	r->ruled = false;
	if (!ruled || r->asked_rip != r->regs.rip) {
		r->ask = true;
		r->asked_rip = r->regs.rip;
		return KVMPY_WANTS_PYTHON;
	}
	if (!r->undefined)
		return rescue_fail(r, KVMPY_RESCUE_UNKNOWN);
	kvmpy_translate_single_begin(r->helper, true);
	return enter_helper(r);
}

/* What became of the instruction. */
static int look(struct kvmpy_rescue *r)
{
	struct kvm_run *run = r->vcpu->run, *from = r->helper->run;
	int result;

	switch (from->exit_reason) {
	case KVM_EXIT_DEBUG:
		if (from->debug.arch.exception == 1)
			return finish(r);
		if (at_another(r))
			return leave_out(r);
		run->exit_reason = KVM_EXIT_DEBUG;
		run->debug = from->debug;
		return 0;
	case KVM_EXIT_IO:
	case KVM_EXIT_MMIO:
		return make_access(r);
	case KVM_EXIT_HLT:
	case KVM_EXIT_SHUTDOWN:
		result = finish(r);
		if (result == AGAIN)
			run->exit_reason = from->exit_reason;
		return result == AGAIN ? 0 : result;
	case KVM_EXIT_EXCEPTION:
		return at_another(r) ? leave_out(r) : undefined(r);
	}
	if (at_another(r))
		return leave_out(r);
	return rescue_fail(r, from->internal.ndata ? KVMPY_RESCUE_UNKNOWN : KVMPY_RESCUE_STUCK);
}

static int enter_helper(struct kvmpy_rescue *r)
{
	int error = kvmpy_translate_enter(r->helper);

	if (error) {
		r->error = -error;
		r->request = 0;
		return rescue_fail(r, KVMPY_RESCUE_ERROR);
	}
	return look(r);
}

/* Breakpoint instructions are the host's if it asked for them. */
static void set_debug(struct kvmpy_rescue *r)
{
	uint32_t control = r->vcpu->debug & KVM_GUESTDBG_USE_SW_BP ? KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP : 0;
	struct kvm_guest_debug debug = { .control = control };

	if (control != r->debugging)
		kvmpy_translate_set_debug(r->helper, &debug);
	r->debugging = control;
}

static int begin(struct kvmpy_rescue *r)
{
	uint8_t code[15], head;
	uint64_t sign;
	uint32_t size, carry;
	int result;

	r->accessed = false;
	r->why = KVMPY_RESCUE_NOT_TRIED;
	r->most = MOST_TOGETHER;
	r->together = 0;
	memcpy(r->failure, r->vcpu->run->padding, sizeof(r->failure));
	set_debug(r);
	result = rescue_carry_over(r);
	if (result != 1)
		return result;
	size = kvmpy_translate_code(r->helper, code, sizeof(code));
	if (!size)
		return rescue_fail(r, KVMPY_RESCUE_CODE);
	carry = kvmpy_rescue_decode(code, size, r->bits, &sign, &head);
	if (carry & KVMPY_CARRY_NEVER)
		return rescue_fail(r, KVMPY_RESCUE_UNKNOWN);
	result = rescue_carry_more(r, code, size, carry);
	if (result != 1)
		return result;
	kvmpy_translate_single_begin(r->helper, false);
	result = enter_helper(r);
	if (r->why == KVMPY_RESCUE_NOT_TRIED && result != KVMPY_WANTS_PYTHON)
		kvmpy_rescue_count(r, code, size);
	return result;
}

/* An access of the instruction was served. A handler that moved rip has done with the instruction. */
static int go_on(struct kvmpy_rescue *r)
{
	struct kvm_run *run = r->vcpu->run;
	uint64_t dirty = run->kvm_dirty_regs;

	if (dirty & KVM_SYNC_X86_REGS && run->s.regs.regs.rip != r->regs.rip) {
		r->under_way = false;
		kvmpy_translate_single_begin(r->helper, false);
		return AGAIN;
	}
	if (dirty & KVM_SYNC_X86_SREGS) {
		if (kvmpy_translate_set_sregs(r->helper, &run->s.regs.sregs))
			return rescue_fail(r, KVMPY_RESCUE_STATE);
		kvmpy_translate_get_sregs(r->helper, &r->sregs);
	}
	if (dirty & KVM_SYNC_X86_REGS)
		kvmpy_translate_set_regs(r->helper, &run->s.regs.regs);
	take_answer(r);
	return enter_helper(r);
}

static int rescue(struct kvmpy_rescue *r)
{
	struct kvmpy_gate *gate = r->vcpu->gate;
	int result;

	if (gate)
		kvmpy_gate_close(gate, r->vcpu);
	pthread_mutex_lock(&r->lock);
	result = r->under_way ? go_on(r) : begin(r);
	pthread_mutex_unlock(&r->lock);
	if (gate)
		kvmpy_gate_open(gate);
	/* Who handles signals in Python waits for KVM_RUN to be interrupted, and that isn't where the time goes here. */
	if (result == AGAIN && !(++r->turns % TURNS))
		return -EINTR;
	return result;
}

static int enter_kvm(struct kvmpy_vcpu *vcpu)
{
	int error;

	if (likely(!vcpu->gate))
		return kvmpy_kvm_enter(vcpu);
	kvmpy_gate_pass(vcpu->gate, vcpu);
	error = kvmpy_kvm_enter(vcpu);
	kvmpy_gate_leave(vcpu->gate, vcpu);
	return error;
}

static bool gave_up(const struct kvm_run *run)
{
	return unlikely(run->exit_reason == KVM_EXIT_INTERNAL_ERROR) &&
	       run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION;
}

int kvmpy_rescue_enter(struct kvmpy_vcpu *vcpu)
{
	int result = AGAIN;

	if (unlikely(vcpu->rescue && vcpu->rescue->under_way))
		result = rescue(vcpu->rescue);
	while (result == AGAIN) {
		result = enter_kvm(vcpu);
		if (likely(result || !gave_up(vcpu->run)))
			return result;
		if (!vcpu->rescue || vcpu->rescue_off)
			return vcpu->rescue_off ? 0 : KVMPY_WANTS_PYTHON;
		result = rescue(vcpu->rescue);
	}
	return result;
}

void kvmpy_rescue_install(struct kvmpy_vcpu *vcpu, struct kvmpy_gate *gate)
{
	vcpu->gate = gate;
	vcpu->enter = kvmpy_rescue_enter;
}

struct kvmpy_rescue *kvmpy_rescue_new(struct kvmpy_vcpu *vcpu, struct kvmpy_vcpu *helper, uint32_t sync,
				      uint32_t xsave_size)
{
	struct kvmpy_rescue *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->xsave_size = xsave_size > 4096 ? xsave_size : 4096;
	r->xsave = aligned_alloc(64, (r->xsave_size + 63) & ~63u);
	if (!r->xsave || kvmpy_translate_single(helper, goes_on, wrote, r)) {
		free(r->xsave);
		free(r);
		return NULL;
	}
	pthread_mutex_init(&r->lock, NULL);
	r->vcpu = vcpu;
	r->helper = helper;
	r->sync = sync;
	vcpu->rescue = r;
	return r;
}

/* Before its helper and its vCPU. */
void kvmpy_rescue_free(struct kvmpy_rescue *r)
{
	r->vcpu->rescue = NULL;
	pthread_mutex_destroy(&r->lock);
	free(r->xsave);
	free(r);
}

int kvmpy_rescue_map(struct kvmpy_rescue *r, uint32_t slot, uint64_t gpa, uint64_t size, void *host, bool readonly)
{
	int error;

	pthread_mutex_lock(&r->lock);
	error = kvmpy_translate_map(r->helper, slot, gpa, size, host, readonly);
	pthread_mutex_unlock(&r->lock);
	return error;
}
