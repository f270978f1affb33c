/* SPDX-License-Identifier: MIT */
/*
 * The ABI of a native handler: a C function that owns a range of ports, guest physical addresses, MSRs or hypercalls.
 *
 * Include this file, export a function of type kvmpy_handler and
 *
 *	const uint32_t kvmpy_handler_abi = KVMPY_HANDLER_ABI;
 *
 * from a shared library, and attach it with machine.ports.native(first, length, "path/to/library.so:function").
 *
 * The function is called on the vCPU's thread without Python's global lock. Several vCPUs may call it at the same time:
 * what it shares it must protect. It must not block, and must not call into Python.
 */
#ifndef KVMPY_HANDLER_H
#define KVMPY_HANDLER_H

#include <stdint.h>

#define KVMPY_HANDLER_ABI 1

/* Fields may be added at the end, with a higher ABI number; the ones here stay where they are. */
struct kvmpy_handler_access {
	uint64_t address;	/* port, GPA, MSR index or hypercall number */
	uint64_t offset;	/* address - first address of the range */
	uint64_t value;		/* written by the guest; a read's answer goes here */
	uint32_t size;		/* bytes: 1, 2, 4 or 8 */
	uint32_t is_write;
	uint32_t vcpu;		/* index of the vCPU */
	uint32_t space;		/* 0 port I/O, 1 MMIO, 2 MSR, 3 hypercall */
};

enum {
	KVMPY_HANDLED = 0,
	KVMPY_PASS = 1,		/* this one access goes to the range's Python handler */
	/* Negative: -errno. The vCPU stops at this access and run() raises. */
};

typedef int kvmpy_handler(void *context, struct kvmpy_handler_access *access);

#endif
