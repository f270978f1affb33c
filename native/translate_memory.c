// SPDX-License-Identifier: MIT
/* Memory slots, the holes between them, and looking into memory as the guest's tables map it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "translate.h"
#include "translate_api.h"

#define PAGE 4096ull
#define HOLE (1ull << 30)
#define EAGER (4ull << 30)
#define PRESENT 1
#define LARGE (1 << 7)
#define ADDRESS 0x000ffffffffff000ull
#define CR0_PG (1ull << 31)
#define CR4_PSE (1ull << 4)
#define CR4_PAE (1ull << 5)

struct translate_slot *translate_slot_at(struct kvmpy_translate *t, uint64_t gpa)
{
	for (uint32_t i = 0; i < t->slot_count; i++)
		if (gpa - t->slots[i].gpa < t->slots[i].size)
			return &t->slots[i];
	return NULL;
}

static const struct translate_hole *hole_at(const struct kvmpy_translate *t, uint64_t gpa)
{
	for (uint32_t i = 0; i < t->hole_count; i++)
		if (gpa - t->holes[i]->gpa < t->holes[i]->size)
			return t->holes[i];
	return NULL;
}

uint8_t *translate_host(struct kvmpy_translate *t, uint64_t gpa, bool write)
{
	const struct translate_slot *slot = translate_slot_at(t, gpa);

	if (!slot || (write && slot->readonly))
		return NULL;
	return slot->host + (gpa - slot->gpa);
}

static bool read_entry(struct kvmpy_translate *t, uint64_t gpa, uint32_t size, uint64_t *entry)
{
	const uint8_t *host = translate_host(t, gpa, false);

	*entry = 0;
	if (host)
		memcpy(entry, host, size);
	return host && *entry & PRESENT;
}

/* 32-bit paging: SDM vol. 3, 4.3. */
static bool walk_32(struct kvmpy_translate *t, uint64_t linear, uint64_t *gpa)
{
	uint64_t entry;

	if (!read_entry(t, (t->env->cr[3] & 0xfffff000) + (linear >> 22) * 4, 4, &entry))
		return false;
	if (entry & LARGE && t->env->cr[4] & CR4_PSE) {
		*gpa = (entry & 0xffc00000) | (entry & 0x1fe000) << 19 | (linear & 0x3fffff);
		return true;
	}
	if (!read_entry(t, (entry & 0xfffff000) + (linear >> 12 & 0x3ff) * 4, 4, &entry))
		return false;
	*gpa = (entry & 0xfffff000) | (linear & 0xfff);
	return true;
}

/* PAE and 4-level paging: SDM vol. 3, 4.4 and 4.5. */
static bool walk_64(struct kvmpy_translate *t, uint64_t linear, uint64_t *gpa)
{
	bool is_long = t->env->mode & MODE_LONG;
	uint64_t entry = is_long ? t->env->cr[3] & ADDRESS : t->env->cr[3] & 0xffffffe0;

	for (int shift = is_long ? 39 : 30; shift >= 12; shift -= 9) {
		uint64_t table = shift == 30 && !is_long ? entry : entry & ADDRESS;

		if (!read_entry(t, table + (linear >> shift & 0x1ff) * 8, 8, &entry))
			return false;
		if (shift == 12 || ((shift == 21 || (shift == 30 && is_long)) && entry & LARGE)) {
			uint64_t within = (1ull << shift) - 1;

			*gpa = (entry & ADDRESS & ~within) | (linear & within);
			return true;
		}
	}
	return false;
}

/* Where a linear address lies by the guest's page tables, whoever may use it; nothing is marked accessed. */
bool translate_linear(struct kvmpy_translate *t, uint64_t linear, uint64_t *gpa)
{
	if (!(t->env->mode & MODE_LONG))
		linear &= 0xffffffff;
	*gpa = linear;
	if (!(t->env->cr[0] & CR0_PG))
		return true;
	if (!(t->env->cr[4] & CR4_PAE))
		return walk_32(t, linear, gpa);
	return walk_64(t, linear, gpa);
}

/* How many bytes from a linear address on could be read. */
size_t translate_read(struct kvmpy_translate *t, uint64_t linear, void *into, size_t size)
{
	size_t done = 0;

	while (done < size) {
		uint64_t gpa;
		size_t here = PAGE - ((linear + done) & (PAGE - 1));
		const uint8_t *host;

		if (!translate_linear(t, linear + done, &gpa))
			break;
		host = translate_host(t, gpa, false);
		if (!host)
			break;
		if (here > size - done)
			here = size - done;
		memcpy((uint8_t *)into + done, host, here);
		done += here;
	}
	return done;
}

