// SPDX-License-Identifier: MIT
/* Guest debugging: breakpoint instructions, execution breakpoints and single steps, as KVM_SET_GUEST_DEBUG has them. */
#include <errno.h>
#include <string.h>

#include "translate.h"
#include "translate_api.h"

#define DR6_STEP (1ull << 14)
#define DR6_FIXED 0xffff0ff0ull

/* From a hook that may return to go on, and from one between two instructions. */
void translate_debug_exit(struct kvmpy_translate *t, uint32_t exception, uint64_t dr6)
{
	struct kvm_run *run = t->run;

	run->exit_reason = KVM_EXIT_DEBUG;
	memset(&run->debug, 0, sizeof(run->debug));
	run->debug.arch.exception = exception;
	run->debug.arch.pc = t->env->segments[SEG_CS].base + t->env->rip;
	run->debug.arch.dr6 = DR6_FIXED | dr6;
	run->debug.arch.dr7 = t->env->dr[7];
	t->result = 0;
	t->wait.kind = WAIT_NOTHING;
	t->stopped = true;
	unicorn.stop(t->unicorn);
}

static uint64_t hit(const struct kvmpy_translate *t, uint64_t linear)
{
	uint64_t dr7 = t->debug.arch.debugreg[7], found = 0;

	if (!(t->debug.control & KVM_GUESTDBG_USE_HW_BP))
		return 0;
	for (int i = 0; i < 4; i++)	/* enabled, and for execution */
		if (dr7 >> (2 * i) & 3 && !(dr7 >> (16 + 4 * i) & 3) && t->debug.arch.debugreg[i] == linear)
			found |= 1 << i;
	return found;
}

/* In front of every instruction, while stepping or with breakpoints. The first after an entry always runs. */
static void on_step(void *engine, uint64_t pc, uint32_t size, void *user)
{
	struct kvmpy_translate *t = user;
	uint64_t dr6;

	(void)engine;
	(void)size;
	if (!t->steps++)
		return;
	dr6 = hit(t, pc);
	if (t->debug.control & KVM_GUESTDBG_SINGLESTEP)
		dr6 |= DR6_STEP;
	if (dr6) {
		translate_debug_exit(t, 1, dr6);
		unicorn.leave_code(t->cpu);
	}
}

/* KVM_SET_GUEST_DEBUG. -EINVAL: breakpoints on data, which there are none of. */
int kvmpy_translate_set_debug(struct kvmpy_vcpu *vcpu, const struct kvm_guest_debug *debug)
{
	struct kvmpy_translate *t = vcpu->engine;
	uint64_t dr7 = debug->arch.debugreg[7];
	bool each = debug->control & KVM_GUESTDBG_ENABLE &&
		    debug->control & (KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP);

	for (int i = 0; i < 4 && debug->control & KVM_GUESTDBG_USE_HW_BP; i++)
		if (dr7 >> (2 * i) & 3 && dr7 >> (16 + 4 * i) & 3)
			return -EINVAL;
	translate_park(t);
	t->debug = *debug;
	t->steps = 0;
	if (each == !!t->step_hook)
		return 0;
	if (!each) {
		unicorn.unhook(t->unicorn, t->step_hook);
		t->step_hook = 0;
	} else if (unicorn.hook(t->unicorn, &t->step_hook, UNICORN_HOOK_CODE, on_step, t, 1, 0)) {
		t->step_hook = 0;
		return -ENOMEM;
	}
	translate_forget_code(t);
	return 0;
}
