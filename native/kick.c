// SPDX-License-Identifier: MIT
/*
 * Getting a vCPU out of its guest: from another thread, from a timer, from the budget.
 *
 * A kick sets its bit, then run->immediate_exit, then sends the thread a signal whose handler sets immediate_exit once
 * more. Whether the vCPU is in the guest, on its way into it, or in Python, its next or current entry returns EINTR;
 * there is no moment at which a kick could be missed (KVM API document, kvm_run.immediate_exit).
 *
 * Real-time signals queue, each of them, so a thread that is kicked faster than it takes signals would do nothing else.
 * So there is one on its way at most: vcpu->signalled names the thread it went to, and the handler takes that back
 * before it sets immediate_exit, which makes it the signal of every kick until then.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vcpu.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define KICK_SIGNAL (SIGRTMIN + 5)

static __thread struct kvmpy_vcpu *running;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void set_immediate_exit(struct kvmpy_vcpu *vcpu, uint8_t value)
{
	__atomic_store_n(&vcpu->run->immediate_exit, value, __ATOMIC_SEQ_CST);
	if (value && vcpu->nudge)
		__atomic_store_n(vcpu->nudge, 1, __ATOMIC_SEQ_CST);
}

static void on_kick(int number, siginfo_t *info, void *context)
{
	struct kvmpy_vcpu *vcpu = running;

	(void)number;
	(void)context;
	if (!vcpu)
		return;
	__atomic_store_n(&vcpu->signalled, 0, __ATOMIC_SEQ_CST);
	if (info->si_code == SI_TIMER)
		__atomic_fetch_or(&vcpu->kick, KVMPY_KICK_TIMER, __ATOMIC_SEQ_CST);
	set_immediate_exit(vcpu, 1);
}

static int install_error;

static void install(void)
{
	struct sigaction action = { .sa_sigaction = on_kick, .sa_flags = SA_SIGINFO };

	sigemptyset(&action.sa_mask);
	install_error = sigaction(KICK_SIGNAL, &action, NULL) ? errno : 0;
}

static uint64_t sooner(uint64_t one, uint64_t other)
{
	if (!one || !other)
		return one + other;
	return one < other ? one : other;
}

/* One shot, at whichever of the times comes first; taking the kick arms it for the next. */
static int arm(struct kvmpy_vcpu *vcpu)
{
	uint64_t next = sooner(sooner(vcpu->deadline_ns, vcpu->wake_ns), vcpu->next_tick_ns);
	struct itimerspec when = {
		.it_value = { .tv_sec = next / 1000000000, .tv_nsec = next % 1000000000 },
	};

	return timer_settime(vcpu->timer, TIMER_ABSTIME, &when, NULL) ? -errno : 0;
}

/* A timer whose signal goes to this thread; it is deleted when the thread leaves, for the next may be another. */
static int start_timer(struct kvmpy_vcpu *vcpu)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KICK_SIGNAL };

	event.sigev_notify_thread_id = vcpu->tid;
	if (timer_create(CLOCK_MONOTONIC, &event, &vcpu->timer))
		return -errno;
	vcpu->has_timer = true;
	return arm(vcpu);
}

/*
 * From now on this thread runs the vCPU. deadline_ns is on CLOCK_MONOTONIC, 0 for none; tick_ns asks for a
 * KVMPY_KICK_TICK that often, 0 for none. What kvmpy_wake_at() has set before stands.
 */
int kvmpy_thread_enter(struct kvmpy_vcpu *vcpu, uint64_t deadline_ns, uint64_t tick_ns)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, install);
	if (install_error)
		return -install_error;
	if (vcpu->tid || running)
		return -EBUSY;
	running = vcpu;
	vcpu->deadline_ns = deadline_ns;
	vcpu->tick_ns = tick_ns;
	vcpu->next_tick_ns = tick_ns ? now_ns() + tick_ns : 0;
	__atomic_store_n(&vcpu->signalled, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&vcpu->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	if (deadline_ns || tick_ns || vcpu->wake_ns) {
		int error = start_timer(vcpu);

		if (error)
			kvmpy_thread_leave(vcpu);
		return error;
	}
	return 0;
}

