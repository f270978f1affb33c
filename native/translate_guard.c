// SPDX-License-Identifier: MIT
/*
 * Code that makes Unicorn's translator abort the process, or write where it shouldn't. No hook of its is called before a
 * block is translated, so the engine stands between: it takes over the slot through which the library calls its own
 * gen_intermediate_code().
 *
 * LOCK BT, BTS, BTR and BTC of a register are invalid, but the translator doesn't see that. Blocks are cut so that such an
 * instruction begins one (no instruction is longer than 15 bytes), and is then translated with UD2 in its place.
 *
 * AAM and others each leave one or more of a block's 512 temporary values unreturned, which nobody counts: no block
 * has more than MOST instructions.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <string.h>

#include "translate.h"

#define LONGEST TRANSLATE_LONGEST
#define WINDOW (4096 + LONGEST)		/* no block is longer than a page */
#define UD2 0x0b
#define MOST 48

typedef void translate_block(void *cpu, void *block, int instructions);

static translate_block *original;
static __thread struct kvmpy_translate *current;

void translate_guard(struct kvmpy_translate *t)
{
	current = t;
}

static bool is_prefix(uint8_t byte, bool code64)
{
	return (code64 && (byte & 0xf0) == 0x40) || (byte & 0xe7) == 0x26 || (byte >= 0x64 && byte <= 0x67) ||
	       (byte & 0xfd) == 0xf0 || byte == 0xf3;
}

/* Whether the bytes are such an instruction, behind its prefixes, of which one was LOCK; *at is then its second byte's. */
static bool poisonous(const uint8_t *code, size_t size, bool code64, size_t *at)
{
	bool lock = false;
	size_t i = 0;

	while (i < size && i < LONGEST && is_prefix(code[i], code64))
		lock |= code[i++] == 0xf0;
	if (!lock || i + 2 >= size || code[i] != 0x0f || code[i + 2] < 0xc0)
		return false;
	*at = i + 1;
	switch (code[i + 1]) {
	case 0xa3:
	case 0xab:
	case 0xb3:
	case 0xbb:
		return true;
	case 0xba:
		return (code[i + 2] >> 3 & 7) >= 4;
	}
	return false;
}

/* Where the first one may begin, or size. */
static size_t search(const uint8_t *code, size_t size, bool code64)
{
	const uint8_t *lock = code;
	size_t at;

	while ((lock = memchr(lock, 0xf0, size - (lock - code)))) {
		if (poisonous(lock, size - (lock - code), code64, &at)) {
			while (lock > code && is_prefix(lock[-1], code64))
				lock--;
			return lock - code;
		}
		lock++;
	}
	return size;
}

static void translate_poison(struct kvmpy_translate *t, uint64_t linear, size_t at, void *cpu, void *block)
{
	uint64_t gpa;
	uint8_t *host = translate_linear(t, linear + at, &gpa) ? translate_host(t, gpa, true) : NULL, byte;

	if (!host)		/* read-only: nothing more can be done */
		return original(cpu, block, 1);
	byte = *host;
	*host = UD2;
	original(cpu, block, 1);
	*host = byte;
}

static void guarded(void *cpu, void *block, int instructions)
{
	struct kvmpy_translate *t = current;
	uint8_t code[WINDOW];
	uint64_t linear;
	size_t size, first, at;
	bool code64;

	if (!t || t->cpu != cpu)
		return original(cpu, block, instructions);
	code64 = t->env->mode & MODE_CODE64;
	linear = t->env->segments[SEG_CS].base + t->env->rip;
	size = translate_read(t, linear, code, sizeof(code));
	if (poisonous(code, size, code64, &at))
		return translate_poison(t, linear, at, cpu, block);
	if (instructions > MOST)
		instructions = MOST;
	first = search(code, size, code64);
	if (first < size && (size_t)instructions > first / LONGEST + !(first / LONGEST))
		instructions = first / LONGEST + !(first / LONGEST);
	original(cpu, block, instructions);
}

static const ElfW(Dyn) *find(const ElfW(Dyn) *entry, ElfW(Sxword) tag)
{
	for (; entry->d_tag != DT_NULL; entry++)
		if (entry->d_tag == tag)
			return entry;
	return NULL;
}

/* Takes over the slot of the library's call; false if it isn't as expected. */
bool translate_guard_library(void *library, const char *name, void *function)
{
	const ElfW(Dyn) *table, *size, *symbols, *strings;
	const ElfW(Rela) *relocation;
	struct link_map *map;

	if (dlinfo(library, RTLD_DI_LINKMAP, &map))
		return false;
	table = find(map->l_ld, DT_JMPREL);
	size = find(map->l_ld, DT_PLTRELSZ);
	symbols = find(map->l_ld, DT_SYMTAB);
	strings = find(map->l_ld, DT_STRTAB);
	if (!table || !size || !symbols || !strings)
		return false;
	relocation = (const ElfW(Rela) *)table->d_un.d_ptr;
	for (size_t i = 0; i < size->d_un.d_val / sizeof(*relocation); i++, relocation++) {
		const ElfW(Sym) *symbol = (const ElfW(Sym) *)symbols->d_un.d_ptr + ELF64_R_SYM(relocation->r_info);
		void **slot = (void **)(map->l_addr + relocation->r_offset);

		if (strcmp((const char *)strings->d_un.d_ptr + symbol->st_name, name))
			continue;
		if (*slot != function)
			return false;
		original = (translate_block *)function;
		*slot = guarded;
		return true;
	}
	return false;
}
