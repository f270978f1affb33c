// SPDX-License-Identifier: MIT
/*
 * Code that the host may change through a view of guest memory, without anybody being told.
 *
 * While there are writable views, what was translated from pages they show is kept: the bytes of each block, and for a
 * page that had code before it was shown, all of it. Each entry compares them with memory, and forgets the code that no
 * longer is what was translated. Pages without code, and machines without views, have nothing to compare.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "translate.h"
#include "translate_api.h"

#define PAGE 4096ull
#define MOST_BYTES (4u << 20)	/* kept; then all code is forgotten */

static bool has_bit(const uint8_t *bits, uint64_t page)
{
	return bits[page / 8] >> (page % 8) & 1;
}

static uint64_t sooner(uint64_t one, uint64_t other)
{
	return one < other ? one : other;
}

/* t->lock is held, as for all that follows. */
static void keep(struct kvmpy_translate *t, uint64_t gpa, const uint8_t *host, uint32_t size)
{
	struct translate_kept *kept = &t->kept;

	if (kept->used + size > MOST_BYTES)
		goto full;
	if (kept->used + size > kept->room) {
		uint32_t room = kept->room ? kept->room * 2 : 64 << 10;
		uint8_t *bytes = realloc(kept->bytes, room);

		if (!bytes)
			goto full;
		kept->bytes = bytes;
		kept->room = room;
	}
	if (kept->count == kept->most) {
		uint32_t most = kept->most ? kept->most * 2 : 1024;
		void *pieces = realloc(kept->pieces, most * sizeof(*kept->pieces));

		if (!pieces)
			goto full;
		kept->pieces = pieces;
		kept->most = most;
	}
	memcpy(kept->bytes + kept->used, host, size);
	kept->pieces[kept->count++] = (struct translate_piece) { .gpa = gpa, .size = size, .at = kept->used };
	kept->used += size;
	return;
full:
	kept->count = kept->used = 0;
	translate_note_written(t, 0, TRANSLATE_ADDRESSES);
}

/* A block was translated, from memory at a linear address. */
void translate_keep_block(struct kvmpy_translate *t, uint64_t linear, uint32_t size)
{
	if (likely(!t->view_count))
		return;
	pthread_mutex_lock(&t->lock);
	while (size) {
		uint32_t here = sooner(size, PAGE - (linear & (PAGE - 1)));
		const struct translate_slot *slot;
		uint64_t gpa;

		slot = translate_linear(t, linear, &gpa) ? translate_slot_at(t, gpa) : NULL;
		if (slot && has_bit(slot->shown, (gpa - slot->gpa) / PAGE))
			keep(t, gpa, slot->host + (gpa - slot->gpa), here);
		linear += here;
		size -= here;
	}
	pthread_mutex_unlock(&t->lock);
}

/* Pages of a slot from now on count as shown; those with code are kept whole, for their blocks aren't known. */
static void show(struct kvmpy_translate *t, struct translate_slot *slot, uint64_t gpa, uint64_t end)
{
	uint64_t first = (gpa > slot->gpa ? gpa - slot->gpa : 0) / PAGE;
	uint64_t last = (sooner(end, slot->gpa + slot->size) - slot->gpa - 1) / PAGE;

	for (uint64_t page = first; page <= last; page++) {
		if (has_bit(slot->shown, page))
			continue;
		slot->shown[page / 8] |= 1 << (page % 8);
		if (has_bit(slot->code, page))
			keep(t, slot->gpa + page * PAGE, slot->host + page * PAGE, PAGE);
	}
}

static void show_view(struct kvmpy_translate *t, uint64_t gpa, uint64_t size)
{
	for (uint32_t i = 0; i < t->slot_count; i++) {
		struct translate_slot *slot = &t->slots[i];

		if (gpa < slot->gpa + slot->size && slot->gpa < gpa + size)
			show(t, slot, gpa, gpa + size);
	}
}

