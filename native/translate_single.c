// SPDX-License-Identifier: MIT
/*
 * Single instructions for another engine's vCPU (rescue.c): enter() comes back behind each, with KVM_EXIT_DEBUG, and
 * an exception is delivered before it does. What the translator has no word for is KVM_EXIT_EXCEPTION 6 and not
 * delivered: whether the guest's processor knows the instruction isn't for the translator to say.
 *
 * Every instruction is a block of its own (translate_guard.c), so it takes a look before a block is made, and one when
 * it begins. Guest memory is also written by those the translator doesn't see; so what a block was made from is kept, by
 * physical address, and compared with memory each time before the block runs.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "translate.h"
#include "translate_api.h"

#define MOST_BLOCKS (1u << 20)	/* at one instruction: REP has one for each element */

static uint64_t linear_rip(const struct kvmpy_translate *t)
{
	return t->env->segments[SEG_CS].base + t->env->rip;
}

/* Whether the block that begins was made of what is there now. If not it is forgotten. */
static bool unchanged(struct kvmpy_translate *t)
{
	uint64_t linear = linear_rip(t);
	struct translate_source now = { .used = true }, before, *known;

	if (!translate_linear(t, linear, &now.gpa))
		return true;
	now.size = translate_read(t, linear, now.bytes, TRANSLATE_LONGEST);
	known = &t->single.sources[(now.gpa ^ now.gpa >> 10) % TRANSLATE_SOURCES];
	before = *known;
	if (likely(before.used && before.gpa == now.gpa && before.size == now.size &&
		   !memcmp(before.bytes, now.bytes, now.size)))
		return true;
	*known = now;
	if (before.used)
		translate_forget(t, before.gpa, before.size);
	/* Blocks of addresses that aren't kept have been forgotten: one that is new here was made just now. */
	return !before.used || before.gpa != now.gpa;
}

static void give_up(struct kvmpy_translate *t)
{
	t->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	memset(&t->run->internal, 0, sizeof(t->run->internal));
	t->run->internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
	translate_stop(t, 0);
}

/* A block is about to be made, or to begin: where that isn't the same instruction again, the one before is done. */
void translate_single_next(struct kvmpy_translate *t)
{
	uint8_t code[TRANSLATE_LONGEST];

	if (t->env->rip == t->single.rip)
		return;
	if (!t->single.goes_on(t->single.user, code, translate_read(t, linear_rip(t), code, sizeof(code)))) {
		translate_single_done(t);
		unicorn.leave_code(t->cpu);
	}
	t->single.rip = t->env->rip;
	t->single.blocks = 0;
}

/* A block begins. */
void translate_single_block(struct kvmpy_translate *t)
{
	translate_single_next(t);
	if (t->single.blocks++ == MOST_BLOCKS)
		give_up(t);
	if (!unchanged(t))
		unicorn.leave_code(t->cpu);
}

/* For hooks that return afterwards, too. */
void translate_single_done(struct kvmpy_translate *t)
{
	translate_debug_exit(t, 1, 0);
}

/* True: the exit is made, and the exception isn't to be delivered. */
bool translate_single_undefined(struct kvmpy_translate *t)
{
	if (!t->single.on || t->single.undefined)
		return false;
	t->run->exit_reason = KVM_EXIT_EXCEPTION;
	t->run->ex.exception = 6;
	t->run->ex.error_code = 0;
	t->result = 0;
	t->wait.kind = WAIT_NOTHING;
	t->stopped = true;
	unicorn.stop(t->unicorn);
	return true;
}

static void on_write(void *engine, int type, uint64_t gpa, int size, int64_t value, void *user)
{
	struct kvmpy_translate *t = user;
	const struct translate_slot *slot = translate_slot_at(t, gpa);

	(void)engine;
	(void)type;
	(void)value;
	if (!slot)
		return;
	t->single.wrote(t->single.user, slot->number, (gpa - slot->gpa) / 4096);
	if ((gpa & 4095) + size > 4096)
		t->single.wrote(t->single.user, slot->number, (gpa - slot->gpa) / 4096 + 1);
}

int kvmpy_translate_single(struct kvmpy_vcpu *vcpu, kvmpy_goes_on *goes_on, kvmpy_wrote *wrote, void *user)
{
	struct kvmpy_translate *t = vcpu->engine;
	size_t hook;

	if (unicorn.hook(t->unicorn, &hook, UNICORN_HOOK_WRITE, on_write, t, 1, 0))
		return -ENOMEM;
	t->single.sources = calloc(TRANSLATE_SOURCES, sizeof(*t->single.sources));
	if (!t->single.sources)
		return -ENOMEM;
	t->single.goes_on = goes_on;
	t->single.wrote = wrote;
	t->single.user = user;
	t->single.on = true;
	translate_attend(t, ATTENTION_SINGLE);
	return 0;
}

void kvmpy_translate_single_begin(struct kvmpy_vcpu *vcpu, bool undefined)
{
	struct kvmpy_translate *t = vcpu->engine;

	translate_park(t);
	t->wait.kind = WAIT_NOTHING;
	t->mmio.count = t->mmio.replay = 0;
	t->single.rip = t->env->rip;
	t->single.blocks = 0;
	t->single.undefined = undefined;
	t->exception = -1;
}

uint32_t kvmpy_translate_code(struct kvmpy_vcpu *vcpu, uint8_t *into, uint32_t size)
{
	struct kvmpy_translate *t = vcpu->engine;

	return translate_read(t, linear_rip(t), into, size);
}
