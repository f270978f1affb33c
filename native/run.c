// SPDX-License-Identifier: MIT
/*
 * The run loop: enter the guest, let C answer what it can, return to Python with the rest.
 *
 * An access takes one of three ways: a rule answers it and the guest is entered again; Python is asked
 * (range_id * 2 + is_write); or it is not one access but several (string I/O, an access across the end of a range),
 * which are then done element by element, by whoever owns each.
 */
#include <errno.h>

#include "bus.h"
#include "bytes.h"
#include "dirty.h"
#include "lines.h"
#include "ring.h"

#define NOT_AN_ACCESS 255	/* kvmpy_record.space of exits that are no bus access */

struct kvmpy_vcpu *kvmpy_vcpu_new(uint32_t index, struct kvm_run *run, int fd)
{
	/* The counters behind it: most exits then find all of it in one page, and coming out of a guest costs the TLB. */
	struct kvmpy_vcpu *vcpu = kvmpy_lines_zeroed(sizeof(*vcpu) + KVMPY_RANGES * sizeof(*vcpu->counts));

	if (!vcpu)
		return NULL;
	vcpu->counts = (uint64_t *)(vcpu + 1);
	vcpu->index = index;
	vcpu->run = run;
	vcpu->fd = fd;
	vcpu->enter = kvmpy_kvm_enter;
	vcpu->budget = UINT64_MAX;
	return vcpu;
}

void kvmpy_vcpu_free(struct kvmpy_vcpu *vcpu)
{
	if (!vcpu)
		return;
	if (vcpu->has_timer)
		timer_delete(vcpu->timer);
	kvmpy_lines_free(vcpu);
}

/* Before a run: forgets the kicks that the last one left behind. */
void kvmpy_vcpu_begin(struct kvmpy_vcpu *vcpu, uint64_t budget, uint64_t until)
{
	__atomic_store_n(&vcpu->kick, 0, __ATOMIC_SEQ_CST);
	vcpu->budget = budget;
	vcpu->until = until;
}

/* From now on accesses are logged to `ring`: with `trace` all, else those of ranges that want it. Also while it runs. */
void kvmpy_vcpu_log(struct kvmpy_vcpu *vcpu, struct kvmpy_ring *ring, uint32_t trace)
{
	__atomic_store_n(&vcpu->trace, trace, __ATOMIC_RELAXED);
	__atomic_store_n(&vcpu->ring, ring, __ATOMIC_RELEASE);
}

static inline struct kvmpy_ring *ring_of(const struct kvmpy_vcpu *vcpu)
{
	return __atomic_load_n(&vcpu->ring, __ATOMIC_ACQUIRE);
}

static inline bool traced(const struct kvmpy_vcpu *vcpu)
{
	return __atomic_load_n(&vcpu->trace, __ATOMIC_RELAXED);
}

/* Counters have one writer; others may read them at any time. */
static inline void bump(uint64_t *counter)
{
	__atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED);
}

static void log_access(struct kvmpy_vcpu *vcpu, uint64_t address, uint64_t value)
{
	const struct kvmpy_elements *e = &vcpu->elements;
	struct kvmpy_record record = {
		.tsc = kvmpy_tsc(), .address = address, .value = value, .count = 1, .range = e->range,
		.vcpu = vcpu->index, .space = e->space, .size = e->size, .is_write = e->is_write,
	};

	kvmpy_ring_log(vcpu, &record);
}

/* A lossless ring is full. */
static inline bool no_room(const struct kvmpy_vcpu *vcpu)
{
	struct kvmpy_ring *ring = ring_of(vcpu);

	return ring && !kvmpy_ring_ready(ring);
}

static bool logged(const struct kvmpy_vcpu *vcpu, const struct kvmpy_range *range)
{
	return unlikely(traced(vcpu) | range->rule->logged) && ring_of(vcpu);
}

static int for_python(struct kvmpy_vcpu *vcpu, const struct kvmpy_range *range, uint64_t address, uint64_t value,
		      uint64_t count)
{
	const struct kvmpy_elements *e = &vcpu->elements;

	vcpu->access = (struct kvmpy_access) {
		.range = range->id, .offset = address - range->first, .size = e->size, .value = value,
		.count = count, .address = address, .is_write = e->is_write, .space = e->space,
	};
	return (int)range->id * 2 + (int)e->is_write;
}

static int handler_failed(struct kvmpy_vcpu *vcpu, const struct kvmpy_range *range, uint64_t address, uint64_t value,
			  int pending)
{
	for_python(vcpu, range, address, value, 1);
	vcpu->pending = pending;
	return KVMPY_HANDLER_FAILED;
}

