// SPDX-License-Identifier: MIT
/*
 * Standing between two parts of the Unicorn library: it calls its own exported functions through slots that the dynamic
 * linker fills in, and a slot can be given another function. That reaches places for which the library has no hooks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <string.h>

#include "translate.h"

static const ElfW(Dyn) *find(const ElfW(Dyn) *entry, ElfW(Sxword) tag)
{
	for (; entry->d_tag != DT_NULL; entry++)
		if (entry->d_tag == tag)
			return entry;
	return NULL;
}

/* The slot through which the library calls the function of that name, if that is still the function in it. */
static void **slot_of(void *library, const char *name)
{
	const ElfW(Dyn) *table, *size, *symbols, *strings;
	const ElfW(Rela) *relocation;
	void *function = dlsym(library, name);
	struct link_map *map;

	if (!function || dlinfo(library, RTLD_DI_LINKMAP, &map))
		return NULL;
	table = find(map->l_ld, DT_JMPREL);
	size = find(map->l_ld, DT_PLTRELSZ);
	symbols = find(map->l_ld, DT_SYMTAB);
	strings = find(map->l_ld, DT_STRTAB);
	if (!table || !size || !symbols || !strings)
		return NULL;
	relocation = (const ElfW(Rela) *)table->d_un.d_ptr;
	for (size_t i = 0; i < size->d_un.d_val / sizeof(*relocation); i++, relocation++) {
		const ElfW(Sym) *symbol = (const ElfW(Sym) *)symbols->d_un.d_ptr + ELF64_R_SYM(relocation->r_info);
		void **slot = (void **)(map->l_addr + relocation->r_offset);

		if (!strcmp((const char *)strings->d_un.d_ptr + symbol->st_name, name))
			return *slot == function ? slot : NULL;
	}
	return NULL;
}

/* From now on the library calls `instead`; *original is what it called before. False if it isn't as expected. */
bool translate_interpose(void *library, const char *name, void *instead, void *original)
{
	void **slot = slot_of(library, name);

	if (!slot)
		return false;
	memcpy(original, slot, sizeof(*slot));
	*slot = instead;
	return true;
}
