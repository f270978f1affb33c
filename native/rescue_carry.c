// SPDX-License-Identifier: MIT
/*
 * A vCPU's state from KVM to the helper and back. Back goes what the instruction changed, so that nothing is lost of
 * what KVM has and the translator hasn't: wider vector registers, bits of control registers, hidden parts of segments.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "rescue.h"
#include "translate_api.h"

#define CR4_UNKNOWN 0xffffffffff800000ull	/* from CET on; SMAP and PKE the helper doesn't take */
#define CR4_LA57 (1ull << 12)
#define EFER_KNOWN 0x5d01ull	/* SCE, LME, LMA, NXE; SVME and FFXSR change nothing in ring 0 */
#define EFER_HELPER 0xd01ull
#define RFLAGS_TF (1ull << 8)
#define TSC 0x10
#define TSC_AUX 0xc0000103
#define KERNEL_GS_BASE 0xc0000102

/* The legacy region of an XSAVE area, and its header: SDM vol. 1, 10.5.1 and 13.4. */
enum { FCW = 0, FSW = 2, FTW = 4, FOP = 6, FIP = 8, FDP = 16, MXCSR = 24, ST = 32, XMM = 160, XSTATE_BV = 512 };
#define XSTATE_X87 1
#define XSTATE_SSE 2

static int call(struct kvmpy_rescue *r, unsigned long request, void *argument)
{
	int result = ioctl(r->vcpu->fd, request, argument);

	if (result >= 0)
		return result;
	r->error = errno;
	r->request = request;
	return -1;
}

/* A register set into *run, where KVM hasn't put it already. From now on it does. */
static int fetch(struct kvmpy_rescue *r, uint32_t set, unsigned long request, void *into)
{
	struct kvm_run *run = r->vcpu->run;

	if (run->kvm_dirty_regs & set || (run->kvm_valid_regs & set && !r->accessed))
		return 0;
	if (call(r, request, into) < 0)
		return -1;
	run->kvm_valid_regs |= set & r->sync;
	return 0;
}

static int put(struct kvmpy_rescue *r, uint32_t set, unsigned long request, void *from)
{
	if (!(r->sync & set))
		return call(r, request, from);
	r->vcpu->run->kvm_dirty_regs |= set;
	return 0;
}

static int fetch_all(struct kvmpy_rescue *r)
{
	struct kvm_sync_regs *here = &r->vcpu->run->s.regs;

	return fetch(r, KVM_SYNC_X86_REGS, KVM_GET_REGS, &here->regs) < 0 ||
	       fetch(r, KVM_SYNC_X86_SREGS, KVM_GET_SREGS, &here->sregs) < 0 ||
	       fetch(r, KVM_SYNC_X86_EVENTS, KVM_GET_VCPU_EVENTS, &here->events) < 0;
}

static void fpu_from_xsave(const struct kvmpy_rescue *r, struct kvm_fpu *fpu)
{
	const uint8_t *area = (const uint8_t *)r->xsave;
	uint64_t components;

	memset(fpu, 0, sizeof(*fpu));
	memcpy(&components, area + XSTATE_BV, 8);
	memcpy(&fpu->mxcsr, area + MXCSR, 4);
	fpu->fcw = 0x37f;
	if (components & XSTATE_X87) {
		memcpy(&fpu->fcw, area + FCW, 2);
		memcpy(&fpu->fsw, area + FSW, 2);
		fpu->ftwx = area[FTW];
		memcpy(&fpu->last_opcode, area + FOP, 2);
		memcpy(&fpu->last_ip, area + FIP, 8);
		memcpy(&fpu->last_dp, area + FDP, 8);
		memcpy(fpu->fpr, area + ST, sizeof(fpu->fpr));
	}
	if (components & XSTATE_SSE)
		memcpy(fpu->xmm, area + XMM, sizeof(fpu->xmm));
}

