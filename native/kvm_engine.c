// SPDX-License-Identifier: MIT
/* The kvm engine's enter(): the ioctl itself. */
#include <errno.h>
#include <sys/ioctl.h>

#include "vcpu.h"

int kvmpy_kvm_enter(struct kvmpy_vcpu *vcpu)
{
	return likely(!ioctl(vcpu->fd, KVM_RUN, 0)) ? 0 : -errno;
}
