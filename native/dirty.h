/* SPDX-License-Identifier: MIT */
/*
 * A vCPU's ring of dirty pages, emptied into bitmaps that all vCPUs of a machine share. What rescues write is noted there,
 * too.
 */
#ifndef KVMPY_DIRTY_H
#define KVMPY_DIRTY_H

#include <stdint.h>
#include <linux/kvm.h>

/* The pages of one memory slot, a bit each. */
struct kvmpy_dirty_slot {
	uint64_t pages;
	uint64_t *bits;
};

struct kvmpy_dirty {
	struct kvm_dirty_gfn *ring;	/* NULL: the kernel keeps bitmaps of its own */
	uint32_t entries;
	uint32_t next;
	int vm_fd;
	uint32_t slots;
	struct kvmpy_dirty_slot *slot;	/* by number */
	uint64_t collected;		/* entries ever taken from the ring */
};

void kvmpy_dirty_note(struct kvmpy_dirty *dirty, uint32_t number, uint64_t page);
int kvmpy_dirty_collect(struct kvmpy_dirty *dirty);

#endif
