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

void translate_decode(struct kvmpy_translate *t, struct translate_instruction *insn)
{
	const struct unicorn_cpu *env = t->env;
	uint32_t at = 0;

	memset(insn, 0, sizeof(*insn));
	insn->segment = SEG_DS;
	insn->length = 1;
	insn->available = translate_read(t, env->segments[SEG_CS].base + env->rip, insn->bytes, sizeof(insn->bytes));
	while (at < insn->available && at < 14 && prefix(insn, insn->bytes[at], env->mode & MODE_CODE64))
		at++;
	if (at >= insn->available)
		return;
	insn->opcode = insn->bytes[at];
	insn->length = at + rest(insn->bytes + at);
}
