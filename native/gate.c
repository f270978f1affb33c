// SPDX-License-Identifier: MIT
/*
 * Keeps the other vCPUs of a machine out of their guest for a moment: what translated code does to memory isn't atomic
 * to them.
 *
 * A vCPU says it is inside, then looks whether the gate is closed; who closes it does both the other way round. So
 * either it is seen inside, and kicked until it leaves, or it sees the gate closed and waits in front of it. A kick
 * without a reason: to its loop it is a signal for somebody else.
 */
#include <errno.h>
#include <stdlib.h>

#include "rescue.h"

#define PATIENCE_NS 1000000	/* until those inside are kicked once more */

struct kvmpy_gate *kvmpy_gate_new(struct kvmpy_vcpu **vcpus, uint32_t count)
{
	struct kvmpy_gate *gate = calloc(1, sizeof(*gate));

	if (!gate)
		return NULL;
	gate->vcpus = calloc(count, sizeof(*gate->vcpus));
	if (!gate->vcpus) {
		free(gate);
		return NULL;
	}
	for (uint32_t i = 0; i < count; i++)
		gate->vcpus[i] = vcpus[i];
	gate->count = count;
	pthread_mutex_init(&gate->lock, NULL);
	sem_init(&gate->left, 0, 0);
	return gate;
}

void kvmpy_gate_free(struct kvmpy_gate *gate)
{
	if (!gate)
		return;
	sem_destroy(&gate->left);
	pthread_mutex_destroy(&gate->lock);
	free(gate->vcpus);
	free(gate);
}

void kvmpy_gate_leave(struct kvmpy_gate *gate, struct kvmpy_vcpu *vcpu)
{
	__atomic_store_n(&vcpu->inside, 0, __ATOMIC_SEQ_CST);
	if (unlikely(__atomic_load_n(&gate->closed, __ATOMIC_SEQ_CST)))
		sem_post(&gate->left);
}

void kvmpy_gate_pass(struct kvmpy_gate *gate, struct kvmpy_vcpu *vcpu)
{
	for (;;) {
		__atomic_store_n(&vcpu->inside, 1, __ATOMIC_SEQ_CST);
		if (likely(!__atomic_load_n(&gate->closed, __ATOMIC_SEQ_CST)))
			return;
		kvmpy_gate_leave(gate, vcpu);
		pthread_mutex_lock(&gate->lock);
		pthread_mutex_unlock(&gate->lock);
	}
}

static bool kick_those_inside(struct kvmpy_gate *gate, struct kvmpy_vcpu *vcpu)
{
	bool any = false;

	for (uint32_t i = 0; i < gate->count; i++) {
		struct kvmpy_vcpu *other = gate->vcpus[i];

		if (other == vcpu || !__atomic_load_n(&other->inside, __ATOMIC_SEQ_CST))
			continue;
		any = true;
		kvmpy_kick(other, 0);
	}
	return any;
}

/* The vCPU that closes it is outside. Until it opens it again no other one is inside. */
void kvmpy_gate_close(struct kvmpy_gate *gate, struct kvmpy_vcpu *vcpu)
{
	pthread_mutex_lock(&gate->lock);
	__atomic_store_n(&gate->closed, 1, __ATOMIC_SEQ_CST);
	while (kick_those_inside(gate, vcpu)) {
		struct timespec until;

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += PATIENCE_NS;
		if (until.tv_nsec >= 1000000000) {
			until.tv_nsec -= 1000000000;
			until.tv_sec++;
		}
		sem_timedwait(&gate->left, &until);
	}
}

void kvmpy_gate_open(struct kvmpy_gate *gate)
{
	__atomic_store_n(&gate->closed, 0, __ATOMIC_SEQ_CST);
	while (!sem_trywait(&gate->left))
		;
	pthread_mutex_unlock(&gate->lock);
}
