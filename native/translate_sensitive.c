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

#define INVALID_OPCODE 6
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

	if (modrm >= 0xc0 && !(selector & 0xfffc))
		refuse(t);
	translate_attend(t, ATTENTION_TASK);
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
	if (insn->bytes[insn->length - 1] == 0x00 && (!translate_protected(t) || t->env->mode & MODE_VM86))
		unicorn.raise(t->env, INVALID_OPCODE, 0);
	if (translate_protected(t) && (translate_cpl(t) || t->env->mode & MODE_VM86))
		refuse(t);
	switch (insn->bytes[insn->length - 1]) {
	case 0x00: load_task(t, insn); break;
	case 0x22: move_to_cr(t, insn); break;
	case 0x23: move_to_dr(t, insn); break;
	case 0x30: translate_do_msr(t, true); break;
	case 0x32: translate_do_msr(t, false); break;
	}
}

/* Whether it is an instruction this file is about, with all the bytes it takes to tell. */
static bool is_sensitive(const struct translate_instruction *insn)
{
	const uint8_t *last = insn->bytes + insn->length - 1;

	if (insn->opcode == 0xf1)
		return true;
	if (insn->opcode != 0x0f || insn->available < insn->length)
		return false;
	if (*last == 0x30 || *last == 0x32)
		return true;
	if (insn->available == insn->length)
		return false;
	return *last == 0x22 || *last == 0x23 || (*last == 0x00 && (last[1] >> 3 & 7) == 3);
}

/* The flags of a fault at a hooked instruction are lost, so only those that need a hook keep one. */
static void drop_hook(struct kvmpy_translate *t, uint64_t linear)
{
	for (uint32_t i = 0; i < t->code_count; i++) {
		if (t->code_addresses[i] != linear)
			continue;
		unicorn.unhook(t->unicorn, t->code_hooks[i]);
		t->code_hooks[i] = t->code_hooks[--t->code_count];
		t->code_addresses[i] = t->code_addresses[t->code_count];
		unicorn.ctl(t->unicorn, UNICORN_CTL_REMOVE_CACHE, linear, linear + 1);
		unicorn.leave_code(t->cpu);
	}
}

static void on_code(void *engine, uint64_t pc, uint32_t size, void *user)
{
	struct kvmpy_translate *t = user;
	struct translate_instruction *insn = &t->wait.insn;

	(void)engine;
	(void)size;
	translate_decode(t, insn);
	if (!is_sensitive(insn))
		drop_hook(t, pc);
	else if (insn->opcode == 0xf1)
		debug_trap(t, insn);
	else
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
		translate_forget_code(t);
	}
	if (unicorn.hook(t->unicorn, &t->code_hooks[t->code_count], UNICORN_HOOK_CODE, on_code, t, linear, linear))
		return false;
	t->code_addresses[t->code_count++] = linear;
	return true;
}

/* Whether code may have such an instruction's opcode here: ICEBP ends its block. */
static bool suspect(const uint8_t *code, uint32_t i, uint32_t size)
{
	if (code[i] == 0xf1)
		return i + 1 == size;
	if (code[i] != 0x0f || i + 1 >= size)
		return false;
	return code[i + 1] == 0x00 || (code[i + 1] & 0xfe) == 0x22 || (code[i + 1] & 0xfd) == 0x30;
}

static bool is_one(const struct kvmpy_translate *t, const uint8_t *code, uint32_t size)
{
	struct translate_instruction insn = { .available = size < TRANSLATE_LONGEST ? size : TRANSLATE_LONGEST };

	memcpy(insn.bytes, code, insn.available);
	translate_decode_bytes(&insn, t->env->mode & MODE_CODE64);
	return is_sensitive(&insn);
}

/* Hooks wherever the instruction may begin: at its opcode, or at a prefix. */
static bool search(struct kvmpy_translate *t, uint64_t linear, const uint8_t *code, uint32_t size)
{
	bool found = false;

	for (uint32_t i = 0; i < size; i++) {
		if ((code[i] != 0x0f && code[i] != 0xf1) || !suspect(code, i, size))
			continue;
		for (uint32_t at = i + 1; at-- && i - at < 14 && is_one(t, code + at, size - at);)
			found |= add_hook(t, linear + at);
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
