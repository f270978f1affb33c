/* SPDX-License-Identifier: MIT */
/* An engine without a guest: replays a script of exits. For tests of the loop, and as the floor of its benchmarks. */
#ifndef KVMPY_STUB_H
#define KVMPY_STUB_H

#include "vcpu.h"

struct kvmpy_stub_exit {
	uint32_t reason;
	uint32_t size, count, is_write;
	uint64_t address;
	uint8_t data[4096];	/* written by the guest; after a read, what the guest got */
};

struct kvmpy_stub {
	struct kvmpy_stub_exit *script;
	uint64_t length, next;
	uint64_t repeat;	/* how often the script starts over */
	uint64_t entered;
};

struct kvmpy_vcpu *kvmpy_stub_new(uint32_t index, struct kvmpy_stub *stub);
void kvmpy_stub_free(struct kvmpy_vcpu *vcpu);
uint64_t kvmpy_floor(struct kvmpy_vcpu *vcpu, uint64_t times);
uintptr_t kvmpy_handler_nothing_address(void);

/* One exit, over and over, at the least cost: what benchmarks compare with. */
void kvmpy_stub_fixed(struct kvmpy_vcpu *vcpu, const struct kvmpy_stub_exit *exit);

#endif
