// SPDX-License-Identifier: MIT
/* Making and freeing a vCPU of the translate engine. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "translate.h"
#include "translate_api.h"

#define CODE_BUFFER (64 << 20)	/* address space for translated code: what isn't used stays unbacked */

const char *kvmpy_translate_load(const char *path)
{
	return kvmpy_unicorn_load(path);
}

static const char *open_unicorn(struct kvmpy_translate *t)
{
	if (unicorn.open(UNICORN_X86, UNICORN_MODE_64, &t->unicorn))
		return "Unicorn can't make an engine";
	unicorn.ctl(t->unicorn, UNICORN_CTL_BUFFER_SIZE, CODE_BUFFER);
	unicorn.ctl(t->unicorn, UNICORN_CTL_USE_EXITS, 1);	/* there are none: nothing is an address to stop at */
	if (!kvmpy_unicorn_find(t->unicorn, &t->cpu, &t->env))
		return "Unicorn's CPU state isn't where it was";
	translate_prepare_blocks(t);
	return NULL;
}

/* Unicorn tells of a new block only when another was run to its end before: jumps to a HLT, before there are hooks. */
static const char *run_a_block(struct kvmpy_translate *t)
{
	uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool ran;

	if (page == MAP_FAILED)
		return "no memory";
	memcpy(page, "\xeb\x00\xf4", 3);
	ran = !unicorn.map(t->unicorn, 0, 4096, UNICORN_ALL, page) && !unicorn.start(t->unicorn, 0, -1, 0, 0);
	unicorn.unmap(t->unicorn, 0, 4096);
	unicorn.ctl(t->unicorn, UNICORN_CTL_FLUSH_CODE);
	munmap(page, 4096);
	return ran ? NULL : "Unicorn can't run code: does the system allow executable anonymous memory?";
}

static const char *set_up(struct kvmpy_translate *t)
{
	const char *error = open_unicorn(t);

	if (!error)
		error = run_a_block(t);
	if (error)
		return error;
	if (translate_stack_new(t))
		return "no memory for a stack";
	if (translate_hook_io(t) || translate_hook_mmio(t) || translate_hook_events(t) || translate_hook_cpuid(t) ||
	    translate_hook_new_blocks(t))
		return "Unicorn can't set its hooks";
	translate_reset(t);
	return NULL;
}

static void tear_down(struct kvmpy_translate *t)
{
	if (t->stack)
		translate_park(t);
	if (t->unicorn)
		unicorn.close(t->unicorn);
	translate_stack_free(t);
	while (t->slot_count)
		free(t->slots[--t->slot_count].code);
	translate_free_views(t);
	while (t->hole_count)
		free(t->holes[--t->hole_count]);
	pthread_mutex_destroy(&t->lock);
	free(t->single.sources);
	free(t->run);
	free(t);
}

struct kvmpy_vcpu *kvmpy_translate_new(uint32_t index, const char **error)
{
	struct kvmpy_translate *t = calloc(1, sizeof(*t));

	*error = "no memory";
	if (!t)
		return NULL;
	pthread_mutex_init(&t->lock, NULL);
	t->run = aligned_alloc(4096, TRANSLATE_RUN_SIZE);
	if (t->run) {
		memset(t->run, 0, TRANSLATE_RUN_SIZE);
		t->vcpu = kvmpy_vcpu_new(index, t->run, -1);
	}
	if (t->vcpu)
		*error = set_up(t);
	if (*error) {
		kvmpy_vcpu_free(t->vcpu);
		tear_down(t);
		return NULL;
	}
	t->vcpu->engine = t;
	t->vcpu->nudge = &unicorn_front(t->env)->nudge;
	t->vcpu->enter = kvmpy_translate_enter;
	return t->vcpu;
}

void kvmpy_translate_free(struct kvmpy_vcpu *vcpu)
{
	if (!vcpu)
		return;
	tear_down(vcpu->engine);
	kvmpy_vcpu_free(vcpu);
}
