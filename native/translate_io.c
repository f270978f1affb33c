// SPDX-License-Identifier: MIT
/* Port I/O: IN and OUT where they stand, string I/O whole. */
#include <errno.h>
#include <string.h>

#include "bus.h"
#include "translate.h"

#define GENERAL_PROTECTION 13

static bool trusted(const struct kvmpy_translate *t)
{
	uint32_t mode = t->env->mode;

	return !(mode & MODE_PROTECTED) ||
	       (!(mode & MODE_VM86) && (mode & MODE_CPL) <= ((mode >> MODE_IOPL_SHIFT) & 3));
}

/* SDM vol. 1, 19.5.2: the I/O permission bit map of a 32- or 64-bit TSS, two bytes of it at a time. */
static void check_bitmap(struct kvmpy_translate *t, uint32_t port, uint32_t size)
{
	const struct unicorn_segment *tr = &t->env->tr;
	int tlb = translate_system_tlb(t);
	uint32_t at;

	if (!(tr->flags & (1 << 15)) || (tr->flags >> 8 & 0xd) != 9 || tr->limit < 103)
		unicorn.raise(t->env, GENERAL_PROTECTION, 0);
	at = unicorn.read_u16(t->env, tr->base + 0x66, tlb, 0) + (port >> 3);
	if (at + 1 > tr->limit)
		unicorn.raise(t->env, GENERAL_PROTECTION, 0);
	if (unicorn.read_u16(t->env, tr->base + at, tlb, 0) >> (port & 7) & ((1 << size) - 1))
		unicorn.raise(t->env, GENERAL_PROTECTION, 0);
}

static void exit_for(struct kvmpy_translate *t, enum translate_wait kind, uint32_t port, uint32_t size, uint32_t count,
		     bool is_write)
{
	struct kvm_run *run = t->run;

	if (unlikely(translate_stop_asked(t)))
		translate_stop(t, -EINTR);
	run->exit_reason = KVM_EXIT_IO;
	run->io.direction = is_write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
	run->io.size = size;
	run->io.port = port;
	run->io.count = count;
	run->io.data_offset = TRANSLATE_IO_OFFSET;
	t->result = 0;
	t->wait.kind = kind;
	t->wait.size = size;
	t->wait.count = count;
	t->wait.rip = t->env->rip;
	if (unlikely(!translate_yield(t)))
		translate_leave(t);
	t->wait.kind = WAIT_NO_MORE;
}

/* A register of which an instruction with this address size uses and changes the low part. */
static uint64_t address_mask(const struct kvmpy_translate *t, const struct translate_instruction *insn)
{
	uint32_t mode = t->env->mode;

	if (mode & MODE_CODE64)
		return insn->address_prefix ? 0xffffffff : ~0ull;
	return !(mode & MODE_CODE32) != insn->address_prefix ? 0xffff : 0xffffffff;
}

static void put_register(uint64_t *reg, uint64_t value, uint64_t mask)
{
	*reg = mask == 0xffff ? (*reg & ~mask) | (value & mask) : value & mask;
}

/* Index register and linear address of a string instruction's memory operand. */
static uint64_t *string_index(struct kvmpy_translate *t, bool is_write)
{
	return &t->env->regs[is_write ? 6 : 7];
}

static uint64_t string_linear(struct kvmpy_translate *t, const struct translate_instruction *insn, bool is_write)
{
	uint64_t offset = *string_index(t, is_write) & address_mask(t, insn);
	int segment = is_write ? insn->segment : SEG_ES;

	if (!(t->env->mode & MODE_CODE64))
		return (t->env->segments[segment].base + offset) & 0xffffffff;
	return segment >= SEG_FS ? t->env->segments[segment].base + offset : offset;
}

/* Elements that can be done at once: of one page, going up. */
static uint32_t string_count(struct kvmpy_translate *t, const struct translate_instruction *insn, uint32_t size,
			     bool is_write)
{
	uint64_t mask = address_mask(t, insn), count = t->env->regs[1] & mask;
	uint64_t most = (4096 - (string_linear(t, insn, is_write) & 4095)) / size;

	if (!insn->repeat || t->env->direction != 1 || !most)
		return 1;
	if (mask - (*string_index(t, is_write) & mask) < most * size - 1)
		return 1;
	return count < most ? count : most;
}

static void put_linear(struct kvmpy_translate *t, uint64_t linear, const uint8_t *data, uint32_t size)
{
	for (uint32_t i = 0; i < size; i++) {
		uint64_t gpa;
		uint8_t *host = translate_linear(t, linear + i, &gpa) ? translate_host(t, gpa, true) : NULL;

		if (host)
			*host = data[i];
	}
	translate_forget_code(t);
}

