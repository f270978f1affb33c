// SPDX-License-Identifier: MIT
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kvmpy_handler.h"
#include "stub.h"

#define RUN_SIZE (3 * 4096)

/* The guest's side of the exit before: a read has now been answered. */
static void complete(struct kvmpy_vcpu *vcpu, struct kvmpy_stub *stub)
{
	struct kvm_run *run = vcpu->run;
	struct kvmpy_stub_exit *last;

	if (!stub->entered || !stub->length)
		return;
	last = &stub->script[(stub->next + stub->length - 1) % stub->length];
	if (last->is_write)
		return;
	if (last->reason == KVM_EXIT_IO)
		memcpy(last->data, (uint8_t *)run + run->io.data_offset, (size_t)last->size * last->count);
	else if (last->reason == KVM_EXIT_MMIO)
		memcpy(last->data, run->mmio.data, last->size);
}

static void fill(struct kvm_run *run, const struct kvmpy_stub_exit *exit)
{
	run->exit_reason = exit->reason;
	switch (exit->reason) {
	case KVM_EXIT_IO:
		run->io.direction = exit->is_write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
		run->io.size = exit->size;
		run->io.port = exit->address;
		run->io.count = exit->count;
		run->io.data_offset = 4096;
		memcpy((uint8_t *)run + 4096, exit->data, (size_t)exit->size * exit->count);
		break;
	case KVM_EXIT_MMIO:
		run->mmio.phys_addr = exit->address;
		run->mmio.len = exit->size;
		run->mmio.is_write = exit->is_write;
		memcpy(run->mmio.data, exit->data, sizeof(run->mmio.data));
		break;
	}
}

static int play(struct kvmpy_vcpu *vcpu)
{
	struct kvmpy_stub *stub = vcpu->engine;

	complete(vcpu, stub);
	if (__atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_RELAXED)) {
		stub->entered = 0;	/* completed: not a second time */
		return -EINTR;
	}
	if (stub->next == stub->length) {
		if (!stub->repeat) {
			vcpu->run->exit_reason = KVM_EXIT_HLT;
			stub->entered = 0;
			return 0;
		}
		stub->repeat--;
		stub->next = 0;
	}
	fill(vcpu->run, &stub->script[stub->next++]);
	stub->entered = 1;
	return 0;
}

/* The cheapest enter() there can be: *run stands as it is. */
static int again(struct kvmpy_vcpu *vcpu)
{
	return unlikely(__atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_RELAXED)) ? -EINTR : 0;
}

struct kvmpy_vcpu *kvmpy_stub_new(uint32_t index, struct kvmpy_stub *stub)
{
	struct kvm_run *run = aligned_alloc(4096, RUN_SIZE);
	struct kvmpy_vcpu *vcpu;

	if (!run)
		return NULL;
	memset(run, 0, RUN_SIZE);
	vcpu = kvmpy_vcpu_new(index, run, -1);
	if (!vcpu) {
		free(run);
		return NULL;
	}
	vcpu->engine = stub;
	vcpu->enter = play;
	return vcpu;
}

void kvmpy_stub_free(struct kvmpy_vcpu *vcpu)
{
	if (vcpu)
		free(vcpu->run);
	kvmpy_vcpu_free(vcpu);
}

void kvmpy_stub_fixed(struct kvmpy_vcpu *vcpu, const struct kvmpy_stub_exit *exit)
{
	fill(vcpu->run, exit);
	vcpu->enter = again;
}

/* A bare loop around enter(): the floor under every benchmark of the run loop. */
uint64_t kvmpy_floor(struct kvmpy_vcpu *vcpu, uint64_t times)
{
	uint64_t seen = 0;

	kvmpy_take_kick(vcpu);	/* a kick left over from a run would keep the vCPU out of its guest */
	while (times--)
		if (!vcpu->enter(vcpu))
			seen += vcpu->run->exit_reason == KVM_EXIT_IO;
	return seen;
}

static int nothing(void *context, struct kvmpy_handler_access *access)
{
	(void)context;
	access->value = 0;
	return KVMPY_HANDLED;
}

/* The address of a native handler that does nothing, for the same benchmarks. */
uintptr_t kvmpy_handler_nothing_address(void)
{
	return (uintptr_t)nothing;
}
