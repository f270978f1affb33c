/* SPDX-License-Identifier: MIT */
/*
 * Who owns an address, and how C answers for it.
 *
 * A table is immutable: Python builds a new one for every change and publishes it with one pointer. A vCPU keeps the
 * table it uses in vcpu->table and looks at every exit whether the bus has a newer one, so a reader takes no lock, and
 * an old table is free once no vCPU holds it.
 */
#ifndef KVMPY_BUS_H
#define KVMPY_BUS_H

#include "kvmpy_handler.h"
#include "vcpu.h"

enum kvmpy_rule_kind {
	KVMPY_RULE_PYTHON,	/* no rule: to Python */
	KVMPY_RULE_CONSTANT,	/* writes ignored, reads give value */
	KVMPY_RULE_REGISTERS,	/* a register file; a latch is one with every bit writable */
	KVMPY_RULE_FIFO,	/* a bounded queue of bytes each way */
	KVMPY_RULE_NATIVE,	/* a C function */
};

/* Register memory with one mask byte per byte: any width and any alignment, the same code. */
struct kvmpy_registers {
	uint64_t length;
	uint8_t *memory;	/* what the registers hold */
	uint8_t *readable;	/* bits a guest read shows; the others read as 0 */
	uint8_t *writable;	/* bits a guest write replaces */
	uint8_t *clear_write;	/* bits cleared where a guest write has ones */
	uint8_t *clear_read;	/* bits cleared by a guest read, after it */
	uint8_t *to_python;	/* 1: a read of this byte has a side effect, 2: a write has one */
};

struct kvmpy_fifo {
	uint64_t capacity;	/* a power of two */
	uint64_t head, tail;	/* bytes ever pushed, ever popped */
	uint64_t dropped;
	uint8_t *bytes;
	uint32_t lock;
};

struct kvmpy_rule {
	uint32_t kind;
	uint32_t logged;	/* place "ring": log the access, then answer by the rule */
	uint64_t value;
	struct kvmpy_registers *registers;
	struct kvmpy_fifo *in, *out;	/* guest reads from in, writes to out */
	kvmpy_handler *handler;
	void *context;
};

struct kvmpy_range {
	uint64_t first, last;
	struct kvmpy_rule *rule;
	uint32_t id;
	uint32_t whole;		/* 1 reads, 2 writes: Python takes string I/O in one piece; 4: no access is divided for it */
};

struct kvmpy_space_table {
	uint64_t count;
	struct kvmpy_range *ranges;	/* sorted, disjoint */
};

struct kvmpy_table {
	struct kvmpy_space_table spaces[KVMPY_SPACES];
	struct kvmpy_range unowned[KVMPY_SPACES];	/* last is 0: see port_io() */
	uint16_t *ports;	/* index into spaces[PIO].ranges + 1, by port; 0: nobody's */
	uint64_t generation;
};

struct kvmpy_bus {
	struct kvmpy_table *table;	/* atomic */
	struct kvm_coalesced_mmio_ring *coalesced;	/* atomic; writes the kernel kept for later; NULL: none */
	uint32_t undelivered;		/* atomic; Python has taken some out of there and not handed them on yet */
};

struct kvmpy_table *kvmpy_table_new(const uint64_t counts[KVMPY_SPACES]);
int kvmpy_table_seal(struct kvmpy_table *table);
void kvmpy_table_free(struct kvmpy_table *table);
struct kvmpy_bus *kvmpy_bus_new(void);
void kvmpy_bus_free(struct kvmpy_bus *bus);
void kvmpy_bus_publish(struct kvmpy_bus *bus, struct kvmpy_table *table);
void kvmpy_bus_coalesce(struct kvmpy_bus *bus, struct kvm_coalesced_mmio_ring *ring);
void kvmpy_bus_set_undelivered(struct kvmpy_bus *bus, uint32_t undelivered);

struct kvmpy_table *kvmpy_table_in_use(struct kvmpy_vcpu *vcpu);

/* The table to use for this exit; after that, the pointers in it stay valid until the next call for this vCPU. */
struct kvmpy_table *kvmpy_bus_enter_slow(struct kvmpy_vcpu *vcpu);

static inline struct kvmpy_table *kvmpy_bus_enter(struct kvmpy_vcpu *vcpu)
{
	struct kvmpy_table *table = __atomic_load_n(&vcpu->bus->table, __ATOMIC_ACQUIRE);

	if (likely(table == vcpu->table))
		return table;
	return kvmpy_bus_enter_slow(vcpu);
}

static inline const struct kvmpy_range *kvmpy_find_port(const struct kvmpy_table *table, uint16_t port)
{
	uint16_t index = table->ports[port];

	return index ? &table->spaces[KVMPY_PIO].ranges[index - 1] : &table->unowned[KVMPY_PIO];
}

const struct kvmpy_range *kvmpy_find(const struct kvmpy_table *table, int space, uint64_t address);

/* What a rule made of an access. */
enum kvmpy_verdict { KVMPY_DONE, KVMPY_TO_PYTHON, KVMPY_HANDLER_ERROR };

enum kvmpy_verdict kvmpy_rule_apply(struct kvmpy_vcpu *vcpu, const struct kvmpy_range *range, uint64_t address,
				    uint64_t *value, uint32_t size, bool is_write);

uint64_t kvmpy_fifo_push(struct kvmpy_fifo *fifo, const uint8_t *bytes, uint64_t length);
uint64_t kvmpy_fifo_pop(struct kvmpy_fifo *fifo, uint8_t *bytes, uint64_t length);

#endif
