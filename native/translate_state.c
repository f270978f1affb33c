// SPDX-License-Identifier: MIT
/* The rest of a vCPU's state: FPU, debug registers, events, MSRs, CPUID, between Unicorn and KVM's structures. */
#include <errno.h>
#include <string.h>

#include "translate.h"
#include "translate_api.h"

#define NMI_MASKED MODE2_IN_NMI
#define SHADOWS (KVM_X86_SHADOW_INT_STI | KVM_X86_SHADOW_INT_MOV_SS)

void kvmpy_translate_get_fpu(struct kvmpy_vcpu *vcpu, struct kvm_fpu *fpu)
{
	const struct unicorn_cpu *env = ((struct kvmpy_translate *)vcpu->engine)->env;

	memset(fpu, 0, sizeof(*fpu));
	for (int i = 0; i < 8; i++) {	/* KVM's come from the top of the stack, Unicorn's don't; tags neither */
		memcpy(fpu->fpr[i], env->fpu[(env->fpu_top + i) & 7], 10);
		if (!env->fpu_empty[i])
			fpu->ftwx |= 1 << i;
	}
	fpu->fcw = env->fpu_control;
	fpu->fsw = (env->fpu_status & ~0x3800) | (env->fpu_top & 7) << 11;
	fpu->last_opcode = env->fpu_opcode;
	fpu->last_ip = env->fpu_ip;
	fpu->last_dp = env->fpu_dp;
	for (int i = 0; i < 16; i++)
		memcpy(fpu->xmm[i], env->vectors[i], 16);
	fpu->mxcsr = env->mxcsr;
}

void kvmpy_translate_set_fpu(struct kvmpy_vcpu *vcpu, const struct kvm_fpu *fpu)
{
	struct kvmpy_translate *t = vcpu->engine;
	struct unicorn_cpu *env = t->env;

	translate_park(t);
	env->fpu_top = fpu->fsw >> 11 & 7;
	env->fpu_status = fpu->fsw & ~0x3800;
	env->fpu_control = fpu->fcw;
	for (int i = 0; i < 8; i++) {
		memcpy(env->fpu[(env->fpu_top + i) & 7], fpu->fpr[i], 10);
		env->fpu_empty[i] = !(fpu->ftwx >> i & 1);
	}
	env->fpu_opcode = fpu->last_opcode;
	env->fpu_ip = fpu->last_ip;
	env->fpu_dp = fpu->last_dp;
	for (int i = 0; i < 16; i++)
		memcpy(env->vectors[i], fpu->xmm[i], 16);
	env->mxcsr = fpu->mxcsr & 0xffff;
	unicorn.update_fpu(env);
	unicorn.update_mxcsr(env);
}

void kvmpy_translate_get_debugregs(struct kvmpy_vcpu *vcpu, struct kvm_debugregs *regs)
{
	const struct unicorn_cpu *env = ((struct kvmpy_translate *)vcpu->engine)->env;

	memset(regs, 0, sizeof(*regs));
	for (int i = 0; i < 4; i++)
		regs->db[i] = env->dr[i];
	regs->dr6 = env->dr[6];
	regs->dr7 = env->dr[7];
}

void kvmpy_translate_set_debugregs(struct kvmpy_vcpu *vcpu, const struct kvm_debugregs *regs)
{
	struct kvmpy_translate *t = vcpu->engine;

	translate_park(t);
	unicorn.update_dr7(t->env, 0x400);	/* takes out the breakpoints of the old addresses */
	for (int i = 0; i < 4; i++)
		t->env->dr[i] = regs->db[i];
	t->env->dr[6] = regs->dr6;
	unicorn.update_dr7(t->env, regs->dr7 | 0x400);
}

void translate_get_events(const struct kvmpy_translate *t, struct kvm_vcpu_events *events)
{
	memset(events, 0, sizeof(*events));
	if (t->exception >= 0) {
		events->exception.injected = 1;
		events->exception.nr = t->exception;
		events->exception.has_error_code = t->exception_has_error;
		events->exception.error_code = t->exception_error;
	}
	if (t->interrupt >= 0) {
		events->interrupt.injected = 1;
		events->interrupt.nr = t->interrupt;
	}
	events->interrupt.shadow = t->env->mode & MODE_SHADOW ? KVM_X86_SHADOW_INT_STI : 0;
	events->nmi.pending = t->nmi;
	events->nmi.masked = !!(t->env->mode2 & NMI_MASKED);
	events->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
}

