// SPDX-License-Identifier: MIT
/*
 * MMIO: guest physical addresses without memory, and writes to read-only memory.
 *
 * Holes are mapped without any rights, so a hook sees each access whole, with rip on the instruction; it makes the
 * exit and keeps the answer for the raw reads, of other widths, that Unicorn does afterwards. An unaligned write comes
 * once whole and then byte by byte. Most accesses don't come that far: see translate_direct.c.
 *
 * The accesses an instruction has done are kept: when it is left in the middle, because something of the vCPU was set
 * from outside, it begins anew, and those before the last exit must not happen twice.
 */
#include <errno.h>
#include <string.h>

#include "bus.h"
#include "translate.h"

static bool same(const struct translate_access *a, const struct translate_access *b)
{
	return a->gpa == b->gpa && a->size == b->size && a->is_write == b->is_write;
}

/*
 * Whether the running instruction has done other accesses: after this, mmio.done is of this one. Between two runs of the
 * same instruction a block begins.
 */
static bool in_the_middle(struct kvmpy_translate *t)
{
	bool known = t->mmio.rip == t->env->rip && t->mmio.block == t->blocks;

	t->mmio.rip = t->env->rip;
	t->mmio.block = t->blocks;
	__atomic_store_n(&unicorn_front(t->env)->nudge, 1, __ATOMIC_RELAXED);	/* by its own thread */
	if (!known || t->mmio.count == TRANSLATE_ACCESSES)
		t->mmio.count = t->mmio.replay = 0;
	return t->mmio.count;
}

/* The instruction that is left in the middle will be begun again, and then not do its accesses twice. */
static void begin_again(struct kvmpy_translate *t)
{
	t->mmio.block = t->blocks + 1;	/* it is the first in its block then */
	translate_nudge(t);
	t->mmio.replay = 0;
	t->mmio.left = t->mmio.beyond = 0;
}

static void record(struct kvmpy_translate *t)
{
	t->mmio.done[t->mmio.count++] = t->mmio.last;
	t->mmio.replay = t->mmio.count;
}

/* The exit's access is done, as far as the vCPU's parked instruction is concerned. */
void translate_record_mmio(struct kvmpy_translate *t)
{
	if (!t->mmio.last.is_write)
		memcpy(t->mmio.last.data, t->run->mmio.data, t->mmio.last.size);
	record(t);
	begin_again(t);
}

static bool replayed(struct kvmpy_translate *t)
{
	const struct translate_access *old;

	if (t->mmio.replay >= t->mmio.count)
		return false;
	old = &t->mmio.done[t->mmio.replay];
	if (!same(old, &t->mmio.last)) {
		t->mmio.count = t->mmio.replay;
		return false;
	}
	t->mmio.replay++;
	t->mmio.last = *old;
	return true;
}

static void make_exit(struct kvmpy_translate *t, bool middle)
{
	struct kvm_run *run = t->run;

	if (unlikely(translate_stop_asked(t)) && !middle)
		translate_stop(t, -EINTR);
	run->exit_reason = KVM_EXIT_MMIO;
	run->mmio.phys_addr = t->mmio.last.gpa;
	run->mmio.len = t->mmio.last.size;
	run->mmio.is_write = t->mmio.last.is_write;
	memcpy(run->mmio.data, t->mmio.last.data, 8);
	t->result = 0;
	t->wait.kind = WAIT_MMIO;
	t->wait.rip = t->env->rip;
	if (unlikely(!translate_yield(t)))
		translate_leave(t);
	t->wait.kind = WAIT_NO_MORE;
	if (!t->mmio.last.is_write)
		memcpy(t->mmio.last.data, run->mmio.data, t->mmio.last.size);
}

/* The part of an access that lies in the first page it touches; what was read is in mmio.last. */
void translate_access_hole(struct kvmpy_translate *t, uint64_t gpa, uint32_t size, uint64_t value, bool is_write)
{
	uint32_t here = 4096 - (gpa & 4095);
	struct translate_access *last = &t->mmio.last;
	bool middle;

	last->gpa = gpa;
	last->size = size < here ? size : here;
	last->is_write = is_write;
	memcpy(last->data, &value, 8);
	middle = in_the_middle(t);
	if (unlikely(replayed(t)))
		return;
	if (unlikely(!kvmpy_try_rule(t->vcpu, KVM_EXIT_MMIO, KVMPY_MMIO, gpa, last->data, last->size, is_write)))
		make_exit(t, middle);
	record(t);
}

