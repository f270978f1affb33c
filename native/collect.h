/* SPDX-License-Identifier: MIT */
/* From time stamps to histograms: the same for kvmpy and for the floor under it, and outside every interval. */
#ifndef KVMPY_COLLECT_H
#define KVMPY_COLLECT_H

#include <stdbool.h>
#include <stdint.h>

#include "histogram.h"

#define KVMPY_CROSSINGS 8192	/* entries into the guest remembered in one chunk */
#define KVMPY_CHUNK_MAX 1024	/* samples in one chunk */

/* Host time stamps of one entry into the guest: on the way in, and back. */
struct kvmpy_crossing {
	uint64_t enter, leave;
};

/*
 * What becomes of samples. A sample is two time stamps in memory that guest and host share. Where exactly one exit to
 * user space lies within, it also splits in three: out (to the return of the engine's enter), handler, in.
 */
struct kvmpy_collector {
	struct kvmpy_histogram *total, *out, *handler, *in;
	struct kvmpy_histogram *interrupted;	/* totals of chunks in which the scheduler took the CPU away */
	uint64_t tsc_offset;		/* guest's TSC - host's */
	uint64_t chunk;			/* samples in one */
	uint64_t *samples;		/* pairs: begin, end */
	struct kvmpy_crossing *crossings;
	uint64_t crossed;		/* crossings in this chunk */
	uint64_t switches;		/* involuntary context switches of this thread when the chunk began */

	/* Warming up: chunks are thrown away until two in a row have medians this close, or `warm_most` are over. */
	uint64_t warm_most, warm_percent;
	uint64_t warm_median;
	bool warm;

	uint64_t chunks;		/* recorded, interrupted ones included */
	uint64_t chunks_interrupted;
	uint64_t chunks_warming;
	uint64_t without_exit;		/* samples in which the guest never left to user space */
	uint64_t with_more;		/* samples in which it did so more than once */
	uint64_t backwards;		/* samples whose end was before their beginning: the TSCs don't agree */
};

struct kvmpy_collector *kvmpy_collector_new(uint64_t chunk);
void kvmpy_collector_free(struct kvmpy_collector *collector);

/* All counters and histograms to 0, and warming up begins. */
void kvmpy_collector_start(struct kvmpy_collector *collector);

/* A chunk is complete: its samples are recorded, and a new one begins. */
void kvmpy_collect(struct kvmpy_collector *collector);

/* Involuntary context switches of this thread. */
uint64_t kvmpy_switches(void);

#endif
