/* SPDX-License-Identifier: MIT */
/* The translate engine as Python drives it (kvmpy/translate); enter() is behind struct kvmpy_vcpu. */
#ifndef KVMPY_TRANSLATE_API_H
#define KVMPY_TRANSLATE_API_H

#include "vcpu.h"

/* NULL, or why the Unicorn library at path can't be used. Once per process. */
const char *kvmpy_translate_load(const char *path);

/* A vCPU in the state after RESET, without memory; NULL with *error a reason. */
struct kvmpy_vcpu *kvmpy_translate_new(uint32_t index, const char **error);
void kvmpy_translate_free(struct kvmpy_vcpu *vcpu);

int kvmpy_translate_enter(struct kvmpy_vcpu *vcpu);

/* Whatever is below works between two runs only, but for kvmpy_translate_wrote() and _viewed(). 0 or -errno. */
int kvmpy_translate_map(struct kvmpy_vcpu *vcpu, uint32_t number, uint64_t gpa, uint64_t size, void *host, bool readonly);
void kvmpy_translate_wrote(struct kvmpy_vcpu *vcpu, uint64_t gpa, uint64_t size);
void kvmpy_translate_viewed(struct kvmpy_vcpu *vcpu, uint64_t gpa, uint64_t size);
void kvmpy_translate_views(struct kvmpy_vcpu *vcpu, uint32_t count, const uint64_t *views);
int64_t kvmpy_translate_linear(struct kvmpy_vcpu *vcpu, uint64_t linear);

void kvmpy_translate_get_regs(struct kvmpy_vcpu *vcpu, struct kvm_regs *regs);
void kvmpy_translate_set_regs(struct kvmpy_vcpu *vcpu, const struct kvm_regs *regs);
void kvmpy_translate_get_sregs(struct kvmpy_vcpu *vcpu, struct kvm_sregs *sregs);
int kvmpy_translate_set_sregs(struct kvmpy_vcpu *vcpu, const struct kvm_sregs *sregs);
void kvmpy_translate_get_fpu(struct kvmpy_vcpu *vcpu, struct kvm_fpu *fpu);
void kvmpy_translate_set_fpu(struct kvmpy_vcpu *vcpu, const struct kvm_fpu *fpu);
void kvmpy_translate_get_debugregs(struct kvmpy_vcpu *vcpu, struct kvm_debugregs *regs);
void kvmpy_translate_set_debugregs(struct kvmpy_vcpu *vcpu, const struct kvm_debugregs *regs);
void kvmpy_translate_get_events(struct kvmpy_vcpu *vcpu, struct kvm_vcpu_events *events);
void kvmpy_translate_set_events(struct kvmpy_vcpu *vcpu, const struct kvm_vcpu_events *events);
uint64_t kvmpy_translate_get_xcr0(struct kvmpy_vcpu *vcpu);
int kvmpy_translate_set_xcr0(struct kvmpy_vcpu *vcpu, uint64_t value);
bool kvmpy_translate_get_msr(struct kvmpy_vcpu *vcpu, uint32_t index, uint64_t *value);
bool kvmpy_translate_set_msr(struct kvmpy_vcpu *vcpu, uint32_t index, uint64_t value);
void kvmpy_translate_set_msr_exits(struct kvmpy_vcpu *vcpu, uint32_t reasons);
uint32_t kvmpy_translate_get_mp_state(struct kvmpy_vcpu *vcpu);
void kvmpy_translate_set_mp_state(struct kvmpy_vcpu *vcpu, uint32_t state);
int kvmpy_translate_set_cpuid(struct kvmpy_vcpu *vcpu, const struct kvm_cpuid_entry2 *entries, uint32_t count);

/* What the translator itself would answer: four registers. */
void kvmpy_translate_native_cpuid(struct kvmpy_vcpu *vcpu, uint32_t function, uint32_t index, uint32_t *registers);
int kvmpy_translate_interrupt(struct kvmpy_vcpu *vcpu, uint32_t vector);	/* -EEXIST: one is pending */
void kvmpy_translate_nmi(struct kvmpy_vcpu *vcpu);
int kvmpy_translate_set_debug(struct kvmpy_vcpu *vcpu, const struct kvm_guest_debug *debug);

/*
 * For good: enter() comes back with KVM_EXIT_DEBUG behind each instruction, unless goes_on() is true for the bytes of the
 * next (user, code, its size), and with KVM_EXIT_EXCEPTION at one the translator doesn't know. 0 or -ENOMEM.
 */
typedef bool kvmpy_goes_on(void *user, const uint8_t *code, uint32_t size);
/* Told of each page of memory that is written, by slot number and page in it. */
typedef void kvmpy_wrote(void *user, uint32_t slot, uint64_t page);
int kvmpy_translate_single(struct kvmpy_vcpu *vcpu, kvmpy_goes_on *goes_on, kvmpy_wrote *wrote, void *user);
/* In front of the first enter() for an instruction; undefined: it is #UD if the translator doesn't know it. */
void kvmpy_translate_single_begin(struct kvmpy_vcpu *vcpu, bool undefined);
/* The code at rip, as much of it as can be read. */
uint32_t kvmpy_translate_code(struct kvmpy_vcpu *vcpu, uint8_t *into, uint32_t size);

#endif
