// SPDX-License-Identifier: MIT
/*
 * Stores to pages that hold no translated code needn't look for any. The library knows which pages do, but treats all
 * alike, and sends every store to memory through a function: the places where it would make the difference are there,
 * and empty. The engine fills them, with a bit for each page that has code.
 */
#include <stdlib.h>
#include <string.h>

#include "translate.h"

#define PAGE 4096ull
#define CAN_WRITE 2
#define WASTED 256		/* stores that looked in vain, until the entries are made anew */

static void (*original_has_code)(void *engine, uint64_t ram);
static void (*original_no_code)(void *engine, uint64_t ram);
static void (*original_look)(void *engine, void *pages, uint64_t ram, int size, uintptr_t where);
static void (*original_fill)(void *cpu, uint64_t linear, uint64_t gpa, uint32_t attributes, int rights, int table,
			     uint64_t size);

static struct translate_slot *slot_of(struct kvmpy_translate *t, void *engine, uint64_t ram)
{
	if (!t || t->unicorn != engine)
		return NULL;
	for (uint32_t i = 0; i < t->slot_count; i++)
		if (ram - t->slots[i].ram < t->slots[i].size)
			return &t->slots[i];
	return NULL;
}

static bool has_code(const struct translate_slot *slot, uint64_t offset)
{
	return slot->code[offset / PAGE / 8] >> (offset / PAGE % 8) & 1;
}

/* The first block of a page was made. */
static void on_code(void *engine, uint64_t ram)
{
	struct kvmpy_translate *t = translate_current();
	struct translate_slot *slot = slot_of(t, engine, ram);

	original_has_code(engine, ram);
	if (!slot)
		return;
	ram -= slot->ram;
	slot->code[ram / PAGE / 8] |= 1 << (ram / PAGE % 8);
	unicorn.look_first(t->cpu, (uint64_t)slot->host + (ram & ~(PAGE - 1)), PAGE);
}

/* The last one is gone. */
static void on_no_code(void *engine, uint64_t ram)
{
	struct translate_slot *slot = slot_of(translate_current(), engine, ram);

	original_no_code(engine, ram);
	if (!slot)
		return;
	ram -= slot->ram;
	slot->code[ram / PAGE / 8] &= ~(1 << (ram / PAGE % 8));
}

/* A store is looked at. Pages that have lost their code still have entries of before. */
static void on_look(void *engine, void *pages, uint64_t ram, int size, uintptr_t where)
{
	struct kvmpy_translate *t = translate_current();
	struct translate_slot *slot = slot_of(t, engine, ram);

	if (slot && !has_code(slot, ram - slot->ram) && ++t->wasted == WASTED)
		translate_attend(t, ATTENTION_STORES);
	original_look(engine, pages, ram, size, where);
}

/* An entry was made. */
static void on_fill(void *cpu, uint64_t linear, uint64_t gpa, uint32_t attributes, int rights, int table, uint64_t size)
{
	struct kvmpy_translate *t = translate_current();
	const struct translate_slot *slot;
	struct unicorn_page *entry;

	original_fill(cpu, linear, gpa, attributes, rights, table, size);
	if (!t || t->cpu != cpu || !(rights & CAN_WRITE))
		return;
	slot = translate_slot_at(t, gpa);
	if (!slot || slot->readonly || has_code(slot, gpa - slot->gpa))
		return;
	entry = unicorn_page(t->env, table, linear);
	if (entry->write == ((linear & ~(PAGE - 1)) | UNICORN_LOOK_FIRST))
		entry->write &= ~UNICORN_LOOK_FIRST;
}

/* The bits of a new slot. False: no memory. */
bool translate_new_stores(struct kvmpy_translate *t, struct translate_slot *slot)
{
	slot->ram = unicorn.ram_of_host(t->unicorn, slot->host);
	slot->code = calloc(2, slot->size / PAGE / 8 + 1);
	slot->shown = slot->code + slot->size / PAGE / 8 + 1;
	return slot->code;
}

/* All translated code goes. */
void translate_forget_code(struct kvmpy_translate *t)
{
	unicorn.ctl(t->unicorn, UNICORN_CTL_FLUSH_CODE);
	for (uint32_t i = 0; i < t->slot_count; i++)
		memset(t->slots[i].code, 0, t->slots[i].size / PAGE / 8 + 1);
}

void translate_renew_stores(struct kvmpy_translate *t)
{
	__atomic_fetch_and(&t->attention, ~ATTENTION_STORES, __ATOMIC_RELAXED);
	t->wasted = 0;
	unicorn.flush_tlb(t->cpu);
}

bool translate_guard_stores(void *library)
{
	return translate_interpose(library, "tlb_protect_code_x86_64", on_code, &original_has_code) &&
	       translate_interpose(library, "tlb_unprotect_code_x86_64", on_no_code, &original_no_code) &&
	       translate_interpose(library, "tb_invalidate_phys_page_fast_x86_64", on_look, &original_look) &&
	       translate_interpose(library, "tlb_set_page_with_attrs_x86_64", on_fill, &original_fill);
}