/* The part of a chunk of address space around gpa that no slot has. */
static struct translate_hole around(const struct kvmpy_translate *t, uint64_t gpa)
{
	uint64_t first = gpa & ~(HOLE - 1), end = first + HOLE;

	for (uint32_t i = 0; i < t->slot_count; i++) {
		const struct translate_slot *slot = &t->slots[i];

		if (slot->gpa + slot->size <= gpa && slot->gpa + slot->size > first)
			first = slot->gpa + slot->size;
		if (slot->gpa > gpa && slot->gpa < end)
			end = slot->gpa;
	}
	for (uint32_t i = 0; i < t->hole_count; i++) {	/* what was opened beside it before a slot went */
		const struct translate_hole *hole = t->holes[i];

		if (hole->gpa + hole->size <= gpa && hole->gpa + hole->size > first)
			first = hole->gpa + hole->size;
		if (hole->gpa > gpa && hole->gpa < end)
			end = hole->gpa;
	}
	return (struct translate_hole) { .engine = (struct kvmpy_translate *)t, .gpa = first, .size = end - first };
}

/*
 * Unicorn forgets the code of what it unmaps or protects by linear addresses, through the guest's page tables: a fault
 * there would be the guest's next, and CR2 is its. Without paging, they are the physical ones that are meant.
 */
static int unmap(struct kvmpy_translate *t, uint64_t gpa, uint64_t size)
{
	uint64_t cr0 = t->env->cr[0];
	int error;

	t->env->cr[0] &= ~CR0_PG;
	error = unicorn.unmap(t->unicorn, gpa, size);
	t->env->cr[0] = cr0;
	unicorn.flush_tlb(t->cpu);
	return error;
}

static int protect(struct kvmpy_translate *t, uint64_t gpa, uint64_t size, uint32_t rights)
{
	uint64_t cr0 = t->env->cr[0];
	int error;

	t->env->cr[0] &= ~CR0_PG;
	error = unicorn.protect(t->unicorn, gpa, size, rights);
	t->env->cr[0] = cr0;
	unicorn.flush_tlb(t->cpu);
	return error;
}

static void close_hole(struct kvmpy_translate *t, uint32_t i)
{
	unmap(t, t->holes[i]->gpa, t->holes[i]->size);
	free(t->holes[i]);
	t->holes[i] = t->holes[--t->hole_count];
}

/*
 * In chunks: Unicorn's time to take a mapping away goes with its size, and memory may yet come to lie there. Far up they
 * are made when an access finds nothing at all, and the instruction is begun again.
 */
int translate_open_hole(struct kvmpy_translate *t, uint64_t gpa)
{
	struct translate_hole *hole = malloc(sizeof(*hole));

	if (!hole)
		return -ENOMEM;
	if (t->hole_count == TRANSLATE_HOLES)
		close_hole(t, 0);
	*hole = around(t, gpa);
	if (unicorn.map_io(t->unicorn, hole->gpa, hole->size, translate_hole_read, hole, translate_hole_write, hole)) {
		free(hole);
		return -ENOMEM;
	}
	t->holes[t->hole_count++] = hole;
	return protect(t, hole->gpa, hole->size, 0) ? -ENOMEM : 0;
}

/* Where devices are: holes there are made before the guest runs, for beginning again can cost an instruction its flags. */
int translate_open_holes(struct kvmpy_translate *t)
{
	uint64_t gpa = 0;

	t->holes_open = true;
	while (gpa < EAGER) {
		const struct translate_slot *slot = translate_slot_at(t, gpa);
		const struct translate_hole *hole;

		if (slot) {
			gpa = slot->gpa + slot->size;
			continue;
		}
		hole = hole_at(t, gpa);
		if (hole) {
			gpa = hole->gpa + hole->size;
			continue;
		}
		if (translate_open_hole(t, gpa))
			return -ENOMEM;
		hole = t->holes[t->hole_count - 1];
		gpa = hole->gpa + hole->size;
	}
	return 0;
}

static bool overlap(uint64_t first, uint64_t size, uint64_t other, uint64_t other_size)
{
	return first < other + other_size && other < first + size;
}

static int remove_slot(struct kvmpy_translate *t, uint32_t i)
{
	int error = unmap(t, t->slots[i].gpa, t->slots[i].size);

	free(t->slots[i].code);
	t->slots[i] = t->slots[--t->slot_count];
	t->holes_open = false;
	return error ? -EINVAL : 0;
}

