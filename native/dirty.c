// SPDX-License-Identifier: MIT
#include <errno.h>

#include "abi.h"
#include "dirty.h"

#define AT_ONCE 256

void kvmpy_dirty_note(struct kvmpy_dirty *dirty, uint32_t number, uint64_t page)
{
	struct kvmpy_dirty_slot *slot;

	if (number >= dirty->slots)
		return;
	slot = &dirty->slot[number];
	if (page < slot->pages)
		__atomic_fetch_or(&slot->bits[page / 64], 1ULL << (page % 64), __ATOMIC_RELAXED);
}

/* Empties the ring and gives its entries back to the kernel. 0, or -errno. */
int kvmpy_dirty_collect(struct kvmpy_dirty *dirty)
{
	struct kvm_dirty_gfn taken[AT_ONCE];
	uint32_t count;
	int result;

	if (!dirty->ring)
		return 0;
	do {
		count = kvmpy_dirty_ring_take(dirty->ring, dirty->entries, &dirty->next, taken, AT_ONCE);
		for (uint32_t i = 0; i < count; i++)
			/* Above the number: the address space, of which only SMM has another. */
			kvmpy_dirty_note(dirty, taken[i].slot & 0xffff, taken[i].offset);
		dirty->collected += count;
	} while (count == AT_ONCE);
	result = kvmpy_ioctl_value(dirty->vm_fd, KVM_RESET_DIRTY_RINGS, 0);
	return result < 0 ? result : 0;
}
