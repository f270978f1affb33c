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
 * a block's start to do sets the nudge, too: see translate_attend().
 *
 * A look passes the library's object and 0 to a function, in the shortest code that the addresses allow. So its length
 * depends on where the system put the object, the code and the library: 12 to 18 bytes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "translate.h"

#define CODE_IN_BLOCK 32	/* pointer to a block's code */
#define START 9			/* bytes of what is written where a block begins */

struct look {
	uint8_t *code;		/* NULL: there is none */
	size_t size;
};

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

/* Bytes of a call to the look's function at `call`: relative, or through a pointer; 0: it is none. */
static size_t calls_look(const uint8_t *call, const uint8_t *end)
{
	int32_t distance;
	void *function;

	if (end - call >= 5 && call[0] == 0xe8) {
		memcpy(&distance, call + 1, 4);
		return call + 5 + distance == (uint8_t *)library_look ? 5 : 0;
	}
	if (end - call < 6 || call[0] != 0xff || call[1] != 0x15)
		return 0;
	memcpy(&distance, call + 2, 4);
	if (distance < 0 || distance > end - (call + 6) - (ptrdiff_t)sizeof(function))
		return 0;
	memcpy(&function, call + 6 + distance, sizeof(function));
	return function == library_look ? 6 : 0;
}

/* Bytes in front of `end`, none of them before `code`, that load the library's object into rdi; 0: they don't. */
static size_t loads_object(const struct kvmpy_translate *t, const uint8_t *code, const uint8_t *end)
{
	uint64_t object = (uint64_t)t->unicorn;
	uint8_t whole[10] = "\x48\xbf", relative[7] = "\x48\x8d\x3d", low[5] = "\xbf";
	uint32_t distance = object - (uint64_t)end;

	memcpy(whole + 2, &object, 8);
	memcpy(relative + 3, &distance, 4);
	memcpy(low + 1, &object, 4);
	if (end - code >= 10 && !memcmp(end - 10, whole, 10))
		return 10;
	if ((int64_t)(object - (uint64_t)end) == (int32_t)distance && end - code >= 7 && !memcmp(end - 7, relative, 7))
		return 7;
	return !(object >> 32) && end - code >= 5 && !memcmp(end - 5, low, 5) ? 5 : 0;
}

/* The next one from `code` on. */
static struct look find_look(const struct kvmpy_translate *t, uint8_t *code, const uint8_t *end)
{
	for (uint8_t *at = code; (at = memmem(at, end - at, "\x33\xf6", 2)); at++) {	/* xor %esi, %esi */
		size_t before = loads_object(t, code, at), behind = before ? calls_look(at + 2, end) : 0;

		if (behind)
			return (struct look){ at - before, before + 2 + behind };
	}
	return (struct look){ NULL, 0 };
}

static uint8_t *behind(struct look look)
{
	return look.code + look.size;
}

static void write_nothing(uint8_t *code, size_t size)
{
	static const char *const nothings[] = {
		"", "\x90", "\x66\x90", "\x0f\x1f\0", "\x0f\x1f\x40\0", "\x0f\x1f\x44\0\0", "\x66\x0f\x1f\x44\0\0",
		"\x0f\x1f\x80\0\0\0\0", "\x0f\x1f\x84\0\0\0\0\0", "\x66\x0f\x1f\x84\0\0\0\0\0",
	};

	while (size) {
		size_t part = size > 9 ? 9 : size;

		memcpy(code, nothings[part], part);
		code += part;
		size -= part;
	}
}

static void write_start(struct look look)
{
	enum { FRONT = 0x100 - sizeof(struct unicorn_front) };	/* from rbp on, as a byte */
	static const uint8_t start[START] = {
		0x83, 0x7d, FRONT + offsetof(struct unicorn_front, nudge), 0,
		0x74, 3,
		0xff, 0x55, FRONT + offsetof(struct unicorn_front, begin),
	};

	memcpy(look.code, start, START);
	write_nothing(look.code + START, look.size - START);
}

static int make_code(void *context, void *block)
{
	struct kvmpy_translate *t = current;
	int size = original_code(context, block);
	struct look look;
	uint8_t *code;

	if (!t || size < 0)
		return size;
	translate_forget_places(t);
	memcpy(&code, (uint8_t *)block + CODE_IN_BLOCK, sizeof(code));
	look = find_look(t, code, code + size);
	if (look.code != code) {
		/* Nothing could get a vCPU out of it. None is known; a block that isn't as expected is no reason to hang. */
		t->odd_blocks++;
		if (t->inside)
			translate_stop(t, -ENOTSUP);
		return size;
	}
	write_start(look);
	while ((look = find_look(t, behind(look), code + size)).code)
		write_nothing(look.code, look.size);
	return size;
}

void translate_prepare_blocks(struct kvmpy_translate *t)
{
	unicorn_front(t->env)->begin = translate_at_begin;
	t->env->engine = t;
}

bool translate_guard_blocks(void *library, void *look)
{
	library_look = look;
	return translate_interpose(library, "tcg_gen_code_x86_64", make_code, &original_code);
}