static uint64_t element_address(const struct kvmpy_elements *e, uint64_t number)
{
	return e->span ? e->address + number % e->span : e->address;
}

/* Counts and logs the elements done since the last time; false when the ring is full. */
static bool settle(struct kvmpy_vcpu *vcpu)
{
	struct kvmpy_elements *e = &vcpu->elements;

	for (; e->settled < e->done; e->settled++) {
		if (unlikely(e->log)) {
			if (!kvmpy_ring_ready(ring_of(vcpu)))
				return false;
			log_access(vcpu, element_address(e, e->settled), get(e->data + e->settled * e->size, e->size));
		}
		bump(&vcpu->counts[e->range]);
	}
	return true;
}

static bool owned(const struct kvmpy_range *range)
{
	return range->id >= KVMPY_UNOWNED + KVMPY_SPACES;
}

/* Whether an access is several: its bytes have several owners, or it has a length that no register has. */
static bool divided(const struct kvmpy_table *table, const struct kvmpy_range *range, int space, uint64_t address,
		    uint32_t size)
{
	if (size & (size - 1))	/* a piece of an access across two pages (3 + 5 bytes) */
		return true;
	if (owned(range))
		return address + size - 1 > range->last &&
		       !(range->whole & 4 && range->rule->kind == KVMPY_RULE_PYTHON);
	for (uint32_t i = 1; i < size; i++)
		if (owned(kvmpy_find(table, space, address + i)))
			return true;
	return false;
}

/* From here on byte by byte. */
static void split(struct kvmpy_elements *e)
{
	e->done *= e->size;
	e->settled *= e->size;
	e->count *= e->size;
	e->span = e->size;
	e->size = 1;
}

/* Whether all elements that are left go to Python at once. What a native handler passes on is a single access. */
static bool takes_whole(const struct kvmpy_elements *e, const struct kvmpy_range *range)
{
	return range->whole & (e->is_write ? 2 : 1) && !e->span && e->count - e->done > 1 &&
	       range->rule->kind != KVMPY_RULE_NATIVE;
}

/* An exit that is many accesses, from elements.done on; 0 when all are done. */
static int do_elements(struct kvmpy_vcpu *vcpu)
{
	struct kvmpy_elements *e = &vcpu->elements;
	const struct kvmpy_table *table = kvmpy_bus_enter(vcpu);

	vcpu->pending = KVMPY_GO_ON;
	for (;;) {
		const struct kvmpy_range *range;
		uint64_t address, value;
		uint8_t *data;

		if (unlikely(!settle(vcpu)))
			return KVMPY_RING_FULL;
		if (e->done >= e->count)
			break;
		address = element_address(e, e->done);
		range = kvmpy_find(table, e->space, address);
		/* Looked at for each element: between two of them the table may have changed. */
		if (e->size > 1 && unlikely(divided(table, range, e->space, address, e->size))) {
			split(e);
			continue;
		}
		data = e->data + e->done * e->size;
		value = e->is_write ? get(data, e->size) : 0;
		e->range = range->id;
		e->log = logged(vcpu, range);
		switch (kvmpy_rule_apply(vcpu, range, address, &value, e->size, e->is_write)) {
		case KVMPY_DONE:
			if (!e->is_write)
				put(data, value, e->size);
			e->done++;
			break;
		case KVMPY_TO_PYTHON:
			if (takes_whole(e, range)) {
				for_python(vcpu, range, address, value, e->count - e->done);
				return KVMPY_ELEMENTS;
			}
			vcpu->pending = KVMPY_ANSWER_ONE;
			return for_python(vcpu, range, address, value, 1);
		case KVMPY_HANDLER_ERROR:
			return handler_failed(vcpu, range, address, value, KVMPY_GO_ON);
		}
	}
	vcpu->pending = KVMPY_ENTER;
	return 0;
}

/* A handler that passed, or failed, within kvmpy_try_rule() isn't called a second time for the same access. */
static inline enum kvmpy_verdict ask(struct kvmpy_vcpu *vcpu, const struct kvmpy_range *range, uint64_t address,
			      uint64_t *value)
{
	int asked = vcpu->asked;

	if (unlikely(asked)) {
		vcpu->asked = 0;
		return asked - 1;
	}
	/* As kvmpy_rule_apply() does it, but for the value: do_access() cuts it where it counts. */
	if (range->rule->kind == KVMPY_RULE_CONSTANT) {
		if (!vcpu->elements.is_write)
			*value = range->rule->value;
		return KVMPY_DONE;
	}
	return kvmpy_rule_apply(vcpu, range, address, value, vcpu->elements.size, vcpu->elements.is_write);
}

