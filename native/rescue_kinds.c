// SPDX-License-Identifier: MIT
/* Kinds of instructions: which is which by its first bytes, what state each needs, and how often each was rescued. */
#include <string.h>

#include "rescue.h"

struct parts {
	const uint8_t *at, *end;
	uint32_t bits;
	uint8_t prefix;		/* the mandatory one: 0x66, 0xf2, 0xf3 or 0 */
	bool lock, wide;
	uint8_t map;		/* 0, 1 (0f), 2 (0f 38), 3 (0f 3a); with VECTOR for VEX, EVEX and XOP */
	uint8_t opcode, modrm;
};

#define VECTOR 0x10

static uint8_t next(struct parts *p)
{
	return p->at < p->end ? *p->at++ : 0;
}

static uint8_t peek(const struct parts *p)
{
	return p->at < p->end ? *p->at : 0;
}

static uint8_t prefixes(struct parts *p)
{
	for (;;) {
		uint8_t byte = next(p);

		switch (byte) {
		case 0x66:
			if (!p->prefix)
				p->prefix = byte;
			continue;
		case 0xf2: case 0xf3:
			p->prefix = byte;
			continue;
		case 0xf0:
			p->lock = true;
			continue;
		case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65: case 0x67:
			continue;
		}
		if (p->bits == 64 && (byte & 0xf0) == 0x40) {
			p->wide = byte & 8;
			byte = next(p);
		}
		return byte;
	}
}

/* VEX and EVEX share their first bytes with instructions that only have memory operands, and not in 64-bit code. */
static bool vector(struct parts *p, uint8_t byte)
{
	bool encoded = p->bits == 64 || peek(p) >= 0xc0;

	if ((byte != 0xc4 && byte != 0xc5 && byte != 0x62) || !encoded)
		return byte == 0x8f && peek(p) & 0x38;	/* XOP */
	p->map = 1;
	if (byte != 0xc5)
		p->map = next(p) & 7;
	p->wide = next(p) & 0x80 && byte != 0xc5;
	if (byte == 0x62)
		next(p);
	return true;
}

static void split(struct parts *p)
{
	uint8_t byte = prefixes(p);

	p->opcode = byte;
	if (vector(p, byte)) {
		p->map |= VECTOR;
		p->opcode = next(p);
	} else if (byte == 0x0f) {
		p->map = 1;
		p->opcode = next(p);
		if (p->opcode == 0x38 || p->opcode == 0x3a) {
			p->map = p->opcode == 0x38 ? 2 : 3;
			p->opcode = next(p);
		}
	}
	p->modrm = peek(p);
}

/* The part of ModR/M that is a matter of the instruction and not of its operands. */
static uint8_t operation(const struct parts *p)
{
	bool memory = p->modrm < 0xc0;

	if (p->map == 0) {
		if (p->opcode >= 0xd8 && p->opcode <= 0xdf)
			return memory ? p->modrm & 0x38 : p->modrm;
		return p->opcode >= 0xf6 || (p->opcode >= 0x80 && p->opcode <= 0x83) ? p->modrm & 0x38 : 0;
	}
	switch (p->map << 8 | p->opcode) {
	case 0x101:
		return memory ? p->modrm & 0x38 : p->modrm;
	case 0x100: case 0x171: case 0x172: case 0x173: case 0x1ae: case 0x1ba: case 0x1c7: case 0x10d: case 0x118:
	case 0x11e:
		return memory ? p->modrm & 0x38 : 0xc0 | (p->modrm & 0x38);
	}
	return 0;
}

