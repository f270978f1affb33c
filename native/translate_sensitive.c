// SPDX-License-Identifier: MIT
/*
 * Instructions that Unicorn gets wrong and has no hook for: each new block of code is searched for their bytes, and a code
 * hook put in front of what is found looks whether it is the instruction, and does or checks its work.
 *
 * RDMSR, WRMSR  unknown MSRs read as 0, none exits
 * MOV to CR     what the manuals forbid is accepted
 * MOV to DR     breakpoints in DR7 can send uc_emu_start() into an endless loop
 * LTR           a null selector is accepted; an interrupt then ends the process
 * ICEBP         sends uc_emu_start() into an endless loop
 */
#include <string.h>

#include "translate.h"

#define GENERAL_PROTECTION 13
#define CR0_PE 1ull
#define CR0_NW (1ull << 29)
#define CR0_CD (1ull << 30)
#define CR0_PG (1ull << 31)
#define CR4_DE (1ull << 3)
#define CR4_PAE (1ull << 5)
#define CR4_KNOWN 0x1507ffull	/* up to OSXMMEXCPT; FSGSBASE, OSXSAVE, SMEP */
#define EFER_LME (1ull << 8)
#define MASK_32 0xffffffffull

static void refuse(struct kvmpy_translate *t)
{
	unicorn.raise(t->env, GENERAL_PROTECTION, 0);
}

/* SDM vol. 2, MOV to control registers. */
static bool allowed_cr0(const struct unicorn_cpu *env, uint64_t value)
{
	if (value >> 32 || (value & CR0_PG && !(value & CR0_PE)) || (value & CR0_NW && !(value & CR0_CD)))
		return false;
	if (value & CR0_PG && !(env->cr[0] & CR0_PG) && env->efer & EFER_LME)
		return env->cr[4] & CR4_PAE && !(env->segments[SEG_CS].flags >> 21 & 1);
	return value & CR0_PG || !(env->mode & MODE_CODE64);
}

static bool allowed_cr(const struct unicorn_cpu *env, int number, uint64_t value)
{
	switch (number) {
	case 0:
		return allowed_cr0(env, value);
	case 3:
		return !(env->mode & MODE_LONG) || !(value >> 40);
	case 4:
		return !(value & ~CR4_KNOWN) && (value & CR4_PAE || !(env->mode & MODE_LONG));
	case 8:
		return value < 16;
	}
	return true;
}

/* The general register and the special one that ModR/M and REX name. */
static uint64_t operand(const struct kvmpy_translate *t, const struct translate_instruction *insn, int *number)
{
	uint8_t modrm = insn->bytes[insn->length];
	uint64_t value = t->env->regs[(modrm & 7) | (insn->rex & 1) << 3];

	*number = (modrm >> 3 & 7) | (insn->rex & 4) << 1;
	return t->env->mode & MODE_CODE64 ? value : value & MASK_32;
}

static void move_to_cr(struct kvmpy_translate *t, const struct translate_instruction *insn)
{
	int number;
	uint64_t value = operand(t, insn, &number);

	if (!allowed_cr(t->env, number, value))
		refuse(t);
}

/* Kept as registers; the guest's own breakpoints don't trigger. */
static void move_to_dr(struct kvmpy_translate *t, const struct translate_instruction *insn)
{
	struct unicorn_cpu *env = t->env;
	int number;
	uint64_t value = operand(t, insn, &number);

	if (number > 7 || ((number == 4 || number == 5) && env->cr[4] & CR4_DE))
		return;		/* #UD, as translated */
	number |= (number & 4) >> 1;
	if (number >= 6 && value >> 32)
		refuse(t);
	if (number == 6)
		value = (value & 0xe00f) | 0xffff0ff0;
	if (number == 7)
		value = (value & 0xffff2bff) | 0x400;
	env->dr[number] = value;
	translate_skip(t, insn->length + 1);
	unicorn.leave_code(t->cpu);
}

static void load_task(struct kvmpy_translate *t, const struct translate_instruction *insn)
{
	uint8_t modrm = insn->bytes[insn->length];
	uint64_t selector = t->env->regs[(modrm & 7) | (insn->rex & 1) << 3];

	if ((modrm >> 3 & 7) != 3)
		return;
	if (modrm >= 0xc0 && !(selector & 0xfffc))
		refuse(t);
	__atomic_fetch_or(&t->attention, ATTENTION_TASK, __ATOMIC_RELAXED);
}

/* As translated code leaves it after LTR with a null selector from memory, the library would abort the process. */
void translate_check_task(struct kvmpy_translate *t)
{
	struct unicorn_segment *tr = &t->env->tr;

	__atomic_fetch_and(&t->attention, ~ATTENTION_TASK, __ATOMIC_RELAXED);
	if (tr->flags & 0x8000 && (tr->flags >> 8 & 7) == 1)
		return;
	tr->flags = NO_TASK;
	tr->base = tr->limit = 0;
}