/*
 * One access of elements.size bytes at elements.data: 0 when done, else what kvmpy_run() returns. What is always inline
 * from here on makes the hot loop one function: as several, an exit that C answers takes a quarter longer.
 */
static __always_inline int do_access(struct kvmpy_vcpu *vcpu, const struct kvmpy_range *range, uint64_t address)
{
	struct kvmpy_elements *e = &vcpu->elements;
	uint64_t value = e->is_write ? get(e->data, e->size) : 0;
	enum kvmpy_verdict verdict;

	if (unlikely(no_room(vcpu))) {
		vcpu->pending = KVMPY_HANDLE;
		return KVMPY_RING_FULL;
	}
	verdict = ask(vcpu, range, address, &value);
	if (likely(verdict == KVMPY_DONE)) {
		bump(&vcpu->counts[range->id]);
		if (!e->is_write)
			put(e->data, value, e->size);
		if (logged(vcpu, range)) {
			e->range = range->id;
			log_access(vcpu, address, low_bytes(value, e->size));
		}
		return 0;
	}
	e->range = range->id;
	e->log = logged(vcpu, range);
	if (verdict == KVMPY_HANDLER_ERROR)
		return handler_failed(vcpu, range, address, value, KVMPY_HANDLE);
	vcpu->pending = KVMPY_ANSWER;
	return for_python(vcpu, range, address, value, 1);
}

static int start_elements(struct kvmpy_vcpu *vcpu, uint64_t count)
{
	struct kvmpy_elements *e = &vcpu->elements;

	e->count = count;
	e->span = 0;
	e->done = e->settled = 0;
	return do_elements(vcpu);
}

static __always_inline int port_io(struct kvmpy_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct kvmpy_elements *e = &vcpu->elements;
	const struct kvmpy_table *table = kvmpy_bus_enter(vcpu);
	const struct kvmpy_range *range = kvmpy_find_port(table, run->io.port);

	e->data = (uint8_t *)run + run->io.data_offset;
	e->address = run->io.port;
	e->size = run->io.size;
	e->space = KVMPY_PIO;
	e->is_write = run->io.direction == KVM_EXIT_IO_OUT;
	if (unlikely(run->io.count != 1))
		return start_elements(vcpu, run->io.count);
	/* What nobody owns ends at 0, for this to be one comparison. */
	if (unlikely(e->address + e->size - 1 > range->last) && divided(table, range, KVMPY_PIO, e->address, e->size))
		return start_elements(vcpu, 1);
	return do_access(vcpu, range, e->address);
}

static __always_inline int memory_io(struct kvmpy_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct kvmpy_elements *e = &vcpu->elements;
	const struct kvmpy_table *table = kvmpy_bus_enter(vcpu);
	const struct kvmpy_range *range = kvmpy_find(table, KVMPY_MMIO, run->mmio.phys_addr);

	e->data = run->mmio.data;
	e->address = run->mmio.phys_addr;
	e->size = run->mmio.len;
	e->space = KVMPY_MMIO;
	e->is_write = run->mmio.is_write;
	if (unlikely((e->size & (e->size - 1)) || e->address + e->size - 1 > range->last) &&
	    divided(table, range, KVMPY_MMIO, e->address, e->size))
		return start_elements(vcpu, 1);
	return do_access(vcpu, range, e->address);
}

/* MSRs and hypercalls nobody claimed are exits like any other: Python has the default for them. */
static int claimed(struct kvmpy_vcpu *vcpu, int space, uint64_t address, uint64_t *data, bool is_write)
{
	const struct kvmpy_table *table = kvmpy_bus_enter(vcpu);
	const struct kvmpy_range *range = kvmpy_find(table, space, address);

	if (range == &table->unowned[space])
		return KVMPY_EXIT;
	vcpu->elements = (struct kvmpy_elements) {
		.data = (uint8_t *)data, .address = address, .size = 8, .count = 1, .space = space,
		.is_write = is_write,
	};
	return do_access(vcpu, range, address);
}

static int msr(struct kvmpy_vcpu *vcpu, bool is_write)
{
	struct kvm_run *run = vcpu->run;
	int result = claimed(vcpu, KVMPY_MSR, run->msr.index, (uint64_t *)&run->msr.data, is_write);

	if (result != KVMPY_EXIT)
		run->msr.error = 0;
	return result;
}