void translate_set_events(struct kvmpy_translate *t, const struct kvm_vcpu_events *events)
{
	struct unicorn_cpu *env = t->env;

	t->exception = events->exception.injected || events->exception.pending ? events->exception.nr : -1;
	t->exception_has_error = events->exception.has_error_code;
	t->exception_error = events->exception.has_error_code ? events->exception.error_code : 0;
	t->interrupt = events->interrupt.injected ? events->interrupt.nr : -1;
	if (events->flags & KVM_VCPUEVENT_VALID_NMI_PENDING)
		t->nmi = events->nmi.pending;
	if (events->nmi.injected)
		t->nmi = true;
	env->mode2 = (env->mode2 & ~NMI_MASKED) | (events->nmi.masked ? NMI_MASKED : 0);
	if (events->flags & KVM_VCPUEVENT_VALID_SHADOW)
		env->mode = (env->mode & ~MODE_SHADOW) | (events->interrupt.shadow & SHADOWS ? MODE_SHADOW : 0);
	if (t->exception >= 0 || t->interrupt >= 0 || t->nmi)
		translate_attend(t, ATTENTION_EVENT);
}

void kvmpy_translate_get_events(struct kvmpy_vcpu *vcpu, struct kvm_vcpu_events *events)
{
	translate_get_events(vcpu->engine, events);
}

void kvmpy_translate_set_events(struct kvmpy_vcpu *vcpu, const struct kvm_vcpu_events *events)
{
	translate_park(vcpu->engine);
	translate_set_events(vcpu->engine, events);
}

uint64_t kvmpy_translate_get_xcr0(struct kvmpy_vcpu *vcpu)
{
	return ((struct kvmpy_translate *)vcpu->engine)->env->xcr0;
}

/* x87 and SSE are all there is. */
int kvmpy_translate_set_xcr0(struct kvmpy_vcpu *vcpu, uint64_t value)
{
	struct kvmpy_translate *t = vcpu->engine;

	if (!(value & 1) || value & ~3ull)
		return -EINVAL;
	translate_park(t);
	t->env->xcr0 = value;
	return 0;
}

bool kvmpy_translate_get_msr(struct kvmpy_vcpu *vcpu, uint32_t index, uint64_t *value)
{
	return translate_read_msr(vcpu->engine, index, value);
}

bool kvmpy_translate_set_msr(struct kvmpy_vcpu *vcpu, uint32_t index, uint64_t value)
{
	translate_park(vcpu->engine);
	return translate_write_msr(vcpu->engine, index, value, true);
}

/* KVM_CAP_X86_USER_SPACE_MSR. */
void kvmpy_translate_set_msr_exits(struct kvmpy_vcpu *vcpu, uint32_t reasons)
{
	((struct kvmpy_translate *)vcpu->engine)->msr_exits = reasons;
}

uint32_t kvmpy_translate_get_mp_state(struct kvmpy_vcpu *vcpu)
{
	return ((struct kvmpy_translate *)vcpu->engine)->mp_state;
}

void kvmpy_translate_set_mp_state(struct kvmpy_vcpu *vcpu, uint32_t state)
{
	((struct kvmpy_translate *)vcpu->engine)->mp_state = state;
}

int kvmpy_translate_set_cpuid(struct kvmpy_vcpu *vcpu, const struct kvm_cpuid_entry2 *entries, uint32_t count)
{
	struct kvmpy_translate *t = vcpu->engine;

	if (count > TRANSLATE_CPUID)
		return -E2BIG;
	memcpy(t->cpuid, entries, count * sizeof(*entries));
	t->cpuid_count = count;
	return 0;
}

void kvmpy_translate_native_cpuid(struct kvmpy_vcpu *vcpu, uint32_t function, uint32_t index, uint32_t *r)
{
	struct kvmpy_translate *t = vcpu->engine;

	unicorn.cpuid(t->env, function, index, &r[0], &r[1], &r[2], &r[3]);
}

int kvmpy_translate_interrupt(struct kvmpy_vcpu *vcpu, uint32_t vector)
{
	struct kvmpy_translate *t = vcpu->engine;

	if (vector > 255)
		return -EINVAL;
	if (t->interrupt >= 0)
		return -EEXIST;
	t->interrupt = vector;
	translate_attend(t, ATTENTION_EVENT);
	return 0;
}

void kvmpy_translate_nmi(struct kvmpy_vcpu *vcpu)
{
	struct kvmpy_translate *t = vcpu->engine;

	t->nmi = true;
	translate_attend(t, ATTENTION_EVENT);
}
