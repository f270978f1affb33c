// SPDX-License-Identifier: MIT
/* The system calls behind kvmpy/kvm, and the rings that KVM shares with user space. */
#include <errno.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "abi.h"

int kvmpy_ioctl_value(int fd, unsigned long request, unsigned long argument)
{
	int result;

	do {
		result = ioctl(fd, request, argument);
	} while (result < 0 && errno == EINTR && request != KVM_RUN);
	return result < 0 ? -errno : result;
}

int kvmpy_ioctl(int fd, unsigned long request, void *argument)
{
	return kvmpy_ioctl_value(fd, request, (unsigned long)argument);
}

void *kvmpy_map(int fd, size_t length, long offset, int *error)
{
	void *address = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);

	if (address != MAP_FAILED)
		return address;
	*error = errno;
	return NULL;
}

int kvmpy_unmap(void *address, size_t length)
{
	return munmap(address, length) ? -errno : 0;
}

uint32_t kvmpy_dirty_ring_take(struct kvm_dirty_gfn *ring, uint32_t entries, uint32_t *next,
			       struct kvm_dirty_gfn *into, uint32_t most)
{
	uint32_t taken = 0;

	while (taken < most) {
		struct kvm_dirty_gfn *entry = &ring[*next & (entries - 1)];

		/* The kernel writes slot and offset first, the flag last. */
		if (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		into[taken++] = *entry;
		__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		++*next;
	}
	return taken;
}

int kvmpy_coalesced_take(struct kvm_coalesced_mmio_ring *ring, uint32_t page_size, struct kvm_coalesced_mmio *into)
{
	const uint32_t entries = (page_size - sizeof(*ring)) / sizeof(ring->coalesced_mmio[0]);
	const uint32_t first = ring->first;

	/* first is ours, last the kernel's; a damaged index must not lead outside the page. */
	if (first >= entries || first == __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE))
		return 0;
	*into = ring->coalesced_mmio[first];
	__atomic_store_n(&ring->first, (first + 1) % entries, __ATOMIC_RELEASE);
	return 1;
}
