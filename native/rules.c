// SPDX-License-Identifier: MIT
/* How C answers an access by itself: constants, registers, queues of bytes, native handlers. */
#include <stdlib.h>
#include <string.h>

#include "bus.h"
#include "bytes.h"

/*
 * Registers are shared by all vCPUs and with Python, so each byte changes by compare-and-swap; wider accesses aren't
 * promised to be atomic as a whole, just as on a device behind an 8-bit bus. Plain loads and stores suffice where no
 * bit depends on the old value.
 */
static void change_byte(uint8_t *byte, uint8_t keep, uint8_t set)
{
	uint8_t old = __atomic_load_n(byte, __ATOMIC_RELAXED);

	while (!__atomic_compare_exchange_n(byte, &old, (old & keep) | set, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

static void registers_write(struct kvmpy_registers *r, uint64_t offset, uint64_t value, uint32_t size)
{
	for (uint32_t i = 0; i < size; i++) {
		uint8_t byte = value >> (8 * i), mask = r->writable[offset + i], clear = r->clear_write[offset + i] & byte;

		if (mask == 0xff)
			__atomic_store_n(&r->memory[offset + i], byte & ~clear, __ATOMIC_RELAXED);
		else if (mask | clear)
			change_byte(&r->memory[offset + i], ~(mask | clear), byte & mask & ~clear);
	}
}

static uint64_t registers_read(struct kvmpy_registers *r, uint64_t offset, uint32_t size)
{
	uint64_t value = 0;

	if (likely(!get(r->clear_read + offset, size)))
		return get(r->memory + offset, size) & get(r->readable + offset, size);
	for (uint32_t i = 0; i < size; i++) {
		uint8_t clear = r->clear_read[offset + i];
		uint8_t byte = clear ? __atomic_fetch_and(&r->memory[offset + i], (uint8_t)~clear, __ATOMIC_RELAXED)
				     : __atomic_load_n(&r->memory[offset + i], __ATOMIC_RELAXED);

		value |= (uint64_t)(byte & r->readable[offset + i]) << (8 * i);
	}
	return value;
}

static enum kvmpy_verdict registers(struct kvmpy_registers *r, uint64_t offset, uint64_t *value, uint32_t size,
				    bool is_write)
{
	uint64_t effects = get(r->to_python + offset, size);

	/* 1 in any byte: reads have a side effect there; 2: writes have. */
	if (unlikely(effects & (is_write ? 0x0202020202020202 : 0x0101010101010101)))
		return KVMPY_TO_PYTHON;
	if (is_write)
		registers_write(r, offset, *value, size);
	else
		*value = registers_read(r, offset, size);
	return KVMPY_DONE;
}

static void lock(uint32_t *word)
{
	while (__atomic_exchange_n(word, 1, __ATOMIC_ACQUIRE))
		__builtin_ia32_pause();
}

static void unlock(uint32_t *word)
{
	__atomic_store_n(word, 0, __ATOMIC_RELEASE);
}

/* How many of the bytes found room; the rest is counted as dropped. */
uint64_t kvmpy_fifo_push(struct kvmpy_fifo *fifo, const uint8_t *bytes, uint64_t length)
{
	uint64_t room, done;

	lock(&fifo->lock);
	room = fifo->capacity - (fifo->head - fifo->tail);
	done = length < room ? length : room;
	for (uint64_t i = 0; i < done; i++)
		fifo->bytes[(fifo->head + i) & (fifo->capacity - 1)] = bytes[i];
	fifo->head += done;
	fifo->dropped += length - done;
	unlock(&fifo->lock);
	return done;
}

uint64_t kvmpy_fifo_pop(struct kvmpy_fifo *fifo, uint8_t *bytes, uint64_t length)
{
	uint64_t there, done;

	lock(&fifo->lock);
	there = fifo->head - fifo->tail;
	done = length < there ? length : there;
	for (uint64_t i = 0; i < done; i++)
		bytes[i] = fifo->bytes[(fifo->tail + i) & (fifo->capacity - 1)];
	fifo->tail += done;
	unlock(&fifo->lock);
	return done;
}

static enum kvmpy_verdict fifo(const struct kvmpy_rule *rule, uint64_t *value, uint32_t size, bool is_write)
{
	uint8_t bytes[8];

	if (is_write) {
		memcpy(bytes, value, sizeof(bytes));
		if (rule->out)
			kvmpy_fifo_push(rule->out, bytes, size);
		return KVMPY_DONE;
	}
	/* What the queue can't give reads as the rule's constant, like an empty data port. */
	memcpy(bytes, &rule->value, sizeof(bytes));
	if (rule->in)
		kvmpy_fifo_pop(rule->in, bytes, size);
	memcpy(value, bytes, sizeof(bytes));
	return KVMPY_DONE;
}

static enum kvmpy_verdict native(struct kvmpy_vcpu *vcpu, const struct kvmpy_range *range, uint64_t address,
				 uint64_t *value, uint32_t size, bool is_write)
{
	const struct kvmpy_rule *rule = range->rule;
	struct kvmpy_handler_access access = {
		.address = address, .offset = address - range->first, .value = *value, .size = size,
		.is_write = is_write, .vcpu = vcpu->index, .space = vcpu->elements.space,
	};
	int result = rule->handler(rule->context, &access);

	if (likely(result == KVMPY_HANDLED)) {
		*value = access.value;
		return KVMPY_DONE;
	}
	if (result == KVMPY_PASS)
		return KVMPY_TO_PYTHON;
	vcpu->error = result < 0 ? -result : result;
	return KVMPY_HANDLER_ERROR;
}

/* Reads leave no bits in *value above size. */
enum kvmpy_verdict kvmpy_rule_apply(struct kvmpy_vcpu *vcpu, const struct kvmpy_range *range, uint64_t address,
				    uint64_t *value, uint32_t size, bool is_write)
{
	const struct kvmpy_rule *rule = range->rule;
	enum kvmpy_verdict verdict = KVMPY_DONE;

	switch (rule->kind) {
	case KVMPY_RULE_PYTHON:
		return KVMPY_TO_PYTHON;
	case KVMPY_RULE_CONSTANT:
		if (!is_write)
			*value = rule->value;
		break;
	case KVMPY_RULE_REGISTERS:
		return registers(rule->registers, address - range->first, value, size, is_write);
	case KVMPY_RULE_FIFO:
		verdict = fifo(rule, value, size, is_write);
		break;
	case KVMPY_RULE_NATIVE:
		verdict = native(vcpu, range, address, value, size, is_write);
		break;
	}
	if (!is_write)
		*value = low_bytes(*value, size);
	return verdict;
}