/* To a rule a hypercall is a read: it gets the first argument as the value and its answer is the guest's RAX. */
static int hypercall(struct kvmpy_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	return claimed(vcpu, KVMPY_HYPERCALL, run->hypercall.nr, (uint64_t *)&run->hypercall.ret, false);
}

static void log_exit(struct kvmpy_vcpu *vcpu)
{
	struct kvmpy_record record = {
		.tsc = kvmpy_tsc(), .address = vcpu->run->exit_reason, .count = 1, .vcpu = vcpu->index,
		.space = NOT_AN_ACCESS,
	};

	kvmpy_ring_log(vcpu, &record);
}

static int other_exit(struct kvmpy_vcpu *vcpu)
{
	int result = KVMPY_EXIT;

	switch (vcpu->run->exit_reason) {
	case KVM_EXIT_X86_RDMSR:
		result = msr(vcpu, false);
		break;
	case KVM_EXIT_X86_WRMSR:
		result = msr(vcpu, true);
		break;
	case KVM_EXIT_HYPERCALL:
		result = hypercall(vcpu);
		break;
	case KVM_EXIT_DIRTY_RING_FULL:
		if (vcpu->dirty && !kvmpy_dirty_collect(vcpu->dirty))
			return 0;
		break;
	}
	if (result != KVMPY_EXIT)
		return result;
	if (traced(vcpu) && ring_of(vcpu)) {
		if (no_room(vcpu)) {
			vcpu->pending = KVMPY_HANDLE;
			return KVMPY_RING_FULL;
		}
		log_exit(vcpu);
	}
	vcpu->pending = KVMPY_ENTER;
	return KVMPY_EXIT;
}

/* The exit in *run: 0 when C handled it. */
static __always_inline int handle(struct kvmpy_vcpu *vcpu)
{
	uint32_t reason = vcpu->run->exit_reason;

	vcpu->pending = KVMPY_ENTER;
	if (likely(reason == KVM_EXIT_IO))
		return port_io(vcpu);
	if (likely(reason == KVM_EXIT_MMIO))
		return memory_io(vcpu);
	return other_exit(vcpu);
}

static inline bool coalesced(const struct kvmpy_vcpu *vcpu)
{
	const struct kvm_coalesced_mmio_ring *ring = __atomic_load_n(&vcpu->bus->coalesced, __ATOMIC_ACQUIRE);

	if (likely(!ring))
		return false;
	return __atomic_load_n(&ring->first, __ATOMIC_RELAXED) != __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE) ||
	       __atomic_load_n(&vcpu->bus->undelivered, __ATOMIC_ACQUIRE);
}

static inline void count_exit(struct kvmpy_vcpu *vcpu)
{
	uint32_t reason = vcpu->run->exit_reason;

	bump(&vcpu->exits[likely(reason < KVMPY_REASONS) ? reason : KVMPY_REASONS - 1]);
	/* The last one: its access completes at the next entry, which then returns. */
	if (unlikely(!--vcpu->budget))
		kvmpy_kick(vcpu, KVMPY_KICK_BUDGET);
	if (unlikely(vcpu->until >> (reason & 63) & 1))
		kvmpy_kick(vcpu, KVMPY_KICK_UNTIL);
}

/* The same, out of the hot loop's way. */
static __attribute__((noinline)) int handle_later(struct kvmpy_vcpu *vcpu)
{
	return handle(vcpu);
}

/* The kernel's answer to a failed entry, or 0 to try again. */
static int entry_failed(struct kvmpy_vcpu *vcpu, int error)
{
	switch (error) {
	case -EAGAIN:	/* an AP that got its INIT but not its SIPI */
		vcpu->eagain++;
		return 0;
	case -EINTR:
		vcpu->eintr++;
		vcpu->why = kvmpy_take_kick(vcpu);
		return vcpu->why ? KVMPY_KICKED : KVMPY_SIGNAL;
	case KVMPY_WANTS_PYTHON:
		return KVMPY_RESCUE;
	case -EFAULT:
		/* KVM API document, KVM_EXIT_MEMORY_FAULT: comes with EFAULT, the exit is filled in. */
		if (vcpu->run->exit_reason == KVMPY_EXIT_MEMORY_FAULT) {
			count_exit(vcpu);
			return KVMPY_EXIT;
		}
		break;
	}
	vcpu->error = -error;
	return KVMPY_FAILED;
}

