// SPDX-License-Identifier: MIT
/* The log of accesses: one producer (the vCPU's thread), one consumer. */
#include <string.h>

#include "lines.h"
#include "ring.h"

struct kvmpy_ring *kvmpy_ring_new(uint64_t capacity, int mode)
{
	struct kvmpy_ring *ring = kvmpy_lines_zeroed(sizeof(*ring));

	if (!ring)
		return NULL;
	ring->capacity = capacity;
	ring->mode = mode;
	ring->records = kvmpy_lines(capacity * sizeof(*ring->records));
	if (!ring->records) {
		kvmpy_lines_free(ring);
		return NULL;
	}
	return ring;
}

void kvmpy_ring_free(struct kvmpy_ring *ring)
{
	if (!ring)
		return;
	kvmpy_lines_free(ring->records);
	kvmpy_lines_free(ring);
}

static bool room(struct kvmpy_ring *ring)
{
	if (likely(ring->head - ring->seen_tail < ring->capacity || ring->mode == KVMPY_RING_LAST))
		return true;
	ring->seen_tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
	return ring->head - ring->seen_tail < ring->capacity;
}

bool kvmpy_ring_ready(struct kvmpy_ring *ring)
{
	return room(ring) || ring->mode != KVMPY_RING_LOSSLESS;
}

void kvmpy_ring_log(struct kvmpy_vcpu *vcpu, const struct kvmpy_record *record)
{
	struct kvmpy_ring *ring = __atomic_load_n(&vcpu->ring, __ATOMIC_ACQUIRE);

	if (unlikely(!room(ring))) {
		__atomic_store_n(&ring->dropped, ring->dropped + 1, __ATOMIC_RELAXED);
		return;
	}
	ring->records[ring->head & (ring->capacity - 1)] = *record;
	__atomic_store_n(&ring->head, ring->head + 1, __ATOMIC_RELEASE);
}

/* Copies out up to most records, oldest first; returns how many. */
uint64_t kvmpy_ring_drain(struct kvmpy_ring *ring, struct kvmpy_record *into, uint64_t most)
{
	uint64_t head = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);
	uint64_t tail = head - ring->tail > ring->capacity ? head - ring->capacity : ring->tail;
	uint64_t done = head - tail < most ? head - tail : most;
	uint64_t start = tail & (ring->capacity - 1);
	uint64_t first = done < ring->capacity - start ? done : ring->capacity - start;

	/* Only in the mode that forgets, and then the vCPU doesn't run. */
	if (tail != ring->tail)
		ring->dropped += tail - ring->tail;
	memcpy(into, ring->records + start, first * sizeof(*into));
	memcpy(into + first, ring->records, (done - first) * sizeof(*into));
	__atomic_store_n(&ring->tail, tail + done, __ATOMIC_RELEASE);
	return done;
}
