// SPDX-License-Identifier: MIT
/* The instruction at rip, as far as the engine must know: prefixes, and the opcodes it completes itself. */
#include <string.h>

#include "translate.h"

static bool prefix(struct translate_instruction *insn, uint8_t byte, bool code64)
{
	switch (byte) {
	case 0x26: insn->segment = SEG_ES; return true;
	case 0x2e: insn->segment = SEG_CS; return true;
	case 0x36: insn->segment = SEG_SS; return true;
	case 0x3e: insn->segment = SEG_DS; return true;
	case 0x64: insn->segment = SEG_FS; return true;
	case 0x65: insn->segment = SEG_GS; return true;
	case 0x66: insn->operand_prefix = true; return true;
	case 0x67: insn->address_prefix = true; return true;
	case 0xf0: return true;
	case 0xf2:
	case 0xf3: insn->repeat = true; return true;
	}
	if (!code64 || (byte & 0xf0) != 0x40)
		return false;
	insn->rex = byte;
	return true;
}

/* Bytes of an instruction without its prefixes. */
static uint32_t rest(const uint8_t *bytes)
{
	switch (bytes[0]) {
	case 0xe4 ... 0xe7:	/* IN and OUT with an immediate port */
	case 0xcd:		/* INT n */
		return 2;
	case 0x0f:
		return bytes[1] == 0x01 ? 3 : 2;	/* VMCALL and VMMCALL; RDMSR, WRMSR, SYSCALL */
	}
	return 1;
}

/* insn->bytes and insn->available are there. */
void translate_decode_bytes(struct translate_instruction *insn, bool code64)
{
	uint32_t at = 0;

	insn->segment = SEG_DS;
	insn->length = 1;
	while (at < insn->available && at < 14 && prefix(insn, insn->bytes[at], code64))
		at++;
	if (at >= insn->available)
		return;
	insn->prefixes = at;
	insn->opcode = insn->bytes[at];
	insn->length = at + rest(insn->bytes + at);
}

void translate_decode(struct kvmpy_translate *t, struct translate_instruction *insn)
{
	const struct unicorn_cpu *env = t->env;

	memset(insn, 0, sizeof(*insn));
	insn->available = translate_read(t, env->segments[SEG_CS].base + env->rip, insn->bytes, TRANSLATE_LONGEST);
	translate_decode_bytes(insn, env->mode & MODE_CODE64);
}

/* RCL and RCR with an operand in memory. */
bool translate_rotates_memory(const struct translate_instruction *insn)
{
	const uint8_t *bytes = insn->bytes + insn->prefixes;
	uint8_t group;

	if (insn->prefixes > 12 || ((bytes[0] & 0xfe) != 0xc0 && (bytes[0] & 0xfc) != 0xd0) || bytes[1] >= 0xc0)
		return false;
	group = bytes[1] >> 3 & 7;
	return group == 2 || group == 3;
}

static bool modifies_0f(uint8_t opcode, uint8_t group)
{
	switch (opcode) {
	case 0xa4: case 0xa5: case 0xac: case 0xad:	/* SHLD, SHRD */
	case 0xab: case 0xb3: case 0xbb:		/* BTS, BTR, BTC */
	case 0xb0: case 0xb1: case 0xc0: case 0xc1:	/* CMPXCHG, XADD */
		return true;
	case 0xba:
		return group > 4;
	case 0xc7:
		return group == 1;
	}
	return false;
}

/* Whether it reads its memory operand only to write it again: its page fault is a write's from the start. */
bool translate_modifies_memory(const struct translate_instruction *insn)
{
	const uint8_t *bytes = insn->bytes + insn->prefixes;
	uint8_t group;

	if (insn->prefixes > 12)
		return false;
	group = bytes[1] >> 3 & 7;
	switch (bytes[0]) {
	case 0x0f:
		return modifies_0f(bytes[1], bytes[2] >> 3 & 7);
	case 0x80 ... 0x83:
		return group != 7;
	case 0x86: case 0x87:				/* XCHG */
	case 0xc0: case 0xc1: case 0xd0 ... 0xd3:	/* shifts */
		return true;
	case 0xf6: case 0xf7:				/* NOT, NEG */
		return group == 2 || group == 3;
	case 0xfe: case 0xff:				/* INC, DEC */
		return group < 2;
	}
	return bytes[0] < 0x38 && (bytes[0] & 7) < 2;	/* ADD to XOR, to memory */
}