/* A byte of an unaligned write that has been done as a whole. */
static bool is_rest(struct kvmpy_translate *t, uint64_t gpa, uint32_t size)
{
	if (likely(!t->mmio.left))
		return false;
	if (size != 1 || gpa != t->mmio.next || t->env->rip != t->mmio.rip) {
		t->mmio.left = 0;
		return false;
	}
	t->mmio.next++;
	t->mmio.left--;
	return true;
}

/* The first byte in the second page of a write: only now is it known where that lies, and the rest is done as a whole. */
static bool is_second_page(struct kvmpy_translate *t, uint64_t gpa, uint32_t size)
{
	uint32_t rest = t->mmio.rest;

	t->mmio.rest = 0;
	if (likely(!rest) || size != 1 || gpa & 4095 || t->env->rip != t->mmio.rip || t->blocks != t->mmio.block)
		return false;
	translate_access_hole(t, gpa, rest, t->mmio.rest_value, true);
	t->mmio.next = gpa + 1;
	t->mmio.left = rest - 1;
	return true;
}

static bool on_access(void *engine, int type, uint64_t gpa, int size, int64_t value, void *user)
{
	struct kvmpy_translate *t = user;
	bool is_write = type == UNICORN_WRITE_PROTECTED;

	(void)engine;
	if (is_write && (is_rest(t, gpa, size) || is_second_page(t, gpa, size)))
		return true;
	translate_access_hole(t, gpa, size, value, is_write);
	t->mmio.beyond = is_write ? 0 : size - t->mmio.last.size;
	if (is_write && gpa & (size - 1)) {
		t->mmio.next = gpa;
		t->mmio.left = t->mmio.last.size;
		t->mmio.rest = size - t->mmio.left;
		t->mmio.rest_value = t->mmio.rest ? (uint64_t)value >> (8 * t->mmio.left) : 0;
	}
	return true;
}

/*
 * An access to where nothing was mapped: makes a hole there and begins the instruction again, with unicorn.start(): it may
 * be the second page of a read, and Unicorn's mark that it is inside one is only taken away there.
 */
static bool on_nothing(void *engine, int type, uint64_t gpa, int size, int64_t value, void *user)
{
	struct kvmpy_translate *t = user;

	(void)engine;
	(void)type;
	(void)size;
	(void)value;
	if (translate_open_hole(t, gpa))
		return false;
	if (in_the_middle(t))
		begin_again(t);
	translate_restart(t);
	unicorn.leave_code(t->cpu);
}

/*
 * The raw reads. The second page of a read is only known here. What is left without an answer is a page table in a
 * hole: nothing is mapped there.
 */
uint64_t translate_hole_read(void *engine, uint64_t offset, unsigned size, void *user)
{
	const struct translate_hole *hole = user;
	struct kvmpy_translate *t = hole->engine;
	const struct translate_access *last = &t->mmio.last;
	uint64_t gpa = hole->gpa + offset, value = 0;
	uint32_t beyond = t->mmio.beyond;

	(void)engine;
	if (unlikely(beyond && !(gpa & 4095))) {
		t->mmio.beyond = 0;
		translate_access_hole(t, gpa, beyond, 0, false);
	}
	for (unsigned i = 0; i < size; i++)
		if (!last->is_write && gpa + i - last->gpa < last->size)
			value |= (uint64_t)last->data[gpa + i - last->gpa] << (8 * i);
	return value;
}

void translate_hole_write(void *engine, uint64_t offset, unsigned size, uint64_t value, void *user)
{
	(void)engine;
	(void)offset;
	(void)size;
	(void)value;
	(void)user;
}

int translate_hook_mmio(struct kvmpy_translate *t)
{
	size_t hook;

	return unicorn.hook(t->unicorn, &hook, UNICORN_HOOK_READ_UNMAPPED | UNICORN_HOOK_WRITE_UNMAPPED, on_nothing, t,
			    1, 0) ||
	       unicorn.hook(t->unicorn, &hook, UNICORN_HOOK_READ_PROTECTED | UNICORN_HOOK_WRITE_PROTECTED, on_access, t,
			    1, 0);
}
