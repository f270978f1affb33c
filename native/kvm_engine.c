// SPDX-License-Identifier: MIT
/* The kvm engine's enter(): the ioctl itself. */
#include <errno.h>
#include <sys/ioctl.h>

#include "kvm_run.h"
#include "vcpu.h"

/*
 * KVM_RUN for a vCPU that is single-stepped. KVM_SET_GUEST_DEBUG notes where the step begins, and registers that
 * KVM_RUN finds in *run and that begin elsewhere drop the step without a word. So they go before it, one by one.
 */
static int enter_stepping(struct kvmpy_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint64_t dirty = run->kvm_dirty_regs;

	if (dirty & KVM_SYNC_X86_REGS && ioctl(vcpu->fd, KVM_SET_REGS, &run->s.regs.regs))
		return -errno;
	if (dirty & KVM_SYNC_X86_SREGS && ioctl(vcpu->fd, KVM_SET_SREGS, &run->s.regs.sregs))
		return -errno;
	run->kvm_dirty_regs &= ~(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS);
	if (dirty && ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, vcpu->engine))
		return -errno;
	return kvmpy_kvm_run(vcpu->fd);
}

int kvmpy_kvm_enter(struct kvmpy_vcpu *vcpu)
{
	return likely(!vcpu->engine) ? kvmpy_kvm_run(vcpu->fd) : enter_stepping(vcpu);
}

/* Single steps as in *debug, which must stay and have nothing to inject; NULL: no single steps. */
void kvmpy_kvm_step(struct kvmpy_vcpu *vcpu, struct kvm_guest_debug *debug)
{
	vcpu->engine = debug;
}
