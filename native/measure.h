/* SPDX-License-Identifier: MIT */
/*
 * Measuring a vCPU: while a measurement is on, a wrapper stands in vcpu->enter and stamps both sides of the engine's
 * own. Without one the run loop knows nothing of it.
 */
#ifndef KVMPY_MEASURE_H
#define KVMPY_MEASURE_H

#include "collect.h"
#include "kvmpy_handler.h"
#include "vcpu.h"

/* What is done between two chunks, so that the next one meets what this one met. */
enum kvmpy_prepare {
	KVMPY_PREPARE_NOTHING,
	KVMPY_PREPARE_UNMAP,		/* give the memory back to the host */
	KVMPY_PREPARE_REMAP,		/* the same, and have the host touch it: only the guest's mapping is missing */
	KVMPY_PREPARE_DIRTY_LOG,	/* fetch and clear the dirty log of the slot */
};

enum kvmpy_inject { KVMPY_INJECT_NOTHING, KVMPY_INJECT_LINE, KVMPY_INJECT_EVENTFD };

struct kvmpy_measure {
	struct kvmpy_collector *collector;
	struct kvmpy_vcpu *vcpu;
	int (*enter)(struct kvmpy_vcpu *vcpu);	/* the engine's */
	uint64_t deadline;		/* host's TSC: the chunk that ends after it is the last */
	uint64_t most;			/* chunks */
	uint32_t prepare, inject;
	void *memory;			/* of KVMPY_PREPARE_*: start, bytes, and bytes from page to page */
	uint64_t length, stride;
	int vm_fd, slot;
	void *bitmap;
	int inject_fd;			/* the VM for a line, or an eventfd */
	uint32_t line;
	uint64_t injected;		/* in this chunk */
	int error;			/* errno of what failed in C; the run stops */
};

/* From now on the vCPU's entries are stamped; it must not run. */
void kvmpy_measure_start(struct kvmpy_measure *measure, struct kvmpy_vcpu *vcpu);
void kvmpy_measure_stop(struct kvmpy_measure *measure);

/* Native handlers. Of the ports CONTROL and INJECT of guest_images/lab/exits.inc; context: the measurement. */
kvmpy_handler kvmpy_measure_control;
/* Of any range: spins; context: uint64_t *, TSC cycles. */
kvmpy_handler kvmpy_measure_spin;
kvmpy_handler *kvmpy_measure_control_address(void);
kvmpy_handler *kvmpy_measure_spin_address(void);

/*
 * Host loops. Each records `count` samples: into total, or, when the scheduler took the CPU away meanwhile, into
 * interrupted. They return 0 or -errno, and the thread must be the vCPU's.
 */

/* The engine's entry with immediate_exit set; `sync`: KVM_SYNC_X86_* that go both ways with it. */
int kvmpy_measure_immediate(struct kvmpy_collector *collector, struct kvmpy_vcpu *vcpu, uint64_t count, uint64_t sync);

/*
 * From kvmpy_kick() in another thread, `delay_ns` after the vCPU was entered, to the return of kvmpy_run(). That thread
 * runs on `cpu`, or anywhere if it is negative.
 */
int kvmpy_measure_kick(struct kvmpy_collector *collector, struct kvmpy_vcpu *vcpu, uint64_t count, uint64_t delay_ns,
		       int cpu);

/* Durations that somebody else took, of one chunk that began when kvmpy_switches() was `switches`. */
void kvmpy_measure_record(struct kvmpy_collector *collector, const uint64_t *durations, uint64_t count,
			  uint64_t switches);

/* A thread that answers each fault of a userfaultfd with a page of zeros, until `stop` isn't 0. */
struct kvmpy_uffd {
	int fd;
	uint64_t page;		/* bytes */
	uint32_t stop;
	uint64_t served;
	int error;
	unsigned long thread;
};
int kvmpy_uffd_register(int fd, void *memory, uint64_t length);
int kvmpy_uffd_start(struct kvmpy_uffd *uffd, int cpu);
void kvmpy_uffd_stop(struct kvmpy_uffd *uffd);
int kvmpy_uffd_open(void);

/* Lets a thread run on one CPU only, or with a negative number on any. */
void kvmpy_thread_on_cpu(unsigned long thread, int cpu);

uint64_t kvmpy_measure_tsc(void);

#endif
