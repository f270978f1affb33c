// SPDX-License-Identifier: MIT
/* Tables of ranges: built by Python, published with one pointer, read with no lock. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bus.h"
#include "lines.h"

#define PORTS 65536

struct kvmpy_table *kvmpy_table_new(const uint64_t counts[KVMPY_SPACES])
{
	struct kvmpy_table *table = calloc(1, sizeof(*table));

	if (!table)
		return NULL;
	for (int space = 0; space < KVMPY_SPACES; space++) {
		struct kvmpy_space_table *s = &table->spaces[space];

		if (counts[space] > KVMPY_RANGES)
			goto fail;
		s->count = counts[space];
		s->ranges = calloc(counts[space] + 1, sizeof(*s->ranges));
		if (!s->ranges)
			goto fail;
		table->unowned[space].id = KVMPY_UNOWNED + space;
	}
	return table;
fail:
	kvmpy_table_free(table);
	return NULL;
}

void kvmpy_table_free(struct kvmpy_table *table)
{
	if (!table)
		return;
	for (int space = 0; space < KVMPY_SPACES; space++)
		free(table->spaces[space].ranges);
	free(table->ports);
	free(table);
}

static int check_space(const struct kvmpy_space_table *space)
{
	for (uint64_t i = 0; i < space->count; i++) {
		const struct kvmpy_range *range = &space->ranges[i];

		if (range->last < range->first || !range->rule || range->id >= KVMPY_RANGES)
			return -EINVAL;
		if (i && range->first <= space->ranges[i - 1].last)
			return -EEXIST;
	}
	return 0;
}

/* Called once when all ranges are filled in: checks them and makes the index by port. */
int kvmpy_table_seal(struct kvmpy_table *table)
{
	struct kvmpy_space_table *pio = &table->spaces[KVMPY_PIO];

	for (int space = 0; space < KVMPY_SPACES; space++) {
		int error = check_space(&table->spaces[space]);

		if (error)
			return error;
		if (!table->unowned[space].rule)
			return -EINVAL;
	}
	table->ports = calloc(PORTS, sizeof(*table->ports));
	if (!table->ports)
		return -ENOMEM;
	for (uint64_t i = 0; i < pio->count; i++)
		for (uint64_t port = pio->ranges[i].first; port <= pio->ranges[i].last; port++) {
			if (port >= PORTS)
				return -ERANGE;
			table->ports[port] = i + 1;
		}
	return 0;
}

struct kvmpy_bus *kvmpy_bus_new(void)
{
	return kvmpy_lines_zeroed(sizeof(struct kvmpy_bus));
}

void kvmpy_bus_free(struct kvmpy_bus *bus)
{
	kvmpy_lines_free(bus);
}

/* From now on the kernel keeps writes for later in `ring`. */
void kvmpy_bus_coalesce(struct kvmpy_bus *bus, struct kvm_coalesced_mmio_ring *ring)
{
	__atomic_store_n(&bus->coalesced, ring, __ATOMIC_RELEASE);
}

void kvmpy_bus_set_undelivered(struct kvmpy_bus *bus, uint32_t undelivered)
{
	__atomic_store_n(&bus->undelivered, undelivered, __ATOMIC_RELEASE);
}

void kvmpy_bus_publish(struct kvmpy_bus *bus, struct kvmpy_table *table)
{
	/* Sequentially consistent against kvmpy_bus_enter_slow(): see there. */
	__atomic_store_n(&bus->table, table, __ATOMIC_SEQ_CST);
}

struct kvmpy_table *kvmpy_bus_enter_slow(struct kvmpy_vcpu *vcpu)
{
	struct kvmpy_table *table;

	/*
	 * Announce first, look again after: a publisher that looks for users of the old table after it stored the new one
	 * either sees the announcement, or this look sees the new table.
	 */
	do {
		table = __atomic_load_n(&vcpu->bus->table, __ATOMIC_SEQ_CST);
		__atomic_store_n(&vcpu->table, table, __ATOMIC_SEQ_CST);
	} while (table != __atomic_load_n(&vcpu->bus->table, __ATOMIC_SEQ_CST));
	return table;
}

/* The table a vCPU uses. What it read from another one before happened before this look: that one may be freed. */
struct kvmpy_table *kvmpy_table_in_use(struct kvmpy_vcpu *vcpu)
{
	return __atomic_load_n(&vcpu->table, __ATOMIC_SEQ_CST);
}

const struct kvmpy_range *kvmpy_find(const struct kvmpy_table *table, int space, uint64_t address)
{
	const struct kvmpy_space_table *s = &table->spaces[space];
	uint64_t low = 0, high = s->count;

	/* The second byte of a word at port 0xffff is nobody's. */
	if (space == KVMPY_PIO)
		return likely(address < PORTS) ? kvmpy_find_port(table, address) : &table->unowned[space];
	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (address > s->ranges[middle].last)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < s->count && address >= s->ranges[low].first)
		return &s->ranges[low];
	return &table->unowned[space];
}