static void fpu_to_xsave(struct kvmpy_rescue *r, const struct kvm_fpu *fpu)
{
	uint8_t *area = (uint8_t *)r->xsave;

	memcpy(area + FCW, &fpu->fcw, 2);
	memcpy(area + FSW, &fpu->fsw, 2);
	area[FTW] = fpu->ftwx;
	memcpy(area + FOP, &fpu->last_opcode, 2);
	memcpy(area + FIP, &fpu->last_ip, 8);
	memcpy(area + FDP, &fpu->last_dp, 8);
	memcpy(area + MXCSR, &fpu->mxcsr, 4);
	memcpy(area + ST, fpu->fpr, sizeof(fpu->fpr));
	memcpy(area + XMM, fpu->xmm, sizeof(fpu->xmm));
	area[XSTATE_BV] |= XSTATE_X87 | XSTATE_SSE;
}

static int carry_fpu(struct kvmpy_rescue *r)
{
	struct kvm_fpu fpu;
	unsigned long request = r->xsave_size > 4096 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE;

	if (call(r, request, r->xsave) < 0)
		return -1;
	fpu_from_xsave(r, &fpu);
	kvmpy_translate_set_fpu(r->helper, &fpu);
	kvmpy_translate_get_fpu(r->helper, &r->fpu);
	return 0;
}

static int carry_msrs(struct kvmpy_rescue *r)
{
	static const uint32_t wanted[] = {
		TSC, KERNEL_GS_BASE, 0x174, 0x175, 0x176, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, TSC_AUX,
	};
	struct { struct kvm_msrs head; struct kvm_msr_entry entries[sizeof(wanted) / sizeof(*wanted)]; } msrs = {
		.head.nmsrs = sizeof(wanted) / sizeof(*wanted),
	};
	int count;

	for (uint32_t i = 0; i < msrs.head.nmsrs; i++)
		msrs.entries[i].index = wanted[i];
	count = call(r, KVM_GET_MSRS, &msrs);	/* as far as the first that there isn't */
	if (count < 0)
		return -1;
	for (int i = 0; i < count; i++) {
		kvmpy_translate_set_msr(r->helper, msrs.entries[i].index, msrs.entries[i].data);
		if (msrs.entries[i].index == KERNEL_GS_BASE)
			r->gs_base = msrs.entries[i].data;
	}
	return 0;
}

/* The translator has no more than x87 and SSE. */
static int carry_xcr0(struct kvmpy_rescue *r, const uint8_t *code, uint32_t size)
{
	const struct kvm_regs *regs = &r->vcpu->run->s.regs.regs;
	struct kvm_xcrs xcrs;
	bool sets = size >= 3 && !memcmp(code, "\x0f\x01\xd1", 3);

	if (call(r, KVM_GET_XCRS, &xcrs) < 0)
		return -1;
	for (uint32_t i = 0; i < xcrs.nr_xcrs; i++)
		if (!xcrs.xcrs[i].xcr && kvmpy_translate_set_xcr0(r->helper, xcrs.xcrs[i].value))
			return -2;
	return sets && (regs->rax & 0xfffffffc || (uint32_t)regs->rdx) ? -2 : 0;
}

static int carry_debug(struct kvmpy_rescue *r)
{
	if (call(r, KVM_GET_DEBUGREGS, &r->debug) < 0)
		return -1;
	r->debug.dr7 = 0x400;	/* breakpoints of its own would keep the helper from the instruction */
	kvmpy_translate_set_debugregs(r->helper, &r->debug);
	return 0;
}

static bool has_state(const struct kvm_sregs *sregs)
{
	return !(sregs->cr4 & (CR4_UNKNOWN | CR4_LA57)) && !(sregs->efer & ~EFER_KNOWN);
}

