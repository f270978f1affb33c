/* SPDX-License-Identifier: MIT */
/*
 * KVM_RUN, and what makes coming out of it cheap.
 *
 * A CPU predicts where a return goes from a stack of its own that calls fill. When KVM_RUN is done that stack holds what
 * the kernel, and a hypervisor below it, left there. A return from a function that was called before the guest was
 * entered is then predicted into the kernel, and one such return makes the next exit about 1,500 cycles dearer on a host
 * that is a guest itself (8 %, on an EPYC 9004 under KVM: docs/fast-path.md). So harmless places are called first, more
 * than there are returns on the way to whoever handles the exit.
 */
#ifndef KVMPY_KVM_RUN_H
#define KVMPY_KVM_RUN_H

#include <errno.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <linux/kvm.h>

/* Where a shadow stack is in use each call would have to be undone there (SDM vol. 1, 17.2): it is left alone. */
static __always_inline void refill_return_stack(void)
{
	unsigned long shadow_stack = 0;

	__asm__ volatile("rdsspq %0" : "+r"(shadow_stack));
	if (shadow_stack)
		return;
	__asm__ volatile("lea -128(%%rsp), %%rsp\n\t"	/* past the red zone */
			 ".rept 16\n\t"
			 "call 1f\n\t"
			 "int3\n"
			 "1:\n\t"
			 ".endr\n\t"
			 "lea 128 + 16 * 8(%%rsp), %%rsp" : : : "memory");
}

static __always_inline int call_kvm_run(int fd)
{
#ifdef __SANITIZE_THREAD__	/* which delivers signals where it sees a call */
	return ioctl(fd, KVM_RUN, 0) ? -errno : 0;
#else
	long result = SYS_ioctl;	/* without the library: its return is one of those */

	__asm__ volatile("syscall" : "+a"(result) : "D"((long)fd), "S"(KVM_RUN), "d"(0L) : "rcx", "r11", "memory");
	return result;
#endif
}

/* 0 or -errno. */
static __always_inline int kvmpy_kvm_run(int fd)
{
	int error = call_kvm_run(fd);

	refill_return_stack();
	return error;
}

#endif
