// SPDX-License-Identifier: MIT
/*
 * MMIO straight from translated code. What isn't memory is accessed by a function of the library, which finds out what is at
 * the address, where in its code the guest is, asks its hooks, and then reads or writes as well. Most accesses are aligned,
 * to a page that has been accessed before, and by an instruction that has been here before: the engine does those itself.
 */
#include <string.h>

#include "translate.h"

#define PAGE 4096ull
#define NONE 0xffffffffu	/* no flag_operation */

typedef uint64_t load_function(struct unicorn_cpu *env, uint64_t linear, uint32_t how, uintptr_t where);
typedef void store_function(struct unicorn_cpu *env, uint64_t linear, uint64_t value, uint32_t how, uintptr_t where);

static load_function *original_load[4];
static store_function *original_store[4];

/* Other code may come to stand where the places are. */
void translate_forget_places(struct kvmpy_translate *t)
{
	memset(t->places, 0, sizeof(t->places));
}

/*
 * Where the guest is when its code is at `where`: rip, and how its flags come about unless that is known when it runs only.
 * The library has to search its code for it.
 */
static void come_to(struct kvmpy_translate *t, uintptr_t where)
{
	struct translate_place *place = &t->places[where / 4 % TRANSLATE_PLACES];
	struct unicorn_cpu *env = t->env;

	if (unlikely(place->where != where)) {
		uint32_t operation = env->flag_operation;

		env->flag_operation = NONE;
		unicorn.restore_state(t->cpu, where, true);
		*place = (struct translate_place){ where, env->rip, env->flag_operation };
		if (env->flag_operation == NONE)
			env->flag_operation = operation;
		return;
	}
	env->rip = place->rip;
	if (place->flag_operation != NONE)
		env->flag_operation = place->flag_operation;
}

/* The access if it is one to MMIO and nothing is special about it; what was read is in mmio.last. False: nothing was done. */
static inline bool access_directly(struct unicorn_cpu *env, uint64_t linear, uint32_t size, uint64_t value, bool is_write,
				   uint32_t how, uintptr_t where)
{
	struct kvmpy_translate *t = env->engine;
	const struct unicorn_page *page;

	if (unlikely(!t || !t->inside || linear & (size - 1)))
		return false;
	page = unicorn_page(env, how & 15, linear);
	if ((is_write ? page->write : page->read) != ((linear & ~(PAGE - 1)) | UNICORN_MMIO))
		return false;
	come_to(t, where);
	t->mmio.left = t->mmio.beyond = 0;
	translate_access_hole(t, (page->gpa & ~(PAGE - 1)) | (linear & (PAGE - 1)), size, value, is_write);
	return true;
}

static inline uint64_t load(struct unicorn_cpu *env, uint64_t linear, int power, uint32_t how, uintptr_t where)
{
	struct kvmpy_translate *t = env->engine;
	uint64_t value = 0;

	if (!access_directly(env, linear, 1u << power, 0, false, how, where))
		return original_load[power](env, linear, how, where);
	memcpy(&value, t->mmio.last.data, 1u << power);
	return value;
}

static inline void store(struct unicorn_cpu *env, uint64_t linear, uint64_t value, int power, uint32_t how, uintptr_t where)
{
	value &= UINT64_MAX >> (64 - (8 << power));
	if (!access_directly(env, linear, 1u << power, value, true, how, where))
		original_store[power](env, linear, value, how, where);
}

#define ACCESSES(power) \
	static uint64_t load_##power(struct unicorn_cpu *env, uint64_t linear, uint32_t how, uintptr_t where) \
	{ \
		return load(env, linear, power, how, where); \
	} \
	static void store_##power(struct unicorn_cpu *env, uint64_t linear, uint64_t value, uint32_t how, uintptr_t where) \
	{ \
		store(env, linear, value, power, how, where); \
	}

ACCESSES(0)
ACCESSES(1)
ACCESSES(2)
ACCESSES(3)

bool translate_guard_accesses(void *library)
{
	static const struct { const char *name; void *instead, *original; } functions[] = {
		{ "helper_ret_ldub_mmu_x86_64", load_0, &original_load[0] },
		{ "helper_le_lduw_mmu_x86_64", load_1, &original_load[1] },
		{ "helper_le_ldul_mmu_x86_64", load_2, &original_load[2] },
		{ "helper_le_ldq_mmu_x86_64", load_3, &original_load[3] },
		{ "helper_ret_stb_mmu_x86_64", store_0, &original_store[0] },
		{ "helper_le_stw_mmu_x86_64", store_1, &original_store[1] },
		{ "helper_le_stl_mmu_x86_64", store_2, &original_store[2] },
		{ "helper_le_stq_mmu_x86_64", store_3, &original_store[3] },
	};

	for (size_t i = 0; i < sizeof(functions) / sizeof(*functions); i++)
		if (!translate_interpose_in_table(library, functions[i].name, functions[i].instead, functions[i].original))
			return false;
	return true;
}