static int carry_registers(struct kvmpy_rescue *r)
{
	const struct kvm_sync_regs *here = &r->vcpu->run->s.regs;
	struct kvm_vcpu_events events = { .flags = KVM_VCPUEVENT_VALID_SHADOW };
	struct kvm_sregs sregs = here->sregs;

	if (!has_state(&sregs))
		return -2;
	sregs.efer &= EFER_HELPER;
	memset(sregs.interrupt_bitmap, 0, sizeof(sregs.interrupt_bitmap));
	if (kvmpy_translate_set_sregs(r->helper, &sregs))
		return -2;
	kvmpy_translate_set_regs(r->helper, &here->regs);
	events.interrupt.shadow = here->events.interrupt.shadow;
	events.nmi.masked = here->events.nmi.masked;
	kvmpy_translate_set_events(r->helper, &events);
	kvmpy_translate_get_sregs(r->helper, &r->sregs);
	if (r->sregs.cr4 != sregs.cr4)
		return -2;
	kvmpy_translate_get_regs(r->helper, &r->regs);
	kvmpy_translate_get_events(r->helper, &r->events);
	r->bits = sregs.efer & (1 << 10) && sregs.cs.l ? 64 : sregs.cs.db ? 32 : 16;
	return 0;
}

static int refuse(struct kvmpy_rescue *r, int result)
{
	return rescue_fail(r, result == -2 ? KVMPY_RESCUE_STATE : KVMPY_RESCUE_ERROR);
}

/* Registers: what it takes to find the instruction. 1, or what the rescue ends with. */
int rescue_carry_over(struct kvmpy_rescue *r)
{
	int result = fetch_all(r) ? -1 : carry_registers(r);

	return result ? refuse(r, result) : 1;
}

/* The rest, as far as the instruction is about it. */
int rescue_carry_more(struct kvmpy_rescue *r, const uint8_t *code, uint32_t size, uint32_t carry)
{
	int result = 0;

	if (r->regs.rflags & RFLAGS_TF)
		carry |= KVMPY_CARRY_DEBUG;
	r->carried = carry;
	if (carry & KVMPY_CARRY_FPU)
		result = carry_fpu(r);
	if (!result && carry & KVMPY_CARRY_XCR0)
		result = carry_xcr0(r, code, size);
	if (!result && carry & KVMPY_CARRY_MSRS)
		result = carry_msrs(r);
	if (!result && carry & KVMPY_CARRY_DEBUG)
		result = carry_debug(r);
	return result ? refuse(r, result) : 1;
}

static int fpu_back(struct kvmpy_rescue *r, bool *changed)
{
	struct kvm_fpu fpu;

	kvmpy_translate_get_fpu(r->helper, &fpu);
	if (!memcmp(&fpu, &r->fpu, sizeof(fpu)))
		return 0;
	*changed = true;
	fpu_to_xsave(r, &fpu);
	return call(r, KVM_SET_XSAVE, r->xsave);
}

static void segment_back(struct kvm_segment *to, const struct kvm_segment *before, const struct kvm_segment *after)
{
	if (memcmp(before, after, sizeof(*before)))
		*to = *after;
}

static int sregs_back(struct kvmpy_rescue *r, bool *changed)
{
	struct kvm_sregs after, *to = &r->vcpu->run->s.regs.sregs;
	const struct kvm_sregs *before = &r->sregs;

	kvmpy_translate_get_sregs(r->helper, &after);
	if (!memcmp(&after, before, sizeof(after)))
		return 0;
	*changed = true;
	segment_back(&to->cs, &before->cs, &after.cs);
	segment_back(&to->ds, &before->ds, &after.ds);
	segment_back(&to->es, &before->es, &after.es);
	segment_back(&to->fs, &before->fs, &after.fs);
	segment_back(&to->gs, &before->gs, &after.gs);
	segment_back(&to->ss, &before->ss, &after.ss);
	segment_back(&to->tr, &before->tr, &after.tr);
	segment_back(&to->ldt, &before->ldt, &after.ldt);
	to->cr0 ^= before->cr0 ^ after.cr0;
	to->cr2 ^= before->cr2 ^ after.cr2;
	to->cr3 ^= before->cr3 ^ after.cr3;
	to->cr4 ^= before->cr4 ^ after.cr4;
	to->efer ^= before->efer ^ after.efer;
	return put(r, KVM_SYNC_X86_SREGS, KVM_SET_SREGS, to);
}

