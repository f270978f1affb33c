// SPDX-License-Identifier: MIT
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "measure.h"
#include "stamp.h"

#define INJECT_OFFSET 1		/* of the port INJECT behind CONTROL */

uint64_t kvmpy_measure_tsc(void)
{
	return kvmpy_stamp();
}

static int measuring_enter(struct kvmpy_vcpu *vcpu)
{
	struct kvmpy_measure *m = vcpu->measure;
	struct kvmpy_collector *c = m->collector;
	struct kvmpy_crossing *crossing = &c->crossings[c->crossed];
	int error;

	/* More than a chunk can have: the last one is overwritten and its samples count as without a split. */
	if (likely(c->crossed < KVMPY_CROSSINGS - 1))
		c->crossed++;
	crossing->enter = kvmpy_stamp();
	error = m->enter(vcpu);
	crossing->leave = kvmpy_stamp();
	return error;
}

void kvmpy_measure_start(struct kvmpy_measure *m, struct kvmpy_vcpu *vcpu)
{
	m->vcpu = vcpu;
	m->enter = vcpu->enter;
	m->injected = 0;
	m->error = 0;
	kvmpy_collector_start(m->collector);
	vcpu->measure = m;
	vcpu->enter = measuring_enter;
}

void kvmpy_measure_stop(struct kvmpy_measure *m)
{
	m->vcpu->enter = m->enter;
	m->vcpu->measure = NULL;
}

static int get_dirty_log(const struct kvmpy_measure *m)
{
	struct kvm_dirty_log log = { .slot = m->slot, .dirty_bitmap = m->bitmap };

	return ioctl(m->vm_fd, KVM_GET_DIRTY_LOG, &log) ? errno : 0;
}

static int prepare(const struct kvmpy_measure *m)
{
	switch (m->prepare) {
	case KVMPY_PREPARE_UNMAP:
		return madvise(m->memory, m->length, MADV_DONTNEED) ? errno : 0;
	case KVMPY_PREPARE_REMAP:
		if (madvise(m->memory, m->length, MADV_DONTNEED))
			return errno;
		for (uint64_t at = 0; at < m->length; at += m->stride)
			((volatile uint8_t *)m->memory)[at] = 0;
		return 0;
	case KVMPY_PREPARE_DIRTY_LOG:
		return get_dirty_log(m);
	}
	return 0;
}

static int chunk_done(struct kvmpy_measure *m)
{
	struct kvmpy_collector *c = m->collector;

	kvmpy_collect(c);
	m->injected = 0;
	m->error = prepare(m);
	c->switches = kvmpy_switches();
	if (m->error || c->chunks >= m->most)
		return KVMPY_PASS;
	if (kvmpy_stamp() < m->deadline)
		return KVMPY_HANDLED;
	/* The time was up before anything was recorded: the next chunk is, warm or not. */
	c->warm = true;
	return c->chunks ? KVMPY_PASS : KVMPY_HANDLED;
}

/* The sample begins here; its end is the guest's. */
static int inject(struct kvmpy_measure *m)
{
	struct kvmpy_collector *c = m->collector;
	struct kvm_irq_level level = { .irq = m->line, .level = 1 };
	uint64_t one = 1;
	int failed = 0;

	if (m->injected >= c->chunk)
		return KVMPY_PASS;
	c->samples[2 * m->injected++] = kvmpy_stamp() + c->tsc_offset;
	if (m->inject == KVMPY_INJECT_LINE)
		failed = ioctl(m->inject_fd, KVM_IRQ_LINE, &level);
	else if (m->inject == KVMPY_INJECT_EVENTFD)
		failed = write(m->inject_fd, &one, sizeof(one)) != sizeof(one);
	if (failed)
		m->error = errno;
	return failed ? KVMPY_PASS : KVMPY_HANDLED;
}

int kvmpy_measure_control(void *context, struct kvmpy_handler_access *access)
{
	return access->offset == INJECT_OFFSET ? inject(context) : chunk_done(context);
}

int kvmpy_measure_spin(void *context, struct kvmpy_handler_access *access)
{
	uint64_t until = kvmpy_stamp() + *(const uint64_t *)context;

	(void)access;
	while (kvmpy_stamp() < until)
		;
	return KVMPY_HANDLED;
}

kvmpy_handler *kvmpy_measure_control_address(void)
{
	return kvmpy_measure_control;
}

