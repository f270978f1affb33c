/* SPDX-License-Identifier: MIT */
/*
 * Rescue: an instruction that KVM can't emulate (KVM_EXIT_INTERNAL_ERROR, emulation failure) is carried out by a vCPU
 * of the translate engine on the same memory, its helper, and the guest goes on in KVM.
 *
 * kvmpy_rescue_enter() stands in vcpu->enter instead of the engine's own. Until the first failure there is nothing
 * else; then it returns KVMPY_WANTS_PYTHON, and Python makes the helper. An access to a device in the middle of a
 * rescued instruction is an exit of the vCPU's like any other, completed by the next enter().
 */
#ifndef KVMPY_RESCUE_H
#define KVMPY_RESCUE_H

#include <pthread.h>
#include <semaphore.h>

#include "vcpu.h"

#define KVMPY_RESCUE_KINDS 512

/* What of a vCPU's state an instruction needs beside registers, segments and the interrupt shadow. */
enum kvmpy_carry {
	KVMPY_CARRY_FPU = 1,	/* x87 and SSE */
	KVMPY_CARRY_XCR0 = 2,
	KVMPY_CARRY_MSRS = 4,
	KVMPY_CARRY_DEBUG = 8,	/* DR6: single steps of the guest's own */
	KVMPY_CARRY_NEVER = 16,	/* the translator does it wrong */
};

/* Why an instruction wasn't rescued. */
enum kvmpy_rescue_why {
	KVMPY_RESCUE_NOT_TRIED,
	KVMPY_RESCUE_UNKNOWN,	/* the translator can't do it either */
	KVMPY_RESCUE_STUCK,	/* it did, and nothing changed; or it doesn't end */
	KVMPY_RESCUE_STATE,	/* the vCPU has a state that the translator can't have */
	KVMPY_RESCUE_CODE,	/* there are no bytes at rip */
	KVMPY_RESCUE_DEVICE,	/* it accesses an interrupt controller in the kernel */
	KVMPY_RESCUE_ERROR,	/* an ioctl failed: rescue->error is errno, rescue->request which */
};

/* Instructions that differ in operands only are one kind. */
struct kvmpy_kind {
	uint64_t sign;
	uint64_t count;
	uint8_t bytes[15];	/* of the first one */
	uint8_t size;		/* of these, as many as could be read */
	uint8_t bits;		/* of the code it stood in: 16, 32, 64 */
	uint8_t head;		/* bytes of it that say which kind it is: prefixes, opcode, perhaps ModR/M */
};

/* The vCPUs of a machine that mustn't run while another one's instruction is rescued. */
struct kvmpy_gate {
	struct kvmpy_vcpu **vcpus;
	uint32_t count;
	uint32_t closed;
	pthread_mutex_t lock;
	sem_t left;		/* posted by each that leaves the guest while it is closed */
};

struct kvmpy_rescue {
	struct kvmpy_vcpu *vcpu, *helper;
	uint64_t rescued, turns;
	uint32_t sync;		/* KVM_SYNC_X86_* that travel in *run */
	bool apic, ioapic;	/* these are in the kernel */
	bool under_way;		/* an access of the instruction waits for its completion */
	bool accessed;		/* it had one */
	bool ask;		/* Python is to say whether the instruction at asked_rip is #UD */
	bool ruled, undefined;	/* it has, and what */
	uint64_t asked_rip;
	int why, error;
	unsigned long request;
	uint32_t carried;	/* enum kvmpy_carry */
	uint64_t gs_base;
	uint32_t kind_count;
	struct kvmpy_kind *last;	/* counted */
	uint32_t most, together;	/* instructions left in this rescue; of those done, how many behind the first */
	uint32_t bits;
	uint32_t debugging;	/* KVM_GUESTDBG_* of the helper */
	pthread_mutex_t lock;	/* of the helper: any thread changes memory slots */

	/* The helper's state when the instruction began. */
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_fpu fpu;
	struct kvm_debugregs debug;
	struct kvm_vcpu_events events;
	uint8_t failure[256];	/* KVM's exit, whose place in *run accesses may take */
	struct kvm_xsave *xsave;
	uint32_t xsave_size;
	struct kvmpy_kind kinds[KVMPY_RESCUE_KINDS];
};

int kvmpy_rescue_enter(struct kvmpy_vcpu *vcpu);

/* rescue_kinds.c */
uint32_t kvmpy_rescue_decode(const uint8_t *code, uint32_t size, uint32_t bits, uint64_t *sign, uint8_t *head);
struct kvmpy_kind *kvmpy_rescue_known(struct kvmpy_rescue *r, const uint8_t *code, uint32_t size);
void kvmpy_rescue_count(struct kvmpy_rescue *r, const uint8_t *code, uint32_t size);
void kvmpy_rescue_uncount(struct kvmpy_rescue *r);

/* rescue_carry.c */
int rescue_carry_over(struct kvmpy_rescue *r);
int rescue_carry_back(struct kvmpy_rescue *r);
int rescue_carry_more(struct kvmpy_rescue *r, const uint8_t *code, uint32_t size, uint32_t carry);
int rescue_fail(struct kvmpy_rescue *r, int why);

/* gate.c */
struct kvmpy_gate *kvmpy_gate_new(struct kvmpy_vcpu **vcpus, uint32_t count);
void kvmpy_gate_free(struct kvmpy_gate *gate);
void kvmpy_gate_pass(struct kvmpy_gate *gate, struct kvmpy_vcpu *vcpu);
void kvmpy_gate_leave(struct kvmpy_gate *gate, struct kvmpy_vcpu *vcpu);
void kvmpy_gate_close(struct kvmpy_gate *gate, struct kvmpy_vcpu *vcpu);
void kvmpy_gate_open(struct kvmpy_gate *gate);

/* For Python. */
void kvmpy_rescue_install(struct kvmpy_vcpu *vcpu, struct kvmpy_gate *gate);
struct kvmpy_rescue *kvmpy_rescue_new(struct kvmpy_vcpu *vcpu, struct kvmpy_vcpu *helper, uint32_t sync,
				      uint32_t xsave_size);
void kvmpy_rescue_free(struct kvmpy_rescue *rescue);
int kvmpy_rescue_map(struct kvmpy_rescue *rescue, uint32_t slot, uint64_t gpa, uint64_t size, void *host, bool readonly);

#endif
