// SPDX-License-Identifier: MIT
/* RDMSR and WRMSR, and what the registers behind them hold. */
#include <errno.h>
#include <string.h>

#include "bus.h"
#include "translate.h"

#define EFER_SCE 1ull
#define EFER_LME (1ull << 8)
#define EFER_LMA (1ull << 10)
#define EFER_NXE (1ull << 11)
#define CR0_PG (1ull << 31)
#define MTRR_FIRST 0x200
#define MTRR_TYPE 0x2ff

static bool canonical(uint64_t address)
{
	return (int64_t)(address << 16) >> 16 == (int64_t)address;
}

/* Registers that hold what was written. */
static uint64_t *plain(struct kvmpy_translate *t, uint32_t index)
{
	struct unicorn_cpu *env = t->env;

	switch (index) {
	case 0x3b: return &env->tsc_adjust;
	case 0x1a0: return &t->misc_enable;
	case 0x277: return &env->pat;
	case 0xc0000081: return &env->star;
	case 0xc0000084: return &env->fmask;
	case 0xc0000103: return &env->tsc_aux;
	case MTRR_TYPE: return &t->mtrr[95];
	}
	if (index >= MTRR_FIRST && index < MTRR_FIRST + 16)	/* eight variable ranges */
		return &t->mtrr[index - MTRR_FIRST];
	if (index == 0x250 || index == 0x258 || index == 0x259 || (index >= 0x268 && index <= 0x26f))
		return &t->mtrr[(index - 0x250) + 16];
	return NULL;
}

/* Registers that hold a linear address. */
static uint64_t *address(struct kvmpy_translate *t, uint32_t index)
{
	struct unicorn_cpu *env = t->env;

	switch (index) {
	case 0x175: return &env->sysenter_esp;
	case 0x176: return &env->sysenter_eip;
	case 0xc0000082: return &env->lstar;
	case 0xc0000083: return &env->cstar;
	case 0xc0000100: return &env->segments[SEG_FS].base;
	case 0xc0000101: return &env->segments[SEG_GS].base;
	case 0xc0000102: return &env->kernel_gs_base;
	}
	return NULL;
}

bool translate_read_msr(struct kvmpy_translate *t, uint32_t index, uint64_t *value)
{
	uint64_t *at = plain(t, index);

	if (!at)
		at = address(t, index);
	if (at) {
		*value = *at;
		return true;
	}
	switch (index) {
	case 0x10: *value = unicorn.tsc(t->env) + t->env->tsc_offset; return true;
	case 0x1b: *value = t->apic_base; return true;
	case 0x8b: *value = 0x100000000; return true;	/* microcode revision */
	case 0xfe: *value = 0x508; return true;		/* eight variable MTRRs, the fixed ones, write-combining */
	case 0x174: *value = t->env->sysenter_cs; return true;
	case 0x179:					/* no machine check banks */
	case 0x17a: *value = 0; return true;
	case 0xc0000080: *value = t->env->efer; return true;
	}
	return false;
}

static bool valid_pat(uint64_t value)
{
	for (int i = 0; i < 64; i += 8) {
		uint8_t type = value >> i;

		if (type > 7 || type == 2 || type == 3)
			return false;
	}
	return true;
}

static bool write_efer(struct kvmpy_translate *t, uint64_t value, bool host)
{
	struct unicorn_cpu *env = t->env;

	if (value & ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE))
		return false;
	if (!host && (value ^ env->efer) & EFER_LME && env->cr[0] & CR0_PG)
		return false;
	if (!host)	/* LMA is the CPU's to change */
		value = (value & ~EFER_LMA) | (env->efer & EFER_LMA);
	if ((value ^ env->efer) & EFER_NXE)
		unicorn.flush_tlb(t->cpu);
	env->efer = value;
	unicorn.update_mode(env);
	return true;
}

/* False: #GP for the guest. The host may also set what a guest can only read. */
bool translate_write_msr(struct kvmpy_translate *t, uint32_t index, uint64_t value, bool host)
{
	uint64_t *at = address(t, index);

	if (at) {
		if (!canonical(value))
			return false;
		*at = value;
		return true;
	}
	if (index == 0x277 && !valid_pat(value))
		return false;
	at = plain(t, index);
	if (at) {
		*at = value;
		return true;
	}
	switch (index) {
	case 0x10: t->env->tsc_offset = value - unicorn.tsc(t->env); return true;
	case 0x1b: t->apic_base = value; return true;
	case 0x8b: return true;
	case 0x174: t->env->sysenter_cs = value; return true;
	case 0x17a: return !value || host;
	case 0xc0000080: return write_efer(t, value, host);
	}
	return false;
}

static bool known(struct kvmpy_translate *t, uint32_t index)
{
	uint64_t value;

	return translate_read_msr(t, index, &value);
}

/* Ends the instruction's hook: with the answer as KVM takes it, or #GP where nobody wants to hear of it. */
static void make_exit(struct kvmpy_translate *t, uint32_t index, bool is_write, uint64_t value, uint32_t reason)
{
	struct kvm_run *run = t->run;

	if (reason != KVM_MSR_EXIT_REASON_FILTER && !(t->msr_exits & reason))
		unicorn.raise(t->env, 13, 0);
	if (unlikely(translate_stop_asked(t)))
		translate_stop(t, -EINTR);
	run->exit_reason = is_write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR;
	memset(&run->msr, 0, sizeof(run->msr));
	run->msr.reason = reason;
	run->msr.index = index;
	run->msr.data = value;
	t->result = 0;
	t->wait.kind = is_write ? WAIT_WRMSR : WAIT_RDMSR;
	t->wait.rip = t->env->rip;
	if (!translate_yield(t))
		translate_leave(t);
	translate_complete(t);
	t->wait.kind = WAIT_NO_MORE;
	unicorn.leave_code(t->cpu);
}

/* The whole instruction, which is decoded in t->wait.insn; doesn't return. */
void translate_do_msr(struct kvmpy_translate *t, bool is_write)
{
	uint64_t *regs = t->env->regs, value = 0;
	uint32_t index = regs[1], reason = is_write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR;

	if (is_write)
		value = (uint32_t)regs[0] | regs[2] << 32;
	if (kvmpy_is_claimed(t->vcpu, KVMPY_MSR, index)) {
		if (!kvmpy_try_rule(t->vcpu, reason, KVMPY_MSR, index, (uint8_t *)&value, 8, is_write))
			make_exit(t, index, is_write, value, KVM_MSR_EXIT_REASON_FILTER);
	} else if (!known(t, index)) {
		make_exit(t, index, is_write, value, KVM_MSR_EXIT_REASON_UNKNOWN);
	} else if (is_write ? !translate_write_msr(t, index, value, false) : !translate_read_msr(t, index, &value)) {
		make_exit(t, index, is_write, value, KVM_MSR_EXIT_REASON_INVAL);
	}
	if (!is_write) {
		regs[0] = (uint32_t)value;
		regs[2] = value >> 32;
	}
	translate_skip(t, t->wait.insn.length);
	unicorn.leave_code(t->cpu);
}
