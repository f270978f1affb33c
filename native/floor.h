/* SPDX-License-Identifier: MIT */
/*
 * The floor: the least a program must do to take the same exits of the same guest. One VM, one vCPU, ioctls, and no
 * run loop, no bus, no Python. What kvmpy measures is compared with it, in the same process and in turn.
 */
#ifndef KVMPY_FLOOR_H
#define KVMPY_FLOOR_H

#include "collect.h"

#define KVMPY_FLOOR_IRQCHIP 1	/* interrupt controllers in the kernel */

struct kvmpy_floor_setup {
	const void *image;		/* guest_images/lab */
	uint64_t length;
	const char *kind;		/* a name in the image's table */
	uint64_t r14, r15;		/* what the kind works on */
	uint64_t chunk;			/* samples between two looks at the deadline */
	uint32_t flags;
	uint32_t filtered_msr;		/* its accesses come to user space; 0: none */
};

struct kvmpy_floor {
	struct kvmpy_collector *collector;
	const char *failed;		/* the step that did, with errno */
	uint32_t exit_reason;		/* of an exit that wasn't expected */
	int kvm, vm, vcpu;
	struct kvm_run *run;
	uint64_t run_size;
	uint8_t *memory;
};

/* NULL: no memory. Otherwise look at `failed`; close it in any case. */
struct kvmpy_floor *kvmpy_floor_open(const struct kvmpy_floor_setup *setup);
void kvmpy_floor_close(struct kvmpy_floor *floor);

/* Measures until the host's TSC passes `deadline` or `most` chunks are recorded: 0, or -errno (-EPROTO: other exit). */
int kvmpy_floor_run(struct kvmpy_floor *floor, uint64_t deadline, uint64_t most);

/* `count` entries with immediate_exit set. */
int kvmpy_floor_immediate(struct kvmpy_floor *floor, uint64_t count);

/* `count` times KVM_GET_REGS, or with `set` KVM_SET_REGS. */
int kvmpy_floor_regs(struct kvmpy_floor *floor, uint64_t count, int set);

#endif