/* KVM before Linux 5.14 has a #UD pending that it gave the guest instead of an exit; setting registers drops it. */
static int events_back(struct kvmpy_rescue *r, bool *changed)
{
	struct kvm_vcpu_events after, *to = &r->vcpu->run->s.regs.events;
	bool shadow, masked;

	kvmpy_translate_get_events(r->helper, &after);
	shadow = !after.interrupt.shadow != !r->events.interrupt.shadow;
	masked = after.nmi.masked != r->events.nmi.masked;
	*changed |= shadow | masked;
	if (!shadow && !masked && !to->exception.pending && !to->exception.injected)
		return 0;
	to->flags = KVM_VCPUEVENT_VALID_SHADOW;	/* an NMI may have come since */
	to->interrupt.shadow = shadow ? after.interrupt.shadow : to->interrupt.shadow;
	to->nmi.masked = after.nmi.masked;
	memset(&to->exception, 0, sizeof(to->exception));
	return put(r, KVM_SYNC_X86_EVENTS, KVM_SET_VCPU_EVENTS, to);
}

static int regs_back(struct kvmpy_rescue *r, bool *changed)
{
	struct kvm_regs *to = &r->vcpu->run->s.regs.regs;

	kvmpy_translate_get_regs(r->helper, to);
	*changed |= !!memcmp(to, &r->regs, sizeof(*to));
	return put(r, KVM_SYNC_X86_REGS, KVM_SET_REGS, to);
}

static int debug_back(struct kvmpy_rescue *r)
{
	struct kvm_debugregs after, now;

	kvmpy_translate_get_debugregs(r->helper, &after);
	if (after.dr6 == r->debug.dr6)
		return 0;
	if (call(r, KVM_GET_DEBUGREGS, &now) < 0)
		return -1;
	now.dr6 = after.dr6;
	return call(r, KVM_SET_DEBUGREGS, &now);
}

static int set_msr(struct kvmpy_rescue *r, uint32_t index, uint64_t value)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msrs = {
		.head.nmsrs = 1, .entry = { .index = index, .data = value },
	};

	return call(r, KVM_SET_MSRS, &msrs);
}

static int msrs_back(struct kvmpy_rescue *r)
{
	uint64_t value = r->gs_base;

	kvmpy_translate_get_msr(r->helper, KERNEL_GS_BASE, &value);
	return value == r->gs_base ? 0 : set_msr(r, KERNEL_GS_BASE, value);
}

static int xcr0_back(struct kvmpy_rescue *r)
{
	struct kvm_xcrs xcrs;
	uint64_t value = kvmpy_translate_get_xcr0(r->helper);

	if (call(r, KVM_GET_XCRS, &xcrs) < 0)
		return -1;
	for (uint32_t i = 0; i < xcrs.nr_xcrs; i++) {
		if (xcrs.xcrs[i].xcr || xcrs.xcrs[i].value == value)
			continue;
		xcrs.xcrs[i].value = value;
		return call(r, KVM_SET_XCRS, &xcrs);
	}
	return 0;
}

/* 1; or 0, and the exit says that nothing changed, or what went wrong. */
int rescue_carry_back(struct kvmpy_rescue *r)
{
	bool changed = r->accessed;
	int result = 0;

	/* What others may have queued for the vCPU while they served its accesses. */
	if (r->accessed)
		result = fetch_all(r) ? -1 : 0;
	if (!result && r->carried & KVMPY_CARRY_FPU)
		result = fpu_back(r, &changed);
	if (result >= 0 && r->carried & KVMPY_CARRY_XCR0)
		result = xcr0_back(r);
	if (result >= 0 && r->carried & KVMPY_CARRY_MSRS)
		result = msrs_back(r);
	if (result >= 0 && r->carried & KVMPY_CARRY_DEBUG)
		result = debug_back(r);
	if (result >= 0)
		result = regs_back(r, &changed);
	if (result >= 0)
		result = sregs_back(r, &changed);
	if (result >= 0)
		result = events_back(r, &changed);
	if (result < 0)
		return refuse(r, -1);
	return changed ? 1 : rescue_fail(r, KVMPY_RESCUE_STUCK);
}
