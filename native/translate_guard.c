// SPDX-License-Identifier: MIT
/*
 * Instructions that mustn't reach Unicorn's translator, for it aborts the process, or takes them for others: the engine
 * stands between it and the loop that goes through a block's instructions. A block ends before such an instruction, and
 * one that begins with it isn't made: the instruction is #UD.
 *
 * LOCK BT, BTS, BTR and BTC of a register are invalid, but the translator doesn't see that, and writes where it shouldn't.
 *
 * VEX and EVEX: there is no AVX (CPUID has none, XCR0 can't have it), but the translator runs 128-bit forms as SSE.
 * What remains are the instructions of BMI1 and BMI2, which CPUID has. AMD's XOP begins as POP with an opcode extension
 * that POP doesn't have, XBEGIN and XABORT as MOV to a register with one: the translator doesn't look at those.
 *
 * CMPXCHG8B and CMPXCHG16B take the flags as the CPU's state has them, where they are only when a block begins: elsewhere
 * what comes out has bits of anything. So with each a block begins.
 *
 * AAM and others each leave one or more of a block's 512 temporary values unreturned, which nobody counts: no block
 * has more than MOST instructions.
 */
#include <string.h>

#include "translate.h"

#define LONGEST TRANSLATE_LONGEST
#define INVALID_OPCODE 6
#define MOST 48

enum { GO_ON, TOO_MANY };	/* values of translator.end */
enum verdict { FINE, BEGINS_BLOCK, INVALID };	/* on an instruction */

/* What the library keeps of the block it is translating, and its functions for that. */
struct translator {
	const void *block;
	uint64_t first, next;		/* linear addresses: of the block, of the instruction */
	int32_t end;
	int32_t count;			/* of instructions, with this one */
	int32_t most;
};

typedef void translate_one(struct translator *translator, void *cpu);

struct functions {
	void *start, *block_start, *instruction_start, *breakpoint;
	translate_one *instruction;
	void *block_end, *unused[2];
};

static void (*original_loop)(const struct functions *functions, struct translator *translator, void *cpu, void *block,
			     int most);
static translate_one *original_one;

static bool is_prefix(uint8_t byte, bool code64)
{
	return (code64 && (byte & 0xf0) == 0x40) || (byte & 0xe7) == 0x26 || (byte >= 0x64 && byte <= 0x67) ||
	       (byte & 0xfd) == 0xf0 || byte == 0xf3;
}

/* LOCK, and BT or one of its relatives on a register: bytes from the opcode on. */
static bool is_locked_bit_test(const uint8_t *code, size_t size)
{
	if (size < 3 || code[0] != 0x0f || code[2] < 0xc0)
		return false;
	switch (code[1]) {
	case 0xa3:
	case 0xab:
	case 0xb3:
	case 0xbb:
		return true;
	case 0xba:
		return (code[2] >> 3 & 7) >= 4;
	}
	return false;
}

/* The three-byte VEX instructions on general registers: SDM vol. 2, ANDN, BEXTR, BLSI, BLSMSK, BLSR, BZHI, MULX, ... */
static bool is_bmi(const uint8_t *code, size_t size)
{
	uint8_t map = code[1] & 0x1f, group, extension;

	if (size < 5 || code[2] & 4)		/* VEX.L */
		return false;
	extension = code[2] & 3;		/* what stands for 66, F3, F2 */
	group = code[4] >> 3 & 7;
	if (map == 3)
		return code[3] == 0xf0 && extension == 3;
	if (map != 2)
		return false;
	switch (code[3]) {
	case 0xf2: return extension == 0;
	case 0xf3: return extension == 0 && group >= 1 && group <= 3;
	case 0xf5: return extension != 1;
	case 0xf6: return extension == 3;
	case 0xf7: return true;
	}
	return false;
}

/* VEX, EVEX and XOP but for BMI. Outside 64-bit mode they are LES, LDS and BOUND with a register, which there isn't. */
static bool is_vector(const struct kvmpy_translate *t, const uint8_t *code, size_t size, size_t prefixes)
{
	bool code64 = t->env->mode & MODE_CODE64;

	if (size >= 2 && code[0] == 0x8f)
		return code[1] >> 3 & 7;
	if (size < 2 || (code[0] != 0xc4 && code[0] != 0xc5 && code[0] != 0x62))
		return false;
	if (!code64 && code[1] < 0xc0)
		return false;
	if (code[0] != 0xc4 || !translate_protected(t) || t->env->mode & MODE_VM86)
		return true;
	/* Segment overrides and an address size may stand before VEX, anything else not. */
	for (size_t i = 1; i <= prefixes; i++)
		if (code[-i] == 0xf0 || code[-i] == 0xf2 || code[-i] == 0xf3 || code[-i] == 0x66 ||
		    (code64 && (code[-i] & 0xf0) == 0x40))
			return true;
	return size >= 5 && !is_bmi(code, size);
}

/* MOV of an immediate to a register, but not /0. */
static bool is_odd_move(const uint8_t *code, size_t size)
{
	return size >= 2 && (code[0] & 0xfe) == 0xc6 && code[1] > 0xc7;
}

static bool is_exchange(const uint8_t *code, size_t size)
{
	return size >= 3 && code[0] == 0x0f && code[1] == 0xc7 && code[2] < 0xc0 && (code[2] >> 3 & 7) == 1;
}

static enum verdict judge(struct kvmpy_translate *t, uint64_t linear)
{
	uint8_t code[LONGEST];
	size_t size = translate_read(t, linear, code, sizeof(code)), at = 0;
	bool lock = false;

	while (at < size && is_prefix(code[at], t->env->mode & MODE_CODE64))
		lock |= code[at++] == 0xf0;
	if ((lock && is_locked_bit_test(code + at, size - at)) || is_odd_move(code + at, size - at) ||
	    is_vector(t, code + at, size - at, at))
		return INVALID;
	return is_exchange(code + at, size - at) ? BEGINS_BLOCK : FINE;
}

static void guarded_one(struct translator *translator, void *cpu)
{
	struct kvmpy_translate *t = translate_current();
	enum verdict verdict = judge(t, translator->next);
	bool first = translator->count == 1;

	if (verdict == FINE || (verdict == BEGINS_BLOCK && first))
		return original_one(translator, cpu);
	if (first) {
		if (translate_single_undefined(t))
			unicorn.leave_code(t->cpu);
		unicorn.raise(t->env, INVALID_OPCODE, 0);
	}
	translator->end = TOO_MANY;
}

static void guarded_loop(const struct functions *functions, struct translator *translator, void *cpu, void *block,
			 int most)
{
	struct kvmpy_translate *t = translate_current();
	struct functions guarded = *functions;

	if (!t || t->cpu != cpu)
		return original_loop(functions, translator, cpu, block, most);
	if (unlikely(t->single.on)) {
		translate_single_next(t);
		most = 1;
	}
	original_one = functions->instruction;
	guarded.instruction = guarded_one;
	original_loop(&guarded, translator, cpu, block, most < MOST ? most : MOST);
	translate_keep_block(t, translator->first, translator->next - translator->first);
}

bool translate_guard_instructions(void *library)
{
	return translate_interpose(library, "translator_loop_x86_64", guarded_loop, &original_loop);
}