/*
 * For an engine that can answer an access where it happens, inside its enter(): if a rule does it all, counts and logs
 * as if there had been an exit for this reason and says true. False: nothing was counted, make it an exit.
 */
bool kvmpy_try_rule(struct kvmpy_vcpu *vcpu, uint32_t reason, int space, uint64_t address, uint8_t *data, uint32_t size,
		    bool is_write)
{
	const struct kvmpy_table *table;
	const struct kvmpy_range *range;
	enum kvmpy_verdict verdict;
	uint64_t value;

	/* An exit that stops the loop is a real one. */
	if (unlikely(!vcpu->bus || vcpu->budget <= 1 || vcpu->until || coalesced(vcpu)))
		return false;
	table = kvmpy_bus_enter(vcpu);
	range = kvmpy_find(table, space, address);
	if (range->rule->kind == KVMPY_RULE_PYTHON || divided(table, range, space, address, size))
		return false;
	if (unlikely(no_room(vcpu)))
		return false;
	vcpu->elements = (struct kvmpy_elements) {
		.data = data, .address = address, .size = size, .count = 1, .space = space, .is_write = is_write,
	};
	value = is_write ? get(data, size) : 0;
	verdict = kvmpy_rule_apply(vcpu, range, address, &value, size, is_write);
	if (verdict != KVMPY_DONE) {
		vcpu->asked = range->rule->kind == KVMPY_RULE_NATIVE ? 1 + verdict : 0;
		return false;
	}
	bump(&vcpu->exits[reason]);
	vcpu->budget--;
	bump(&vcpu->counts[range->id]);
	if (!is_write)
		put(data, value, size);
	if (logged(vcpu, range)) {
		vcpu->elements.range = range->id;
		log_access(vcpu, address, value);
	}
	return true;
}

/* Whether somebody other than the space's default owns the address: MSRs and hypercalls the engine then leaves alone. */
bool kvmpy_is_claimed(struct kvmpy_vcpu *vcpu, int space, uint64_t address)
{
	const struct kvmpy_table *table;

	if (!vcpu->bus)
		return false;
	table = kvmpy_bus_enter(vcpu);
	return kvmpy_find(table, space, address) != &table->unowned[space];
}

/* Python's answer to the read (or its word that the write is done) goes where the guest will find it. */
static int take_answer(struct kvmpy_vcpu *vcpu)
{
	const struct kvmpy_access *access = &vcpu->access;
	const struct kvmpy_elements *e = &vcpu->elements;

	if (!e->is_write) {
		if (unlikely(e->size < 8 && access->value >> (8 * e->size)))
			return KVMPY_BAD_ANSWER;
		put(e->data, access->value, e->size);
	}
	bump(&vcpu->counts[access->range]);
	if (unlikely(e->log))
		log_access(vcpu, access->address, access->value);
	vcpu->pending = KVMPY_ENTER;
	return 0;
}

/* The same for an element of several. */
static int take_element(struct kvmpy_vcpu *vcpu)
{
	struct kvmpy_elements *e = &vcpu->elements;

	if (!e->is_write) {
		if (unlikely(e->size < 8 && vcpu->access.value >> (8 * e->size)))
			return KVMPY_BAD_ANSWER;
		put(e->data + e->done * e->size, vcpu->access.value, e->size);
	}
	e->done++;
	return do_elements(vcpu);
}

static int take_up(struct kvmpy_vcpu *vcpu)
{
	switch (vcpu->pending) {
	case KVMPY_ANSWER:
		return take_answer(vcpu);
	case KVMPY_HANDLE:
		return handle_later(vcpu);
	case KVMPY_GO_ON:
		return do_elements(vcpu);
	case KVMPY_ANSWER_ONE:
		return take_element(vcpu);
	}
	return 0;
}

int kvmpy_run(struct kvmpy_vcpu *vcpu)
{
	int result = take_up(vcpu);

	if (result)
		return vcpu->returned = result;
	do {
		int error = vcpu->enter(vcpu);

		if (unlikely(error)) {
			result = entry_failed(vcpu, error);
			continue;
		}
		count_exit(vcpu);
		if (unlikely(coalesced(vcpu))) {
			vcpu->pending = KVMPY_HANDLE;
			result = KVMPY_COALESCED;
			break;
		}
		result = handle(vcpu);
	} while (likely(!result));
	/* Whatever way it left the guest, KVM put the asked-for registers into *run. */
	vcpu->fresh = vcpu->run->kvm_valid_regs;
	return vcpu->returned = result;
}