static int add_slot(struct kvmpy_translate *t, struct translate_slot *slot)
{
	if (t->slot_count == TRANSLATE_SLOTS)
		return -ENOSPC;
	for (uint32_t i = 0; i < t->slot_count; i++)
		if (overlap(slot->gpa, slot->size, t->slots[i].gpa, t->slots[i].size))
			return -EEXIST;
	for (uint32_t i = t->hole_count; i--;)
		if (overlap(slot->gpa, slot->size, t->holes[i]->gpa, t->holes[i]->size))
			close_hole(t, i);
	t->holes_open = false;
	if (unicorn.map(t->unicorn, slot->gpa, slot->size, UNICORN_ALL, slot->host))
		return -ENOMEM;
	/* Only what is protected after it was mapped keeps writes out; mapping it read-only doesn't. */
	if (slot->readonly)
		protect(t, slot->gpa, slot->size, UNICORN_READ | UNICORN_EXECUTE);
	if (!translate_new_stores(t, slot)) {
		unmap(t, slot->gpa, slot->size);
		return -ENOMEM;
	}
	t->slots[t->slot_count++] = *slot;
	return 0;
}

/*
 * As KVM_SET_USER_MEMORY_REGION: makes, changes or (size 0) deletes a slot. -EINVAL, -EEXIST for an overlap, -ENOSPC,
 * -ENOMEM.
 */
int kvmpy_translate_map(struct kvmpy_vcpu *vcpu, uint32_t number, uint64_t gpa, uint64_t size, void *host, bool readonly)
{
	struct kvmpy_translate *t = vcpu->engine;
	struct translate_slot slot = { .gpa = gpa, .size = size, .host = host, .number = number, .readonly = readonly };
	int error = 0;

	if ((gpa | size | (uint64_t)host) & (PAGE - 1) || gpa >= TRANSLATE_ADDRESSES ||
	    size > TRANSLATE_ADDRESSES - gpa)
		return -EINVAL;
	translate_park(t);
	for (uint32_t i = 0; i < t->slot_count; i++)
		if (t->slots[i].number == number) {
			error = remove_slot(t, i);
			break;
		}
	if (!error && size)
		error = add_slot(t, &slot);
	unicorn.flush_tlb(t->cpu);
	translate_forget_code(t);
	translate_renew_views(t);
	return error;
}

void translate_note_written(struct kvmpy_translate *t, uint64_t gpa, uint64_t size)
{
	if (t->wrote_count == TRANSLATE_WROTE) {	/* all there is stands for too many */
		t->wrote_count = 1;
		t->wrote[0].gpa = 0;
		t->wrote[0].size = TRANSLATE_ADDRESSES;
	} else {
		t->wrote[t->wrote_count].gpa = gpa;
		t->wrote[t->wrote_count++].size = size;
	}
	translate_attend(t, ATTENTION_WROTE);
}

/* The host wrote to memory, which may be code: from any thread. It is heeded before the guest is next entered. */
void kvmpy_translate_wrote(struct kvmpy_vcpu *vcpu, uint64_t gpa, uint64_t size)
{
	struct kvmpy_translate *t = vcpu->engine;

	pthread_mutex_lock(&t->lock);
	translate_note_written(t, gpa, size);
	pthread_mutex_unlock(&t->lock);
}

void translate_forget(struct kvmpy_translate *t, uint64_t gpa, uint64_t size)
{
	for (uint32_t i = 0; i < t->slot_count; i++) {
		const struct translate_slot *slot = &t->slots[i];
		uint64_t first = gpa > slot->gpa ? gpa : slot->gpa;
		uint64_t end = gpa + size < slot->gpa + slot->size ? gpa + size : slot->gpa + slot->size, ram;

		if (first >= end)
			continue;
		ram = unicorn.ram_of_host(t->unicorn, slot->host + (first - slot->gpa));
		unicorn.forget_code(t->unicorn, ram, ram + (end - first));
	}
}

void translate_forget_written(struct kvmpy_translate *t)
{
	pthread_mutex_lock(&t->lock);
	for (uint32_t i = 0; i < t->wrote_count; i++) {
		if (t->wrote[i].size >= 64 << 20) {	/* dearer than to begin anew */
			translate_forget_code(t);
			break;
		}
		translate_forget(t, t->wrote[i].gpa, t->wrote[i].size);
	}
	t->wrote_count = 0;
	__atomic_fetch_and(&t->attention, ~ATTENTION_WROTE, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&t->lock);
}

/* KVM_TRANSLATE: where a linear address lies, or -1. */
int64_t kvmpy_translate_linear(struct kvmpy_vcpu *vcpu, uint64_t linear)
{
	uint64_t gpa;

	return translate_linear(vcpu->engine, linear, &gpa) ? (int64_t)gpa : -1;
}