static uint32_t needs_two_bytes(const struct parts *p)
{
	uint8_t reg = p->modrm >> 3 & 7;

	switch (p->opcode) {
	case 0x01:
		if (p->modrm == 0xd0 || p->modrm == 0xd1)	/* XGETBV, XSETBV */
			return KVMPY_CARRY_XCR0;
		return p->modrm == 0xf8 || p->modrm == 0xf9 ? KVMPY_CARRY_MSRS : 0;	/* SWAPGS, RDTSCP */
	case 0x05: case 0x07: case 0x31: case 0x34: case 0x35:
		return KVMPY_CARRY_MSRS;
	case 0xae:
		return reg >= 4 && reg <= 6 && p->modrm < 0xc0 ? KVMPY_CARRY_FPU | KVMPY_CARRY_XCR0 : KVMPY_CARRY_FPU;
	case 0xc7:
		if (p->modrm >= 0xc0)
			return reg == 7 && p->prefix == 0xf3 ? KVMPY_CARRY_MSRS : 0;	/* RDPID */
		return reg >= 3 && reg <= 5 ? KVMPY_CARRY_FPU | KVMPY_CARRY_XCR0 : 0;
	case 0x0e ... 0x17: case 0x28 ... 0x2f: case 0x50 ... 0x77: case 0x7a ... 0x7f:
	case 0xc2: case 0xc4 ... 0xc6: case 0xd0 ... 0xfe:
		return KVMPY_CARRY_FPU;
	}
	return 0;
}

/* POPCNT, CRC32 and MOVBE have their operands' size from the prefix alone, as if they stood in 32-bit code. */
static bool mistaken(const struct parts *p)
{
	return p->bits == 16 && ((p->map == 1 && p->opcode == 0xb8) || (p->map == 2 && (p->opcode & 0xfe) == 0xf0));
}

/* enum kvmpy_carry */
static uint32_t needs(const struct parts *p)
{
	if (mistaken(p))
		return KVMPY_CARRY_NEVER;
	switch (p->map) {
	case 0:
		return (p->opcode & 0xf8) == 0xd8 || p->opcode == 0x9b ? KVMPY_CARRY_FPU : 0;
	case 1:
		return needs_two_bytes(p);
	case 2:
		return p->opcode >= 0xf0 || (p->opcode >= 0x80 && p->opcode <= 0x82) ? 0 : KVMPY_CARRY_FPU;
	case 3:
		return KVMPY_CARRY_FPU;
	}
	return 0;	/* VEX: of those the translator has the ones on general registers */
}

/*
 * enum kvmpy_carry. The sign is the same for all instructions of a kind: bits of the code 48-, map 32-, mandatory prefix
 * 24-, opcode 16-, what of ModR/M belongs to the opcode 8-, REX.W 1, LOCK 0.
 */
uint32_t kvmpy_rescue_decode(const uint8_t *code, uint32_t size, uint32_t bits, uint64_t *sign, uint8_t *head)
{
	struct parts p = { .at = code, .end = code + size, .bits = bits };

	split(&p);
	*head = p.at - code + (p.at < p.end && (p.map || operation(&p)));
	*sign = (uint64_t)p.bits << 48 | (uint64_t)p.map << 32 | (uint64_t)p.prefix << 24 | p.opcode << 16 |
		operation(&p) << 8 | p.wide << 1 | p.lock;
	return needs(&p);
}

static struct kvmpy_kind *find(struct kvmpy_rescue *r, uint64_t sign)
{
	for (uint32_t i = 0; i < r->kind_count; i++)
		if (r->kinds[i].sign == sign)
			return &r->kinds[i];
	return NULL;
}

/* The kind these bytes are of, if KVM has given up on one of it before. */
struct kvmpy_kind *kvmpy_rescue_known(struct kvmpy_rescue *r, const uint8_t *code, uint32_t size)
{
	uint64_t sign;
	uint8_t head;

	kvmpy_rescue_decode(code, size, r->bits, &sign, &head);
	return find(r, sign);
}

/* When there are too many kinds, the last one stands for the others. */
void kvmpy_rescue_count(struct kvmpy_rescue *r, const uint8_t *code, uint32_t size)
{
	struct kvmpy_kind *kind = kvmpy_rescue_known(r, code, size);

	r->rescued++;
	if (!kind && r->kind_count == KVMPY_RESCUE_KINDS)
		kind = &r->kinds[KVMPY_RESCUE_KINDS - 1];
	if (!kind) {
		kind = &r->kinds[r->kind_count++];
		kvmpy_rescue_decode(code, size, r->bits, &kind->sign, &kind->head);
		memcpy(kind->bytes, code, size);
		kind->size = size;
		kind->bits = r->bits;
	}
	kind->count++;
	r->last = kind;
}

/* The last one, after all. */
void kvmpy_rescue_uncount(struct kvmpy_rescue *r)
{
	r->rescued--;
	r->last->count--;
}
