// SPDX-License-Identifier: MIT
/* General, segment and control registers between Unicorn's state and KVM's structures. */
#include <errno.h>
#include <string.h>

#include "translate.h"
#include "translate_api.h"

#define EFER_LME (1ull << 8)
#define EFER_LMA (1ull << 10)
#define CR0_PE 1ull
#define CR0_ET (1ull << 4)
#define CR0_PG (1ull << 31)
#define CR4_PAE (1ull << 5)

/* KVM's order of registers and Unicorn's (which is the instructions'). */
static const uint8_t order[16] = { 0, 3, 1, 2, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15 };

static void get_regs(const struct kvmpy_translate *t, struct kvm_regs *regs)
{
	__u64 *to = &regs->rax;

	for (int i = 0; i < 16; i++)
		to[i] = t->env->regs[order[i]];
	regs->rip = t->env->rip;
	regs->rflags = unicorn.read_flags(t->env);
}

static void set_regs(struct kvmpy_translate *t, const struct kvm_regs *regs)
{
	const __u64 *from = &regs->rax;

	for (int i = 0; i < 16; i++)
		t->env->regs[order[i]] = from[i];
	t->env->rip = regs->rip;
	unicorn.write_flags(t->env, (regs->rflags & 0x3f7fd5) | 2, -1);
	unicorn.update_mode(t->env);
	t->exception = -1;
}

static void get_segment(const struct unicorn_segment *from, struct kvm_segment *to)
{
	*to = (struct kvm_segment) {
		.base = from->base, .limit = from->limit, .selector = from->selector,
		.type = from->flags >> 8 & 15, .s = from->flags >> 12 & 1, .dpl = from->flags >> 13 & 3,
		.present = from->flags >> 15 & 1, .avl = from->flags >> 20 & 1, .l = from->flags >> 21 & 1,
		.db = from->flags >> 22 & 1, .g = from->flags >> 23 & 1, .unusable = !(from->flags >> 15 & 1),
	};
}

static void set_segment(struct unicorn_segment *to, const struct kvm_segment *from)
{
	*to = (struct unicorn_segment) { .selector = from->selector, .base = from->base, .limit = from->limit };
	if (from->unusable)
		return;
	to->flags = (from->type & 15u) << 8 | (from->s & 1u) << 12 | (from->dpl & 3u) << 13 | (from->present & 1u) << 15 |
		    (from->avl & 1u) << 20 | (from->l & 1u) << 21 | (from->db & 1u) << 22 | (from->g & 1u) << 23;
}

/* KVM has a task that is loaded busy. */
static void get_task(const struct unicorn_segment *from, struct kvm_segment *to)
{
	get_segment(from, to);
	to->type |= 2;
	to->unusable = from->flags == NO_TASK;
}

static void set_task(struct unicorn_segment *to, const struct kvm_segment *from)
{
	set_segment(to, from);
	to->flags &= ~0x200u;
	if (!(to->flags & 0x8000) || (to->flags >> 8 & 7) != 1 || to->flags & 0x1000)
		*to = (struct unicorn_segment) { .selector = from->selector, .flags = NO_TASK };
}

static void get_sregs(const struct kvmpy_translate *t, struct kvm_sregs *sregs)
{
	const struct unicorn_cpu *env = t->env;
	struct kvm_segment *to[] = { &sregs->es, &sregs->cs, &sregs->ss, &sregs->ds, &sregs->fs, &sregs->gs };

	memset(sregs, 0, sizeof(*sregs));
	for (int i = 0; i < 6; i++)
		get_segment(&env->segments[i], to[i]);
	get_segment(&env->ldt, &sregs->ldt);
	get_task(&env->tr, &sregs->tr);
	sregs->gdt = (struct kvm_dtable) { .base = env->gdt.base, .limit = env->gdt.limit };
	sregs->idt = (struct kvm_dtable) { .base = env->idt.base, .limit = env->idt.limit };
	sregs->cr0 = env->cr[0];
	sregs->cr2 = env->cr[2];
	sregs->cr3 = env->cr[3];
	sregs->cr4 = env->cr[4];
	sregs->cr8 = env->tpr;
	sregs->efer = env->efer;
	sregs->apic_base = t->apic_base;
	if (t->interrupt >= 0)
		sregs->interrupt_bitmap[t->interrupt / 64] |= 1ull << (t->interrupt % 64);
}

/* What KVM refuses, too (is_valid_sregs()). */
static bool valid(const struct kvm_sregs *sregs)
{
	if (sregs->cr0 & CR0_PG && !(sregs->cr0 & CR0_PE))
		return false;
	if (sregs->cr0 >> 32 || sregs->cr8 > 15 || sregs->efer & ~0xd01ull)
		return false;
	if (sregs->efer & EFER_LME && sregs->cr0 & CR0_PG)
		return sregs->cr4 & CR4_PAE && sregs->efer & EFER_LMA;
	return !(sregs->efer & EFER_LMA) && !sregs->cs.l;
}

static void take_interrupt(struct kvmpy_translate *t, const struct kvm_sregs *sregs)
{
	t->interrupt = -1;
	for (int i = 0; i < 256; i++)
		if (sregs->interrupt_bitmap[i / 64] >> (i % 64) & 1)
			t->interrupt = i;
	if (t->interrupt >= 0)
		translate_attend(t, ATTENTION_EVENT);
}

