/* SPDX-License-Identifier: MIT */
/*
 * One vCPU as the run loop sees it, whatever engine is underneath.
 *
 * An engine supplies enter(): it runs the guest to its next exit, fills *run in the shape of KVM's struct kvm_run and
 * returns 0, or -errno. Before it enters the guest it completes the access of the exit before (KVM API document,
 * "KVM_RUN", 5.: "the corresponding operations are complete only after userspace has re-entered the kernel"), and when
 * run->immediate_exit is set it then returns -EINTR without entering. Kicks, deadlines and budgets all lean on that
 * one rule, so the loop has no check of its own on the way of a hot exit.
 */
#ifndef KVMPY_VCPU_H
#define KVMPY_VCPU_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>
#include <linux/kvm.h>

#define KVMPY_REASONS 64	/* exit reasons counted apart; higher ones share the last counter */
#define KVMPY_RANGES 4096	/* ranges of one machine, ever: ids aren't used twice */
#define KVMPY_UNOWNED 1		/* id of port I/O that nobody owns; then one for each space */
#define KVMPY_EXIT_MEMORY_FAULT 39	/* Linux 6.8 */

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define KVMPY_WANTS_PYTHON -4096	/* of enter(), beside -errno: see KVMPY_RESCUE */

/* What kvmpy_run() returns when it isn't range_id * 2 + is_write of an access for Python. */
enum kvmpy_stop {
	KVMPY_EXIT = -1,	/* any other exit: look at run->exit_reason */
	KVMPY_ELEMENTS = -2,	/* string I/O for an owner that takes it in one piece: see vcpu->access */
	KVMPY_KICKED = -3,	/* see vcpu->why */
	KVMPY_SIGNAL = -4,	/* a signal for somebody else: let Python handle it, then run again */
	KVMPY_FAILED = -5,	/* enter() failed: vcpu->error holds errno */
	KVMPY_BAD_ANSWER = -6,	/* the answer given to a read doesn't fit its size */
	KVMPY_RING_FULL = -7,	/* drain vcpu->ring, then run again; nothing was handled */
	KVMPY_HANDLER_FAILED = -8,	/* a native handler returned -vcpu->error for vcpu->access */
	KVMPY_COALESCED = -9,	/* drain bus->coalesced, then run again; nothing was handled */
	KVMPY_RESCUE = -10,	/* rescue.h wants something that Python makes or knows; nothing was handled */
};

/* Where kvmpy_run() takes up again. */
enum kvmpy_pending {
	KVMPY_ENTER,		/* enter the guest */
	KVMPY_ANSWER,		/* vcpu->access.value answers a read (or a write was done): take it, then enter */
	KVMPY_HANDLE,		/* *run holds an exit nobody has looked at */
	KVMPY_GO_ON,		/* with the elements Python didn't do */
	KVMPY_ANSWER_ONE,	/* as KVMPY_ANSWER, for one of several elements: then go on */
};

/* Bits of vcpu->kick, and of vcpu->why once seen. */
enum kvmpy_kick {
	KVMPY_KICK_STOP = 1,
	KVMPY_KICK_DEADLINE = 2,
	KVMPY_KICK_TICK = 4,
	KVMPY_KICK_BUDGET = 8,
	KVMPY_KICK_UNTIL = 16,
	KVMPY_KICK_TIMER = 32,	/* the thread's own timer; kvmpy_take_kick() says which of its times it was */
	KVMPY_KICK_WAKE = 64,	/* a time that was set with kvmpy_wake_at() */
	KVMPY_KICK_IRQ = 128,	/* an interrupt controller in user space has something for the vCPU */
};

/* The address spaces a bus has. */
enum kvmpy_space { KVMPY_PIO, KVMPY_MMIO, KVMPY_MSR, KVMPY_HYPERCALL, KVMPY_SPACES };

/* An access for Python: read by it as eight 64-bit words, so keep the order (kvmpy/machine/loop.py). */
struct kvmpy_access {
	uint64_t range;		/* id of the range that owns the address */
	uint64_t offset;	/* from the start of that range */
	uint64_t size;		/* bytes of one element: 1, 2, 4, 8 */
	uint64_t value;		/* written by the guest, or the answer to its read */
	uint64_t count;		/* elements; more than 1 for string I/O */
	uint64_t address;	/* port, GPA, MSR index, hypercall number */
	uint64_t is_write;
	uint64_t space;
};

/*
 * An exit that is several accesses: string I/O, all at one port (span 0); or accesses of span bytes that no single
 * range of 1, 2, 4 or 8 bytes holds, done byte by byte. An owner in Python that takes a string whole moves done on.
 */