static void add_view(struct kvmpy_translate *t, uint64_t gpa, uint64_t size)
{
	uint64_t end = gpa + size;

	if (t->view_count == TRANSLATE_VIEWS) {	/* one stands for too many */
		for (uint32_t i = 0; i < t->view_count; i++) {
			uint64_t other = t->views[i].gpa + t->views[i].size;

			gpa = sooner(gpa, t->views[i].gpa);
			end = end > other ? end : other;
		}
		t->view_count = 0;
	}
	t->views[t->view_count].gpa = gpa;
	t->views[t->view_count++].size = end - gpa;
	show_view(t, gpa, end - gpa);
}

static bool is_known(const struct kvmpy_translate *t, uint64_t gpa, uint64_t size)
{
	for (uint32_t i = 0; i < t->view_count; i++)
		if (gpa >= t->views[i].gpa && gpa + size <= t->views[i].gpa + t->views[i].size)
			return true;
	return false;
}

/* What isn't as it was translated counts as written. */
static void compare(struct kvmpy_translate *t)
{
	struct translate_kept *kept = &t->kept;

	for (uint32_t i = 0; i < kept->count; i++) {
		const struct translate_piece *piece = &kept->pieces[i];
		const uint8_t *host = translate_host(t, piece->gpa, false);

		if (host && !memcmp(host, kept->bytes + piece->at, piece->size))
			continue;
		translate_note_written(t, piece->gpa, piece->size);
		kept->pieces[i--] = kept->pieces[--kept->count];
	}
	if (!kept->count)
		kept->used = 0;
}

void translate_compare_views(struct kvmpy_translate *t)
{
	pthread_mutex_lock(&t->lock);
	compare(t);
	pthread_mutex_unlock(&t->lock);
}

/* All code is gone: there is nothing to compare with. Slots may have come and gone. */
void translate_renew_views(struct kvmpy_translate *t)
{
	pthread_mutex_lock(&t->lock);
	t->kept.count = t->kept.used = 0;
	for (uint32_t i = 0; i < t->view_count; i++)
		show_view(t, t->views[i].gpa, t->views[i].size);
	pthread_mutex_unlock(&t->lock);
}

/* A writable view was handed out. From any thread: if another runs the guest, it may be translating from there now. */
void kvmpy_translate_viewed(struct kvmpy_vcpu *vcpu, uint64_t gpa, uint64_t size)
{
	struct kvmpy_translate *t = vcpu->engine;
	pid_t tid = __atomic_load_n(&vcpu->tid, __ATOMIC_SEQ_CST);

	pthread_mutex_lock(&t->lock);
	if (!is_known(t, gpa, size)) {
		add_view(t, gpa, size);
		if (tid && tid != (pid_t)syscall(SYS_gettid))
			translate_note_written(t, gpa, size);
	}
	pthread_mutex_unlock(&t->lock);
}

static bool same_views(const struct kvmpy_translate *t, uint32_t count, const uint64_t *views)
{
	if (count != t->view_count)
		return false;
	for (uint32_t i = 0; i < count; i++)
		if (t->views[i].gpa != views[2 * i] || t->views[i].size != views[2 * i + 1])
			return false;
	return true;
}

/* Between two runs: which views there still are, as pairs of address and size. */
void kvmpy_translate_views(struct kvmpy_vcpu *vcpu, uint32_t count, const uint64_t *views)
{
	struct kvmpy_translate *t = vcpu->engine;

	pthread_mutex_lock(&t->lock);
	if (!same_views(t, count, views)) {
		compare(t);
		t->kept.count = t->kept.used = t->view_count = 0;
		for (uint32_t i = 0; i < t->slot_count; i++)
			memset(t->slots[i].shown, 0, t->slots[i].size / PAGE / 8 + 1);
		for (uint32_t i = 0; i < count; i++)
			add_view(t, views[2 * i], views[2 * i + 1]);
	}
	pthread_mutex_unlock(&t->lock);
}

void translate_free_views(struct kvmpy_translate *t)
{
	free(t->kept.pieces);
	free(t->kept.bytes);
}