static int set_sregs(struct kvmpy_translate *t, const struct kvm_sregs *sregs)
{
	struct unicorn_cpu *env = t->env;
	const struct kvm_segment *from[] = { &sregs->es, &sregs->cs, &sregs->ss, &sregs->ds, &sregs->fs, &sregs->gs };

	if (!valid(sregs))
		return -EINVAL;
	for (int i = 0; i < 6; i++)
		set_segment(&env->segments[i], from[i]);
	set_segment(&env->ldt, &sregs->ldt);
	set_task(&env->tr, &sregs->tr);
	env->gdt.base = sregs->gdt.base;
	env->gdt.limit = sregs->gdt.limit;
	env->idt.base = sregs->idt.base;
	env->idt.limit = sregs->idt.limit;
	env->cr[0] = sregs->cr0 | CR0_ET;
	env->cr[2] = sregs->cr2;
	env->cr[3] = sregs->cr3;
	env->tpr = t->run->cr8 = sregs->cr8;
	env->efer = sregs->efer;
	t->apic_base = sregs->apic_base;
	unicorn.update_cr4(env, sregs->cr4);
	unicorn.update_mode(env);
	unicorn.flush_tlb(t->cpu);
	take_interrupt(t, sregs);
	return 0;
}

/* *run's register sets that somebody changed. KVM, too, does nothing about a set it can't take but fail the entry. */
void translate_load(struct kvmpy_translate *t, uint64_t dirty)
{
	const struct kvm_sync_regs *from = &t->run->s.regs;

	if (dirty & KVM_SYNC_X86_REGS)
		set_regs(t, &from->regs);
	if (dirty & KVM_SYNC_X86_SREGS)
		t->load_error = set_sregs(t, &from->sregs);
	if (dirty & KVM_SYNC_X86_EVENTS)
		translate_set_events(t, &from->events);
}

void translate_store(struct kvmpy_translate *t, uint64_t valid)
{
	struct kvm_sync_regs *to = &t->run->s.regs;

	if (valid & KVM_SYNC_X86_REGS)
		get_regs(t, &to->regs);
	if (valid & KVM_SYNC_X86_SREGS)
		get_sregs(t, &to->sregs);
	if (valid & KVM_SYNC_X86_EVENTS)
		translate_get_events(t, &to->events);
}

void kvmpy_translate_get_regs(struct kvmpy_vcpu *vcpu, struct kvm_regs *regs)
{
	get_regs(vcpu->engine, regs);
}

void kvmpy_translate_set_regs(struct kvmpy_vcpu *vcpu, const struct kvm_regs *regs)
{
	translate_park(vcpu->engine);
	set_regs(vcpu->engine, regs);
}

void kvmpy_translate_get_sregs(struct kvmpy_vcpu *vcpu, struct kvm_sregs *sregs)
{
	get_sregs(vcpu->engine, sregs);
}

int kvmpy_translate_set_sregs(struct kvmpy_vcpu *vcpu, const struct kvm_sregs *sregs)
{
	translate_park(vcpu->engine);
	return set_sregs(vcpu->engine, sregs);
}

static void reset_segments(struct unicorn_cpu *env)
{
	for (int i = 0; i < 6; i++)
		env->segments[i] = (struct unicorn_segment) { .limit = 0xffff, .flags = 0x9300 };
	env->segments[SEG_CS] = (struct unicorn_segment) {
		.selector = 0xf000, .base = 0xffff0000, .limit = 0xffff, .flags = 0x9b00,
	};
	env->ldt = (struct unicorn_segment) { .limit = 0xffff, .flags = 0x8200 };
	env->tr = (struct unicorn_segment) { .limit = 0xffff, .flags = 0x8900 };
	env->gdt = (struct unicorn_segment) { .limit = 0xffff };
	env->idt = (struct unicorn_segment) { .limit = 0xffff };
}

/* After RESET: SDM vol. 3, table 10-1. */
void translate_reset(struct kvmpy_translate *t)
{
	struct unicorn_cpu *env = t->env;

	memset(env->regs, 0, sizeof(env->regs));
	env->regs[2] = 0x600;
	env->rip = 0xfff0;
	reset_segments(env);
	memset(env->cr, 0, sizeof(env->cr));
	env->cr[0] = 0x60000010;
	env->efer = 0;
	env->xcr0 = 1;
	env->pat = 0x0007040600070406;
	env->fpu_control = 0x37f;
	env->mxcsr = 0x1f80;
	memset(env->fpu_empty, 1, sizeof(env->fpu_empty));
	env->mode2 = MODE2_OWN_TPR | 1;
	env->exception_in_flight = -1;
	unicorn.write_flags(env, 2, -1);
	unicorn.update_cr4(env, 0);
	unicorn.update_mode(env);
	unicorn.update_fpu(env);
	unicorn.update_mxcsr(env);
	unicorn.flush_tlb(t->cpu);
	t->apic_base = 0xfee00900;
	t->misc_enable = 1;
	t->exception = t->interrupt = -1;
}