struct kvmpy_elements {
	uint8_t *data;		/* of element 0, in *run */
	uint64_t address;
	uint64_t done, count;
	uint64_t settled;	/* of those done, how many are counted and logged */
	uint32_t size, span;
	uint32_t space, is_write;
	uint32_t range, log;	/* by the table that the access was handled by: it may have been replaced since */
};

struct kvmpy_bus;
struct kvmpy_dirty;
struct kvmpy_table;
struct kvmpy_ring;
struct kvmpy_measure;
struct kvmpy_rescue;
struct kvmpy_gate;

struct kvmpy_vcpu {
	/* What every exit touches. */
	struct kvm_run *run;
	int (*enter)(struct kvmpy_vcpu *vcpu);
	struct kvmpy_bus *bus;
	struct kvmpy_table *table;	/* the table in use: it isn't freed while it stands here */
	struct kvmpy_ring *ring;	/* atomic; NULL: nothing is logged */
	uint64_t budget;		/* exits left before KVMPY_KICK_BUDGET */
	uint64_t until;			/* exit reasons, a bit each, that are followed by KVMPY_KICK_UNTIL */
	uint64_t *counts;		/* accesses by range id */
	int pending;			/* enum kvmpy_pending */
	int asked;			/* 1 + what a native handler said of the access in *run already; 0: not asked yet */
	int returned;			/* by kvmpy_run(): for a caller that an exception kept from looking */
	int fd;
	uint32_t index;
	uint32_t trace;			/* atomic; log every exit, whoever handles it */
	uint32_t fresh;			/* KVM_SYNC_X86_* of register sets in *run that are the vCPU's */
	struct kvmpy_access access;
	struct kvmpy_elements elements;

	/* Kicks come from other threads and from signal handlers. */
	uint32_t kick;
	uint32_t why;
	pid_t tid;
	pid_t signalled;		/* the tid that a kick's signal is on its way to; 0: none */
	int error;
	/* CLOCK_MONOTONIC; 0: none. tick_ns is a length of time, the others are moments. */
	uint64_t deadline_ns, wake_ns, next_tick_ns, tick_ns;
	timer_t timer;
	bool has_timer;

	void *engine;			/* the engine's own */
	uint32_t *nudge;		/* set when immediate_exit is, for an engine that looks at this only; NULL: none */
	struct kvmpy_measure *measure;	/* while a measurement is on (measure.h), whose wrapper then stands in enter */
	struct kvmpy_dirty *dirty;	/* NULL: a full dirty ring is Python's business */
	struct kvmpy_rescue *rescue;	/* once KVM has given up on an instruction (rescue.h) */
	struct kvmpy_gate *gate;	/* NULL: it is the machine's only one, or there is no rescue */
	uint32_t inside;		/* of that gate */
	uint32_t debug;			/* KVM_GUESTDBG_* that KVM was asked for */
	bool rescue_off;		/* there is no helper to be had */
	uint64_t exits[KVMPY_REASONS];
	uint64_t eintr, eagain;
} __attribute__((aligned(64)));

struct kvmpy_vcpu *kvmpy_vcpu_new(uint32_t index, struct kvm_run *run, int fd);
void kvmpy_vcpu_free(struct kvmpy_vcpu *vcpu);
void kvmpy_vcpu_begin(struct kvmpy_vcpu *vcpu, uint64_t budget, uint64_t until);
void kvmpy_vcpu_log(struct kvmpy_vcpu *vcpu, struct kvmpy_ring *ring, uint32_t trace);
int kvmpy_run(struct kvmpy_vcpu *vcpu);

/* For an engine in the middle of the guest's instruction: run.c says when they may be called and what they do. */
bool kvmpy_try_rule(struct kvmpy_vcpu *vcpu, uint32_t reason, int space, uint64_t address, uint8_t *data, uint32_t size,
		    bool is_write);
bool kvmpy_is_claimed(struct kvmpy_vcpu *vcpu, int space, uint64_t address);

/* kick.c */
int kvmpy_thread_enter(struct kvmpy_vcpu *vcpu, uint64_t deadline_ns, uint64_t tick_ns);
void kvmpy_thread_leave(struct kvmpy_vcpu *vcpu);
struct kvmpy_vcpu *kvmpy_thread_vcpu(void);
void kvmpy_kick(struct kvmpy_vcpu *vcpu, uint32_t why);
uint32_t kvmpy_take_kick(struct kvmpy_vcpu *vcpu);
int kvmpy_wake_at(struct kvmpy_vcpu *vcpu, uint64_t when_ns);
void kvmpy_sleep(struct kvmpy_vcpu *vcpu, uint64_t most_ns);

/* kvm_engine.c, stub.c */
int kvmpy_kvm_enter(struct kvmpy_vcpu *vcpu);
void kvmpy_kvm_step(struct kvmpy_vcpu *vcpu, struct kvm_guest_debug *debug);

#endif