/* Does nothing if the thread isn't the vCPU's. */
void kvmpy_thread_leave(struct kvmpy_vcpu *vcpu)
{
	if (running != vcpu)
		return;
	if (vcpu->has_timer) {
		timer_delete(vcpu->timer);
		vcpu->has_timer = false;
	}
	running = NULL;
	__atomic_store_n(&vcpu->tid, 0, __ATOMIC_SEQ_CST);
}

/* The vCPU that this thread runs; NULL: none. */
struct kvmpy_vcpu *kvmpy_thread_vcpu(void)
{
	return running;
}

void kvmpy_kick(struct kvmpy_vcpu *vcpu, uint32_t why)
{
	pid_t tid;

	__atomic_fetch_or(&vcpu->kick, why, __ATOMIC_SEQ_CST);
	set_immediate_exit(vcpu, 1);
	tid = __atomic_load_n(&vcpu->tid, __ATOMIC_SEQ_CST);
	if (!tid || running == vcpu || __atomic_exchange_n(&vcpu->signalled, tid, __ATOMIC_SEQ_CST) == tid)
		return;
	/* The user may have as many signals waiting as it may have (RLIMIT_SIGPENDING): then the next kick tries again. */
	if (syscall(SYS_tgkill, getpid(), tid, KICK_SIGNAL))
		__atomic_store_n(&vcpu->signalled, 0, __ATOMIC_SEQ_CST);
}

/* A KVMPY_KICK_WAKE at that time of CLOCK_MONOTONIC instead of any asked for before; 0: none. On the vCPU's thread. */
int kvmpy_wake_at(struct kvmpy_vcpu *vcpu, uint64_t when_ns)
{
	vcpu->wake_ns = when_ns;
	if (vcpu->has_timer)
		return arm(vcpu);
	return vcpu->tid && when_ns ? start_timer(vcpu) : 0;
}

/* Which of the timer's times have come. */
static uint32_t take_due(struct kvmpy_vcpu *vcpu)
{
	uint64_t now = now_ns();
	uint32_t why = 0;

	if (vcpu->deadline_ns && now >= vcpu->deadline_ns) {
		vcpu->deadline_ns = 0;
		why |= KVMPY_KICK_DEADLINE;
	}
	if (vcpu->wake_ns && now >= vcpu->wake_ns) {
		vcpu->wake_ns = 0;
		why |= KVMPY_KICK_WAKE;
	}
	if (vcpu->next_tick_ns && now >= vcpu->next_tick_ns) {
		vcpu->next_tick_ns = now + vcpu->tick_ns;
		why |= KVMPY_KICK_TICK;
	}
	if (vcpu->has_timer)
		arm(vcpu);
	return why;
}

/* Why enter() returned EINTR: the kicks since the last time. 0: only a time that has been put off since. */
uint32_t kvmpy_take_kick(struct kvmpy_vcpu *vcpu)
{
	uint32_t why;

	/* In this order: a kick between the two leaves immediate_exit set, which costs one entry and loses nothing. */
	set_immediate_exit(vcpu, 0);
	why = __atomic_exchange_n(&vcpu->kick, 0, __ATOMIC_SEQ_CST);
	if (why & KVMPY_KICK_TIMER)
		why = (why & ~KVMPY_KICK_TIMER) | take_due(vcpu);
	return why;
}

/*
 * Sleeps until somebody kicks the vCPU, a signal comes, or the time is over. On the vCPU's thread; the kick isn't taken.
 * The kick's signal is let in by the system call alone, so none comes between the look and the sleep.
 */
void kvmpy_sleep(struct kvmpy_vcpu *vcpu, uint64_t most_ns)
{
	struct timespec most = { .tv_sec = most_ns / 1000000000, .tv_nsec = most_ns % 1000000000 };
	sigset_t kick, before;

	sigemptyset(&kick);
	sigaddset(&kick, KICK_SIGNAL);
	pthread_sigmask(SIG_BLOCK, &kick, &before);
	if (!__atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_SEQ_CST))
		pselect(0, NULL, NULL, NULL, &most, &before);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}
