// SPDX-License-Identifier: MIT
/* CPUID from the table that was set. */
#include "translate.h"

#define OSXSAVE (1u << 27)
#define CR4_OSXSAVE (1ull << 18)
#define AUTH 0x68747541u	/* of AuthenticAMD, in EBX of leaf 0 */
#define HYGO 0x6f677948u	/* of HygonGenuine */

static const struct kvm_cpuid_entry2 *find(const struct kvmpy_translate *t, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < t->cpuid_count; i++) {
		const struct kvm_cpuid_entry2 *entry = &t->cpuid[i];

		if (entry->function == function &&
		    (!(entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || entry->index == index))
			return entry;
	}
	return NULL;
}

/* The leaf that says which is the last one of the function's range. */
static uint32_t head_of_range(uint32_t function)
{
	if (function >> 28 == 4)	/* hypervisors': blocks of 256 */
		return function & ~0xffu;
	return function >= 0xc0000000 ? 0xc0000000 : function & 0x80000000;
}

/*
 * SDM vol. 2, CPUID: beyond the last leaf of a range there is what the highest basic leaf says. AMD's processors have
 * zeros there. KVM does either, as the vendor is in leaf 0.
 */
static const struct kvm_cpuid_entry2 *beyond(const struct kvmpy_translate *t, uint32_t function, uint32_t index)
{
	const struct kvm_cpuid_entry2 *basic = find(t, 0, 0), *head;

	if (!basic || basic->ebx == AUTH || basic->ebx == HYGO)
		return NULL;
	head = find(t, head_of_range(function), 0);
	return head && function <= head->eax ? NULL : find(t, basic->eax, index);
}

static int on_cpuid(void *engine, void *user)
{
	struct kvmpy_translate *t = user;
	struct unicorn_cpu *env = t->env;
	uint32_t function = env->regs[0], index = env->regs[1];
	const struct kvm_cpuid_entry2 *entry = find(t, function, index);

	(void)engine;
	if (!entry)
		entry = beyond(t, function, index);
	env->regs[0] = entry ? entry->eax : 0;
	env->regs[3] = entry ? entry->ebx : 0;
	env->regs[1] = entry ? entry->ecx : 0;
	env->regs[2] = entry ? entry->edx : 0;
	if (function == 1 && entry) {	/* the one bit that follows a control register */
		env->regs[1] &= ~OSXSAVE;
		env->regs[1] |= env->cr[4] & CR4_OSXSAVE ? OSXSAVE : 0;
	}
	return 1;
}

int translate_hook_cpuid(struct kvmpy_translate *t)
{
	size_t hook;

	return unicorn.hook(t->unicorn, &hook, UNICORN_HOOK_INSTRUCTION, on_cpuid, t, 1, 0, UNICORN_INSN_CPUID);
}