kvmpy_handler *kvmpy_measure_spin_address(void)
{
	return kvmpy_measure_spin;
}

/* Host loops */

void kvmpy_measure_record(struct kvmpy_collector *c, const uint64_t *durations, uint64_t count, uint64_t switches)
{
	bool interrupted = kvmpy_switches() != switches;

	for (uint64_t i = 0; i < count; i++)
		kvmpy_histogram_record(interrupted ? c->interrupted : c->total, durations[i]);
	c->chunks++;
	c->chunks_interrupted += interrupted;
}

int kvmpy_measure_immediate(struct kvmpy_collector *c, struct kvmpy_vcpu *vcpu, uint64_t count, uint64_t sync)
{
	uint64_t durations[KVMPY_CHUNK_MAX], switches = kvmpy_switches();
	uint64_t valid = vcpu->run->kvm_valid_regs;
	int error = -EINTR;

	if (count > KVMPY_CHUNK_MAX)
		return -E2BIG;
	vcpu->run->kvm_valid_regs = sync;
	for (uint64_t i = 0; i < count && error == -EINTR; i++) {
		uint64_t began;

		vcpu->run->immediate_exit = 1;
		vcpu->run->kvm_dirty_regs = sync;
		began = kvmpy_stamp();
		error = vcpu->enter(vcpu);
		durations[i] = kvmpy_stamp() - began;
	}
	vcpu->run->immediate_exit = 0;
	vcpu->run->kvm_valid_regs = valid;
	if (error != -EINTR)
		return error ? error : -EPROTO;
	kvmpy_measure_record(c, durations, count, switches);
	return 0;
}

enum { IDLE, ARMED, KICKED, QUIT };

struct kicker {
	struct kvmpy_vcpu *vcpu;
	uint64_t delay_ns, stamp;
	uint32_t state;
};

static void set_affinity(pthread_t thread, int cpu)
{
	cpu_set_t set;
	long cpus = sysconf(_SC_NPROCESSORS_CONF);

	CPU_ZERO(&set);
	for (long i = 0; i < cpus && i < CPU_SETSIZE; i++)
		if (cpu < 0 || i == cpu)
			CPU_SET(i, &set);
	pthread_setaffinity_np(thread, sizeof(set), &set);	/* best effort: a cpuset may forbid it */
}

static void *kicker_main(void *argument)
{
	struct kicker *k = argument;
	struct timespec delay = { .tv_nsec = k->delay_ns };
	uint32_t state;

	while ((state = __atomic_load_n(&k->state, __ATOMIC_ACQUIRE)) != QUIT) {
		nanosleep(&delay, NULL);
		if (state != ARMED)
			continue;
		__atomic_store_n(&k->state, KICKED, __ATOMIC_RELEASE);
		k->stamp = kvmpy_stamp();
		kvmpy_kick(k->vcpu, KVMPY_KICK_STOP);
	}
	return NULL;
}

static int kick_samples(struct kvmpy_collector *c, struct kicker *k, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t switches = kvmpy_switches(), duration, left;
		int result;

		__atomic_store_n(&k->state, ARMED, __ATOMIC_RELEASE);
		do
			result = kvmpy_run(k->vcpu);
		while (result == KVMPY_SIGNAL);
		left = kvmpy_stamp();
		if (result != KVMPY_KICKED)
			return -EPROTO;
		duration = left - k->stamp;
		kvmpy_measure_record(c, &duration, 1, switches);
	}
	return 0;
}

int kvmpy_measure_kick(struct kvmpy_collector *c, struct kvmpy_vcpu *vcpu, uint64_t count, uint64_t delay_ns, int cpu)
{
	struct kicker kicker = { .vcpu = vcpu, .delay_ns = delay_ns };
	pthread_t thread;
	int error = kvmpy_thread_enter(vcpu, 0, 0);

	if (error)
		return error;
	error = -pthread_create(&thread, NULL, kicker_main, &kicker);
	if (!error) {
		set_affinity(thread, cpu);
		error = kick_samples(c, &kicker, count);
		__atomic_store_n(&kicker.state, QUIT, __ATOMIC_RELEASE);
		pthread_join(thread, NULL);
		kvmpy_take_kick(vcpu);
	}
	kvmpy_thread_leave(vcpu);
	return error;
}

void kvmpy_thread_on_cpu(unsigned long thread, int cpu)
{
	set_affinity(thread, cpu);
}
