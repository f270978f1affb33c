// SPDX-License-Identifier: MIT
#include <errno.h>

#include "abi.h"
#include "dirty.h"

#define AT_ONCE 256

static void note(struct kvmpy_dirty *dirty, const struct kvm_dirty_gfn *entry)
{
	struct kvmpy_dirty_slot *slot;
	uint32_t number = entry->slot & 0xffff;	/* above that: the address space, which only SMM has */

	if (number >= dirty->slots)
		return;
	slot = &dirty->slot[number];
	if (entry->offset < slot->pages)
		__atomic_fetch_or(&slot->bits[entry->offset / 64], 1ULL << (entry->offset % 64), __ATOMIC_RELAXED);
}

/* Empties the ring and gives its entries back to the kernel. 0, or -errno. */
int kvmpy_dirty_collect(struct kvmpy_dirty *dirty)
{
	struct kvm_dirty_gfn taken[AT_ONCE];
	uint32_t count;
	int result;

	do {
		count = kvmpy_dirty_ring_take(dirty->ring, dirty->entries, &dirty->next, taken, AT_ONCE);
		for (uint32_t i = 0; i < count; i++)
			note(dirty, &taken[i]);
		dirty->collected += count;
	} while (count == AT_ONCE);
	result = kvmpy_ioctl_value(dirty->vm_fd, KVM_RESET_DIRTY_RINGS, 0);
	return result < 0 ? result : 0;
}