/* In the middle of the instruction a fault in memory is the guest's; parked, its tables are as they were before. */
void translate_complete_string(struct kvmpy_translate *t, bool in_code)
{
	const struct translate_instruction *insn = &t->wait.insn;
	bool is_write = t->run->io.direction == KVM_EXIT_IO_OUT;
	const uint8_t *data = (uint8_t *)t->run + TRANSLATE_IO_OFFSET;
	uint64_t mask = address_mask(t, insn), *index = string_index(t, is_write), left = 0;
	uint64_t linear = string_linear(t, insn, is_write);
	uint32_t bytes = t->wait.size * t->wait.count;

	if (!is_write && in_code)
		memcpy(unicorn.probe(t->env, linear, bytes, UNICORN_ACCESS_STORE, translate_tlb(t), 0), data, bytes);
	else if (!is_write)
		put_linear(t, linear, data, bytes);
	put_register(index, *index + (int64_t)t->env->direction * bytes, mask);
	if (insn->repeat) {
		left = (t->env->regs[1] & mask) - t->wait.count;
		put_register(&t->env->regs[1], left, mask);
	}
	if (!left && t->env->rip == t->wait.rip)
		translate_skip(t, insn->length);
}

/* REP INS and REP OUTS: one exit for all elements up to a page's end. Returns when each must be done by itself. */
static void string_io(struct kvmpy_translate *t, uint32_t port, uint32_t size, bool is_write)
{
	const struct translate_instruction *insn = &t->wait.insn;
	uint32_t count = string_count(t, insn, size, is_write);
	uint8_t *host;

	if (count < 2)
		return;
	host = unicorn.probe(t->env, string_linear(t, insn, is_write), size * count,
			     is_write ? UNICORN_ACCESS_LOAD : UNICORN_ACCESS_STORE, translate_tlb(t), 0);
	if (!host)
		return;
	if (is_write)
		memcpy((uint8_t *)t->run + TRANSLATE_IO_OFFSET, host, size * count);
	exit_for(t, WAIT_STRING, port, size, count, is_write);
	t->wait.kind = WAIT_STRING;
	translate_complete_string(t, true);
	t->wait.kind = WAIT_NO_MORE;
	unicorn.leave_code(t->cpu);
}

/* IN and OUT without prefixes are remembered by address, so that the hot ones aren't decoded. */
static enum translate_wait look_closer(struct kvmpy_translate *t, uint32_t port, uint32_t size, bool is_write)
{
	uint64_t linear = t->env->segments[SEG_CS].base + t->env->rip;
	struct translate_instruction *insn = &t->wait.insn;

	translate_decode(t, insn);
	if ((insn->opcode & 0xfc) == 0x6c) {
		string_io(t, port, size, is_write);
		return WAIT_STRING;
	}
	t->plain_io[linear % 256] = linear;
	return is_write ? WAIT_OUT : WAIT_IN;
}

/* What a completion by hand would have to do; permission is checked. */
static inline enum translate_wait before_io(struct kvmpy_translate *t, uint32_t port, uint32_t size, bool is_write)
{
	uint64_t linear = t->env->segments[SEG_CS].base + t->env->rip;

	if (unlikely(!trusted(t)))
		check_bitmap(t, port, size);
	if (unlikely(t->plain_io[linear % 256] != linear))
		return look_closer(t, port, size, is_write);
	return is_write ? WAIT_OUT : WAIT_IN;
}

static void on_out(void *engine, uint32_t port, int size, uint32_t value, void *user)
{
	struct kvmpy_translate *t = user;
	uint8_t *data = (uint8_t *)t->run + TRANSLATE_IO_OFFSET;
	enum translate_wait kind;

	(void)engine;
	port &= 0xffff;
	kind = before_io(t, port, size, true);
	memcpy(data, &value, 4);
	if (likely(kvmpy_try_rule(t->vcpu, KVM_EXIT_IO, KVMPY_PIO, port, data, size, true)))
		return;
	exit_for(t, kind, port, size, 1, true);
}

static uint32_t on_in(void *engine, uint32_t port, int size, void *user)
{
	struct kvmpy_translate *t = user;
	uint8_t *data = (uint8_t *)t->run + TRANSLATE_IO_OFFSET;
	enum translate_wait kind;
	uint32_t value = 0;

	(void)engine;
	port &= 0xffff;
	kind = before_io(t, port, size, false);
	if (unlikely(!kvmpy_try_rule(t->vcpu, KVM_EXIT_IO, KVMPY_PIO, port, data, size, false)))
		exit_for(t, kind, port, size, 1, false);
	memcpy(&value, data, size);
	return value;
}

int translate_hook_io(struct kvmpy_translate *t)
{
	size_t hook;

	return unicorn.hook(t->unicorn, &hook, UNICORN_HOOK_INSTRUCTION, on_out, t, 1, 0, UNICORN_INSN_OUT) ||
	       unicorn.hook(t->unicorn, &hook, UNICORN_HOOK_INSTRUCTION, on_in, t, 1, 0, UNICORN_INSN_IN);
}
