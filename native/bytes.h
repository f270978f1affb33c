/* SPDX-License-Identifier: MIT */
/* Little-endian values of 1, 2, 4 or 8 bytes (and odd sizes) at addresses of any alignment. */
#ifndef KVMPY_BYTES_H
#define KVMPY_BYTES_H

#include <stdint.h>
#include <string.h>

typedef uint16_t kvmpy_u16 __attribute__((aligned(1), may_alias));
typedef uint32_t kvmpy_u32 __attribute__((aligned(1), may_alias));
typedef uint64_t kvmpy_u64 __attribute__((aligned(1), may_alias));

static inline uint64_t get(const uint8_t *bytes, uint32_t size)
{
	uint64_t value = 0;

	switch (size) {
	case 1: return *bytes;
	case 2: return *(const kvmpy_u16 *)bytes;
	case 4: return *(const kvmpy_u32 *)bytes;
	case 8: return *(const kvmpy_u64 *)bytes;
	}
	memcpy(&value, bytes, size);
	return value;
}

static inline uint64_t low_bytes(uint64_t value, uint32_t size)
{
	return size >= 8 ? value : value & ((1ULL << (8 * size)) - 1);
}

static inline void put(uint8_t *bytes, uint64_t value, uint32_t size)
{
	switch (size) {
	case 1: *bytes = value; return;
	case 2: *(kvmpy_u16 *)bytes = value; return;
	case 4: *(kvmpy_u32 *)bytes = value; return;
	case 8: *(kvmpy_u64 *)bytes = value; return;
	}
	memcpy(bytes, &value, size);
}

#endif
