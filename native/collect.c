// SPDX-License-Identifier: MIT
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "collect.h"

#define WARM_MOST 16
#define WARM_PERCENT 5

void kvmpy_collector_free(struct kvmpy_collector *c)
{
	if (!c)
		return;
	free(c->total);
	free(c->out);
	free(c->handler);
	free(c->in);
	free(c->interrupted);
	free(c->crossings);
	free(c);
}

struct kvmpy_collector *kvmpy_collector_new(uint64_t chunk)
{
	struct kvmpy_collector *c = calloc(1, sizeof(*c));

	if (!c || !chunk || chunk > KVMPY_CHUNK_MAX)
		goto fail;
	c->chunk = chunk;
	c->warm_most = WARM_MOST;
	c->warm_percent = WARM_PERCENT;
	c->total = kvmpy_histogram_new();
	c->out = kvmpy_histogram_new();
	c->handler = kvmpy_histogram_new();
	c->in = kvmpy_histogram_new();
	c->interrupted = kvmpy_histogram_new();
	c->crossings = calloc(KVMPY_CROSSINGS, sizeof(*c->crossings));
	if (!c->total || !c->out || !c->handler || !c->in || !c->interrupted || !c->crossings)
		goto fail;
	return c;
fail:
	kvmpy_collector_free(c);
	return NULL;
}

uint64_t kvmpy_switches(void)
{
	struct rusage usage;

	return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_nivcsw;
}

void kvmpy_collector_start(struct kvmpy_collector *c)
{
	kvmpy_histogram_clear(c->total);
	kvmpy_histogram_clear(c->out);
	kvmpy_histogram_clear(c->handler);
	kvmpy_histogram_clear(c->in);
	kvmpy_histogram_clear(c->interrupted);
	c->crossed = 0;
	c->warm_median = 0;
	c->warm = c->warm_most == 0;
	c->chunks = c->chunks_interrupted = c->chunks_warming = 0;
	c->without_exit = c->with_more = c->backwards = 0;
	c->switches = kvmpy_switches();
}

static int by_value(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

static uint64_t chunk_median(const struct kvmpy_collector *c)
{
	uint64_t totals[KVMPY_CHUNK_MAX];

	for (uint64_t i = 0; i < c->chunk; i++)
		totals[i] = c->samples[2 * i + 1] - c->samples[2 * i];
	qsort(totals, c->chunk, sizeof(*totals), by_value);
	return totals[c->chunk / 2];
}

static bool warm_now(struct kvmpy_collector *c)
{
	uint64_t median = chunk_median(c), last = c->warm_median;
	uint64_t apart = median > last ? median - last : last - median;

	c->warm_median = median;
	c->chunks_warming++;
	return (last && apart * 100 <= last * c->warm_percent) || c->chunks_warming >= c->warm_most;
}

/* The exits of one sample; *at is the first crossing that can belong to it. */
static void split(struct kvmpy_collector *c, uint64_t begin, uint64_t end, uint64_t *at)
{
	uint64_t first = *at, last;

	begin -= c->tsc_offset;
	end -= c->tsc_offset;
	while (first < c->crossed && c->crossings[first].leave < begin)
		first++;
	*at = last = first;
	while (last + 1 < c->crossed && c->crossings[last + 1].enter < end)
		last++;
	if (last == first || c->crossings[first].leave > end) {
		c->without_exit++;
		return;
	}
	if (last - first > 1) {
		c->with_more++;
		return;
	}
	kvmpy_histogram_record(c->out, c->crossings[first].leave - begin);
	kvmpy_histogram_record(c->handler, c->crossings[last].enter - c->crossings[first].leave);
	kvmpy_histogram_record(c->in, end - c->crossings[last].enter);
}

static void record(struct kvmpy_collector *c, bool interrupted)
{
	uint64_t at = 0;

	for (uint64_t i = 0; i < c->chunk; i++) {
		uint64_t begin = c->samples[2 * i], end = c->samples[2 * i + 1];

		if (end < begin) {
			c->backwards++;
			continue;
		}
		kvmpy_histogram_record(interrupted ? c->interrupted : c->total, end - begin);
		if (!interrupted)
			split(c, begin, end, &at);
	}
}

void kvmpy_collect(struct kvmpy_collector *c)
{
	uint64_t switches = kvmpy_switches();
	bool interrupted = switches != c->switches;

	if (c->warm) {
		record(c, interrupted);
		c->chunks++;
		c->chunks_interrupted += interrupted;
	} else if (!interrupted) {
		c->warm = warm_now(c);
	} else {
		c->warm = ++c->chunks_warming >= c->warm_most;
	}
	c->switches = kvmpy_switches();
	c->crossed = 0;
}
