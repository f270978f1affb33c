// SPDX-License-Identifier: MIT
#include <stdlib.h>
#include <string.h>

#include "histogram.h"

#define HALF_SHIFT 10	/* 1024 */

struct kvmpy_histogram *kvmpy_histogram_new(void)
{
	struct kvmpy_histogram *histogram = malloc(sizeof(*histogram));

	if (histogram)
		kvmpy_histogram_clear(histogram);
	return histogram;
}

void kvmpy_histogram_free(struct kvmpy_histogram *histogram)
{
	free(histogram);
}

void kvmpy_histogram_clear(struct kvmpy_histogram *histogram)
{
	memset(histogram, 0, sizeof(*histogram));
	histogram->min = UINT64_MAX;
}

/* The first 2048 values are bucket 0; bucket n holds the upper half of its 2048 steps of 2^n. */
uint32_t kvmpy_histogram_index(uint64_t value)
{
	uint32_t bucket = 64 - HALF_SHIFT - 1 - __builtin_clzll(value | (2 * KVMPY_HISTOGRAM_HALF - 1));
	uint32_t step = value >> bucket;

	return ((bucket + 1) << HALF_SHIFT) + step - KVMPY_HISTOGRAM_HALF;
}

void kvmpy_histogram_record(struct kvmpy_histogram *histogram, uint64_t value)
{
	if (value > KVMPY_HISTOGRAM_HIGHEST) {
		value = KVMPY_HISTOGRAM_HIGHEST;
		histogram->clipped++;
	}
	histogram->counts[kvmpy_histogram_index(value)]++;
	histogram->total++;
	histogram->sum += value;
	if (value < histogram->min)
		histogram->min = value;
	if (value > histogram->max)
		histogram->max = value;
}

void kvmpy_histogram_add(struct kvmpy_histogram *into, const struct kvmpy_histogram *from)
{
	for (uint32_t i = 0; i < KVMPY_HISTOGRAM_LENGTH; i++)
		into->counts[i] += from->counts[i];
	into->total += from->total;
	into->sum += from->sum;
	into->clipped += from->clipped;
	if (from->min < into->min)
		into->min = from->min;
	if (from->max > into->max)
		into->max = from->max;
}

uint32_t kvmpy_histogram_pairs(const struct kvmpy_histogram *histogram, uint32_t *indices, uint64_t *counts,
			       uint32_t most)
{
	uint32_t found = 0;

	for (uint32_t i = 0; i < KVMPY_HISTOGRAM_LENGTH; i++) {
		if (!histogram->counts[i])
			continue;
		if (found < most) {
			indices[found] = i;
			counts[found] = histogram->counts[i];
		}
		found++;
	}
	return found;
}
