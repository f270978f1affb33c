/* SPDX-License-Identifier: MIT */
/* A log of accesses, one per vCPU: the vCPU's thread writes, one reader drains. No locks. */
#ifndef KVMPY_RING_H
#define KVMPY_RING_H

#include "vcpu.h"

/* 40 bytes, read by Python as a structured array (kvmpy/machine/ring.py). */
struct kvmpy_record {
	uint64_t tsc;
	uint64_t address;
	uint64_t value;
	uint32_t count;		/* elements of string I/O, else 1 */
	uint16_t range;
	uint16_t vcpu;
	uint8_t space;		/* enum kvmpy_space; 255: not a bus access, address holds the exit reason */
	uint8_t size;
	uint8_t is_write;
	uint8_t reserved[5];
};

/* What a full ring does. */
enum kvmpy_ring_mode {
	KVMPY_RING_COUNTED,	/* counts what it drops */
	KVMPY_RING_LOSSLESS,	/* stops the vCPU */
	KVMPY_RING_LAST,	/* forgets the oldest: read it only while the vCPU doesn't run */
};

struct kvmpy_ring {
	uint64_t head __attribute__((aligned(64)));	/* records ever written: the vCPU's side */
	uint64_t dropped;
	uint64_t seen_tail;				/* tail as last read by the vCPU */
	uint64_t tail __attribute__((aligned(64)));	/* records ever read: the reader's side */
	uint64_t capacity __attribute__((aligned(64)));	/* a power of two */
	uint64_t mode;		/* enum kvmpy_ring_mode */
	struct kvmpy_record *records;
};

struct kvmpy_ring *kvmpy_ring_new(uint64_t capacity, int mode);
void kvmpy_ring_free(struct kvmpy_ring *ring);
uint64_t kvmpy_ring_drain(struct kvmpy_ring *ring, struct kvmpy_record *into, uint64_t most);

/* Room for one more record? False only for a lossless ring that is full. */
bool kvmpy_ring_ready(struct kvmpy_ring *ring);
void kvmpy_ring_log(struct kvmpy_vcpu *vcpu, const struct kvmpy_record *record);

static inline uint64_t kvmpy_tsc(void)
{
	return __builtin_ia32_rdtsc();
}

#endif