/* A trap like a single step's, whatever the gate's privilege. */
static void debug_trap(struct kvmpy_translate *t, const struct translate_instruction *insn)
{
	translate_skip(t, insn->length);
	translate_deliver(t, 1);
}

static void two_bytes(struct kvmpy_translate *t, const struct translate_instruction *insn)
{
	/* #GP above ring 0 and #UD of LTR in real mode need no help. */
	if (translate_protected(t) && (translate_cpl(t) || t->env->mode & MODE_VM86))
		return;
	switch (insn->bytes[insn->length - 1]) {
	case 0x00: load_task(t, insn); break;
	case 0x22: move_to_cr(t, insn); break;
	case 0x23: move_to_dr(t, insn); break;
	case 0x30: translate_do_msr(t, true); break;
	case 0x32: translate_do_msr(t, false); break;
	}
}

static void on_code(void *engine, uint64_t pc, uint32_t size, void *user)
{
	struct kvmpy_translate *t = user;
	struct translate_instruction *insn = &t->wait.insn;

	(void)engine;
	(void)pc;
	(void)size;
	translate_decode(t, insn);
	if (insn->opcode == 0xf1)
		debug_trap(t, insn);
	if (insn->opcode == 0x0f && insn->available > insn->length)
		two_bytes(t, insn);
	else if (insn->opcode == 0x0f && insn->available == insn->length && insn->bytes[insn->length - 1] >= 0x30)
		two_bytes(t, insn);
}

static bool hooked(const struct kvmpy_translate *t, uint64_t linear)
{
	for (uint32_t i = 0; i < t->code_count; i++)
		if (t->code_addresses[i] == linear)
			return true;
	return false;
}

static bool add_hook(struct kvmpy_translate *t, uint64_t linear)
{
	const uint32_t most = sizeof(t->code_hooks) / sizeof(*t->code_hooks);

	if (hooked(t, linear))
		return false;
	if (t->code_count == most) {	/* a guest that makes up its code as it goes */
		while (t->code_count)
			unicorn.unhook(t->unicorn, t->code_hooks[--t->code_count]);
		unicorn.ctl(t->unicorn, UNICORN_CTL_FLUSH_CODE);
	}
	if (unicorn.hook(t->unicorn, &t->code_hooks[t->code_count], UNICORN_HOOK_CODE, on_code, t, linear, linear))
		return false;
	t->code_addresses[t->code_count++] = linear;
	return true;
}

static bool is_prefix(uint8_t byte)
{
	return (byte & 0xf0) == 0x40 || (byte & 0xe7) == 0x26 || (byte >= 0x64 && byte <= 0x67) ||
	       (byte & 0xfd) == 0xf0 || byte == 0xf3;
}

static bool sensitive(const uint8_t *code, uint32_t i, uint32_t size)
{
	if (code[i] == 0xf1)
		return i + 1 == size;	/* it ends its block */
	if (code[i] != 0x0f || i + 1 >= size)
		return false;
	switch (code[i + 1]) {
	case 0x00:
		return i + 2 < size && (code[i + 2] >> 3 & 7) == 3;
	case 0x22:
	case 0x23:
	case 0x30:
	case 0x32:
		return true;
	}
	return false;
}

/* Hooks where the instruction may begin; a wrong guess is never reached, or does nothing. */
static bool search(struct kvmpy_translate *t, uint64_t linear, const uint8_t *code, uint32_t size)
{
	bool found = false;

	for (uint32_t i = 0; i < size; i++) {
		if ((code[i] != 0x0f && code[i] != 0xf1) || !sensitive(code, i, size))
			continue;
		found |= add_hook(t, linear + i);
		for (uint32_t at = i; at && i - at < 14 && is_prefix(code[at - 1]); at--)
			found |= add_hook(t, linear + at - 1);
	}
	return found;
}

/* A block was translated and isn't run yet: with new hooks in it, it must be translated again. */
static void on_new_block(void *engine, const struct unicorn_block *block, const struct unicorn_block *before, void *user)
{
	struct kvmpy_translate *t = user;
	uint8_t code[4096 + 16];
	uint32_t size = block->size < sizeof(code) ? block->size : sizeof(code);

	(void)before;
	memset(t->plain_io, 0xff, sizeof(t->plain_io));
	size = translate_read(t, block->pc, code, size);
	if (!search(t, block->pc, code, size))
		return;
	unicorn.ctl(engine, UNICORN_CTL_REMOVE_CACHE, block->pc, block->pc + block->size);
	unicorn.leave_code(t->cpu);
}

int translate_hook_new_blocks(struct kvmpy_translate *t)
{
	size_t hook;

	return unicorn.hook(t->unicorn, &hook, UNICORN_HOOK_NEW_BLOCK, on_new_block, t, 1, 0);
}
