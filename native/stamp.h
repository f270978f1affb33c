/* SPDX-License-Identifier: MIT */
/* Time stamps of the laboratory. */
#ifndef KVMPY_STAMP_H
#define KVMPY_STAMP_H

#include <stdint.h>

/*
 * The TSC between two fences: everything before has finished, nothing after has begun (SDM vol. 2, RDTSC). The same as
 * RDTSCP and LFENCE, on CPUs without RDTSCP too; guests do the same (guest_images/lab/exits.inc).
 */
static inline uint64_t kvmpy_stamp(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a" (low), "=d" (high) : : "memory");
	return (uint64_t)high << 32 | low;
}

#endif
