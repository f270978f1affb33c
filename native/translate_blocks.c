// SPDX-License-Identifier: MIT
/*
 * Getting control when a block of translated code begins, at the price of one comparison a block.
 *
 * The library has a hook for it, but that is a call for every block, and so is its own look whether to stop, of which there
 * is one where a block begins, and one behind every access to memory. Once a block is made, the engine writes over them.
 * Where it begins:
 *
 *	cmpl $0, nudge(%rbp)	rbp points to the CPU's state
 *	je 1f
 *	call *begin(%rbp)
 * 1:
 *
 * and nothing behind an access: no hook of the engine's returns into a block that is to be left. Whoever has something for
 * a block's start to do sets nudge, too: see translate_attend().
 */
#define _GNU_SOURCE
#include <string.h>

#include "translate.h"

#define LOOK 17			/* bytes */
#define CODE_IN_BLOCK 32	/* pointer to a block's code */

static int (*original_code)(void *context, void *block);
static void *library_look;	/* the function that a block's code calls first */
static __thread struct kvmpy_translate *current;

struct kvmpy_translate *translate_current(void)
{
	return current;
}

void translate_running(struct kvmpy_translate *t)
{
	current = t;
}

void translate_at_begin(void);

__asm__(
	".text\n"
	".type translate_at_begin, @function\n"
	".hidden translate_at_begin\n"
	".globl translate_at_begin\n"
	"translate_at_begin:\n"
	"	mov %rbp, %rdi\n"
	"	mov (%rsp), %rsi\n"
	"	jmp translate_begin_block\n"
	".size translate_at_begin, . - translate_at_begin\n"
);

/* The next look from `code` on, or NULL: mov $engine, %rdi; xor %esi, %esi; call library_look */
static uint8_t *find_look(const struct kvmpy_translate *t, uint8_t *code, const uint8_t *end)
{
	uint8_t begin[LOOK - 4] = "\x48\xbf........\x33\xf6\xe8";

	memcpy(begin + 2, &t->unicorn, 8);
	while ((code = memmem(code, end - code, begin, sizeof(begin))) && code + LOOK <= end) {
		int32_t distance = (uint8_t *)library_look - (code + LOOK);

		if (!memcmp(code + sizeof(begin), &distance, sizeof(distance)))
			return code;
		code++;
	}
	return NULL;
}

static void write_start(uint8_t *code)
{
	uint32_t nudge = offsetof(struct unicorn_cpu, nudge), begin = offsetof(struct unicorn_cpu, begin);

	memcpy(code, "\x83\xbd", 2);
	memcpy(code + 2, &nudge, 4);
	memcpy(code + 6, "\0\x74\x08\xff\x95", 5);
	memcpy(code + 11, &begin, 4);
	memcpy(code + 15, "\x66\x90", 2);
}

static void write_nothing(uint8_t *code)
{
	memcpy(code, "\x66\x0f\x1f\x84\0\0\0\0\0", 9);
	memcpy(code + 9, "\x0f\x1f\x84\0\0\0\0\0", 8);
}

static int make_code(void *context, void *block)
{
	struct kvmpy_translate *t = current;
	int size = original_code(context, block);
	uint8_t *code, *look;

	if (!t || size < LOOK)
		return size;
	memcpy(&code, (uint8_t *)block + CODE_IN_BLOCK, sizeof(code));
	look = find_look(t, code, code + size);
	if (look != code) {
		t->odd_blocks++;
		return size;
	}
	write_start(code);
	while ((look = find_look(t, look + LOOK, code + size)))
		write_nothing(look);
	return size;
}

void translate_prepare_blocks(struct kvmpy_translate *t)
{
	t->env->begin = translate_at_begin;
	t->env->engine = t;
}

bool translate_guard_blocks(void *library, void *look)
{
	library_look = look;
	return translate_interpose(library, "tcg_gen_code_x86_64", make_code, &original_code);
}
