/* SPDX-License-Identifier: MIT */
/*
 * The kernel's KVM interface as kvmpy sees it: linux/kvm.h, plus the structures that headers older than Linux 6.10
 * lack (Debian 12 has 6.1, Ubuntu 24.04 has 6.8), plus the few system calls Python makes through this module.
 */
#ifndef KVMPY_ABI_H
#define KVMPY_ABI_H

#include <stddef.h>
#include <stdint.h>
#include <linux/kvm.h>

#ifndef KVM_SET_USER_MEMORY_REGION2	/* Linux 6.8 */
struct kvm_userspace_memory_region2 {
	__u32 slot, flags;
	__u64 guest_phys_addr, memory_size;	/* bytes */
	__u64 userspace_addr;
	__u64 guest_memfd_offset;
	__u32 guest_memfd, pad1;
	__u64 pad2[14];
};
#endif
_Static_assert(sizeof(struct kvm_userspace_memory_region2) == 160, "struct kvm_userspace_memory_region2");
_Static_assert(offsetof(struct kvm_userspace_memory_region2, guest_memfd) == 40, "guest_memfd");

#ifndef KVM_SET_MEMORY_ATTRIBUTES	/* Linux 6.8 */
struct kvm_memory_attributes {
	__u64 address, size;	/* GPA, bytes */
	__u64 attributes;
	__u64 flags;
};
#endif
_Static_assert(sizeof(struct kvm_memory_attributes) == 32, "struct kvm_memory_attributes");
_Static_assert(offsetof(struct kvm_memory_attributes, attributes) == 16, "attributes");

#ifndef KVM_CREATE_GUEST_MEMFD		/* Linux 6.8 */
struct kvm_create_guest_memfd {
	__u64 size;		/* bytes */
	__u64 flags;
	__u64 reserved[6];
};
#endif
_Static_assert(sizeof(struct kvm_create_guest_memfd) == 64, "struct kvm_create_guest_memfd");

#ifndef KVM_PRE_FAULT_MEMORY		/* Linux 6.11 */
struct kvm_pre_fault_memory {
	__u64 gpa, size;	/* bytes */
	__u64 flags;
	__u64 padding[5];
};
#endif
_Static_assert(sizeof(struct kvm_pre_fault_memory) == 64, "struct kvm_pre_fault_memory");

/* Members of kvm_run's union that older headers lack: the same bytes under a name of ours. */
struct kvmpy_memory_fault {		/* KVM_EXIT_MEMORY_FAULT, Linux 6.8 */
	__u64 flags;
	__u64 gpa, size;	/* bytes */
};
#ifdef KVM_EXIT_MEMORY_FAULT
_Static_assert(sizeof(struct kvmpy_memory_fault) == sizeof(((struct kvm_run *)0)->memory_fault), "memory_fault");
_Static_assert(offsetof(struct kvm_run, memory_fault) == offsetof(struct kvm_run, hw), "memory_fault");
#endif

/* ioctl(2): a value >= 0, or -errno. Taken up again after a signal, except KVM_RUN, whose EINTR has a meaning. */
int kvmpy_ioctl(int fd, unsigned long request, void *argument);
int kvmpy_ioctl_value(int fd, unsigned long request, unsigned long argument);

/* mmap(2) shared, readable and writable: the address, or NULL with *error set. */
void *kvmpy_map(int fd, size_t length, long offset, int *error);
int kvmpy_unmap(void *address, size_t length);

/*
 * Take up to most dirty pages out of one vCPU's ring of (a power of two) entries, from *next on; their entries are
 * marked as harvested, so that KVM_RESET_DIRTY_RINGS write-protects the pages again.
 */
uint32_t kvmpy_dirty_ring_take(struct kvm_dirty_gfn *ring, uint32_t entries, uint32_t *next,
			       struct kvm_dirty_gfn *into, uint32_t most);

/* Take the oldest write out of the coalesced ring of one page; 0: it is empty. Only one thread may take. */
int kvmpy_coalesced_take(struct kvm_coalesced_mmio_ring *ring, uint32_t page_size, struct kvm_coalesced_mmio *into);

#endif
