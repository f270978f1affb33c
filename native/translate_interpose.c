// SPDX-License-Identifier: MIT
/*
 * Standing between two parts of the Unicorn library: it calls its own exported functions through slots that the dynamic
 * linker fills in, or looks them up in tables of its own, filled in likewise. Either can be given another function. That
 * reaches places for which the library has no hooks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "translate.h"

#define PAGE 4096ul

static const ElfW(Dyn) *find(const ElfW(Dyn) *entry, ElfW(Sxword) tag)
{
	for (; entry->d_tag != DT_NULL; entry++)
		if (entry->d_tag == tag)
			return entry;
	return NULL;
}

struct pointers {
	ElfW(Sxword) table, size;	/* tags of the relocations */
	uint32_t type;
};

static const struct pointers calls = { DT_JMPREL, DT_PLTRELSZ, R_X86_64_JUMP_SLOT };
static const struct pointers tables = { DT_RELA, DT_RELASZ, R_X86_64_64 };

/* Where the library has a pointer to the function of that name, if there is one place and it is that function still. */
static void **slot_of(const struct link_map *map, const struct pointers *kind, const char *name, const void *function)
{
	const ElfW(Dyn) *table = find(map->l_ld, kind->table), *size = find(map->l_ld, kind->size);
	const ElfW(Dyn) *symbols = find(map->l_ld, DT_SYMTAB), *strings = find(map->l_ld, DT_STRTAB);
	const ElfW(Rela) *relocation;
	void **found = NULL;

	if (!table || !size || !symbols || !strings)
		return NULL;
	relocation = (const ElfW(Rela) *)table->d_un.d_ptr;
	for (size_t i = 0; i < size->d_un.d_val / sizeof(*relocation); i++, relocation++) {
		const ElfW(Sym) *symbol = (const ElfW(Sym) *)symbols->d_un.d_ptr + ELF64_R_SYM(relocation->r_info);
		void **slot = (void **)(map->l_addr + relocation->r_offset);

		if (ELF64_R_TYPE(relocation->r_info) != kind->type ||
		    strcmp((const char *)strings->d_un.d_ptr + symbol->st_name, name))
			continue;
		if (found || *slot != function)
			return NULL;
		found = slot;
	}
	return found;
}

/* The part of the library that is read-only once it is relocated, in whole pages; a length of 0: there is none. */
static struct iovec sealed_part(const struct link_map *map)
{
	const ElfW(Ehdr) *head = (const ElfW(Ehdr) *)map->l_addr;
	const ElfW(Phdr) *part = (const ElfW(Phdr) *)(map->l_addr + head->e_phoff);

	for (int i = 0; i < head->e_phnum; i++, part++)
		if (part->p_type == PT_GNU_RELRO) {
			uintptr_t first = (map->l_addr + part->p_vaddr) & -PAGE;

			return (struct iovec){ (void *)first, ((map->l_addr + part->p_vaddr + part->p_memsz) & -PAGE) - first };
		}
	return (struct iovec){ NULL, 0 };
}

static bool replace(void *library, const struct pointers *kind, const char *name, void *instead, void *original)
{
	void *function = dlsym(library, name), **slot;
	struct link_map *map;
	struct iovec sealed;
	bool is_sealed;

	if (!function || dlinfo(library, RTLD_DI_LINKMAP, &map))
		return false;
	slot = slot_of(map, kind, name, function);
	if (!slot)
		return false;
	sealed = sealed_part(map);
	is_sealed = (uintptr_t)slot - (uintptr_t)sealed.iov_base < sealed.iov_len;
	if (is_sealed && mprotect(sealed.iov_base, sealed.iov_len, PROT_READ | PROT_WRITE))
		return false;
	memcpy(original, slot, sizeof(*slot));
	*slot = instead;
	return !is_sealed || !mprotect(sealed.iov_base, sealed.iov_len, PROT_READ);
}

/* From now on the library calls `instead`; *original is what it called before. False if it isn't as expected. */
bool translate_interpose(void *library, const char *name, void *instead, void *original)
{
	return replace(library, &calls, name, instead, original);
}

/* The same for a function that the library finds in a table. */
bool translate_interpose_in_table(void *library, const char *name, void *instead, void *original)
{
	return replace(library, &tables, name, instead, original);
}
