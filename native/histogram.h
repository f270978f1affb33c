/* SPDX-License-Identifier: MIT */
/*
 * A histogram in the layout of HdrHistogram: three significant digits from 1 to 2^40 - 1, in a fixed number of counters.
 *
 * Values below 2048 have a counter each. From there on every doubling has 1024 counters, so no value is off by more
 * than a thousandth. Source: HdrHistogram's description of AbstractHistogram's bucket structure.
 */
#ifndef KVMPY_HISTOGRAM_H
#define KVMPY_HISTOGRAM_H

#include <stdint.h>

#define KVMPY_HISTOGRAM_HALF 1024	/* counters for each doubling */
#define KVMPY_HISTOGRAM_LENGTH (31 * KVMPY_HISTOGRAM_HALF)
#define KVMPY_HISTOGRAM_HIGHEST ((1ULL << 40) - 1)

struct kvmpy_histogram {
	uint64_t total;		/* values recorded */
	uint64_t sum;
	uint64_t min, max;	/* UINT64_MAX and 0 while there are none */
	uint64_t clipped;	/* values above KVMPY_HISTOGRAM_HIGHEST, counted as that */
	uint64_t counts[KVMPY_HISTOGRAM_LENGTH];
};

struct kvmpy_histogram *kvmpy_histogram_new(void);
void kvmpy_histogram_free(struct kvmpy_histogram *histogram);
void kvmpy_histogram_clear(struct kvmpy_histogram *histogram);
uint32_t kvmpy_histogram_index(uint64_t value);
void kvmpy_histogram_record(struct kvmpy_histogram *histogram, uint64_t value);
void kvmpy_histogram_add(struct kvmpy_histogram *into, const struct kvmpy_histogram *from);

/* The counters that aren't 0, at most `most`; returns how many there are. */
uint32_t kvmpy_histogram_pairs(const struct kvmpy_histogram *histogram, uint32_t *indices, uint64_t *counts,
			       uint32_t most);

#endif
