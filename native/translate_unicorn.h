/* SPDX-License-Identifier: MIT */
/*
 * What of Unicorn 2.1.4 the translate engine uses. The library is loaded at run time from the installed Python package;
 * nothing here comes from its headers. Beside the public API the engine calls functions the library exports without
 * documenting them, and reads the CPU's state where it lies; kvmpy_unicorn_load() checks all of that before first use
 * and refuses a library that is laid out differently.
 */
#ifndef KVMPY_TRANSLATE_UNICORN_H
#define KVMPY_TRANSLATE_UNICORN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct unicorn_segment {
	uint32_t selector;
	uint64_t base;
	uint32_t limit;		/* in bytes */
	uint32_t flags;		/* the descriptor's upper word: type from bit 8, DPL 13, P 15, AVL 20, L 21, D/B 22, G 23 */
};

/* The CPU's state, as far as it is used, at the offsets it has in 2.1.4. */
struct unicorn_cpu {
	uint64_t regs[16];
	uint64_t rip;
	uint64_t rflags;		/* while translated code runs, without the arithmetic flags and DF */
	uint64_t flag_operands[3];
	uint32_t flag_operation;
	int32_t direction;		/* 1, or -1 with DF */
	uint32_t mode;			/* MODE_*: what translated code depends on */
	uint32_t mode2;			/* MODE2_* */
	struct unicorn_segment segments[6];	/* ES CS SS DS FS GS */
	struct unicorn_segment ldt, tr, gdt, idt;
	uint64_t cr[9];
	int32_t a20_mask;
	uint8_t bounds[92];
	uint64_t efer;
	uint32_t mark;
	uint32_t fpu_top;
	uint16_t fpu_status;		/* without the top */
	uint16_t fpu_control;
	uint8_t fpu_empty[8];
	uint8_t fpu_padding[4];
	uint8_t fpu[8][16];
	uint16_t fpu_opcode;
	uint8_t fpu_segments[6];
	uint64_t fpu_ip, fpu_dp;
	uint8_t fpu_emulation[40];
	uint32_t mxcsr;
	uint8_t mxcsr_padding[4];
	uint8_t vectors[32][64];
	uint8_t unused_vectors[1864];
	/* The last register of AVX-512, which nothing translated touches: the engine's own. */
	void *engine;
	uint8_t unused_vector[56];
	uint32_t sysenter_cs;
	uint8_t sysenter_padding[4];
	uint64_t sysenter_esp, sysenter_eip;
	uint64_t star;
	uint64_t vm_hsave;
	uint64_t lstar, cstar, fmask, kernel_gs_base;
	uint64_t tsc, tsc_adjust, tsc_deadline, tsc_aux;
	uint64_t xcr0;
	uint8_t counters[368];
	uint64_t pat;
	uint8_t protection[96];
	int32_t error_code;
	int32_t is_software;		/* the exception is an INT instruction's */
	uint64_t next_rip;		/* behind that instruction */
	uint64_t dr[8];
	uint64_t breakpoints[4];
	int32_t exception_in_flight;	/* -1: none */
	uint8_t svm[12];
	uint64_t tsc_offset;
	uint8_t svm2[36];
	uint8_t tpr;
};

#define UNICORN_AT(field, offset) \
	_Static_assert(offsetof(struct unicorn_cpu, field) == (offset), #field)
UNICORN_AT(rip, 128);
UNICORN_AT(mode, 176);
UNICORN_AT(segments, 184);
UNICORN_AT(ldt, 328);
UNICORN_AT(cr, 424);
UNICORN_AT(efer, 592);
UNICORN_AT(fpu_top, 604);
UNICORN_AT(fpu, 624);
UNICORN_AT(fpu_ip, 760);
UNICORN_AT(mxcsr, 816);
UNICORN_AT(vectors, 824);
UNICORN_AT(engine, 4736);
UNICORN_AT(sysenter_cs, 4800);
UNICORN_AT(lstar, 4840);
UNICORN_AT(xcr0, 4904);
UNICORN_AT(pat, 5280);
UNICORN_AT(error_code, 5384);
UNICORN_AT(dr, 5400);
UNICORN_AT(exception_in_flight, 5496);
UNICORN_AT(tsc_offset, 5512);
UNICORN_AT(tpr, 5556);

/*
 * What lies in front of it: 12 bytes that nothing is in, as the state begins at a multiple of 16. The engine's own, for from
 * translated code they can be named in the fewest bytes (translate_blocks.c).
 */
struct unicorn_front {
	uint32_t countdown;		/* the library's */
	uint32_t nudge;			/* whether a block's start must be told of; from any thread */
	void (*begin)(void);
};

_Static_assert(sizeof(struct unicorn_front) == 16, "unicorn_front");

/* In front of that, the tables from linear addresses to memory: one for each kind of access. */
struct unicorn_page {
	uint64_t read, write, code;	/* the page's linear address and flags, or anything else if it can't be done */
	uint64_t gpa, host;
	uint64_t padding[3];
};

struct unicorn_pages {
	uint64_t mask;			/* number of entries less 1, times the size of one */
	struct unicorn_page *entries;
};

#define UNICORN_PAGES 64		/* bytes before the CPU's state */
#define UNICORN_LOOK_FIRST 0x400ull	/* flag in unicorn_page.write: it may have translated code */
#define UNICORN_MMIO 0x200ull		/* flag: it isn't memory */

static inline struct unicorn_front *unicorn_front(struct unicorn_cpu *env)
{
	return (struct unicorn_front *)env - 1;
}

/* Where a page's entry is if there is one. */
static inline struct unicorn_page *unicorn_page(struct unicorn_cpu *env, int table, uint64_t linear)
{
	const struct unicorn_pages *pages = (const struct unicorn_pages *)((uint8_t *)env - UNICORN_PAGES) + table;

	return pages->entries + (linear / 4096 & pages->mask / sizeof(*pages->entries));
}

enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS };

/* Bits of unicorn_cpu.mode. */
#define MODE_CPL 3u
#define MODE_SHADOW (1u << 3)		/* of STI and MOV SS */
#define MODE_PROTECTED (1u << 7)
#define MODE_IOPL_SHIFT 12
#define MODE_LONG (1u << 14)
#define MODE_CODE64 (1u << 15)
#define MODE_VM86 (1u << 17)
#define MODE_CODE32 (1u << 4)
#define MODE_SMAP (1u << 23)
#define MODE2_IN_NMI (1u << 2)
#define MODE2_OWN_TPR (1u << 3)		/* CR8 reads what was written to it */

enum unicorn_constants {
	UNICORN_X86 = 4,
	UNICORN_MODE_64 = 8,
	UNICORN_READ = 1, UNICORN_WRITE = 2, UNICORN_EXECUTE = 4, UNICORN_ALL = 7,
	UNICORN_HOOK_INTERRUPT = 1 << 0,
	UNICORN_HOOK_INSTRUCTION = 1 << 1,
	UNICORN_HOOK_CODE = 1 << 2,
	UNICORN_HOOK_READ_UNMAPPED = 1 << 4,
	UNICORN_HOOK_WRITE_UNMAPPED = 1 << 5,
	UNICORN_HOOK_READ_PROTECTED = 1 << 7,
	UNICORN_HOOK_WRITE = 1 << 11,
	UNICORN_HOOK_WRITE_PROTECTED = 1 << 8,
	UNICORN_HOOK_INVALID = 1 << 14,
	UNICORN_HOOK_NEW_BLOCK = 1 << 15,
	UNICORN_WRITE_PROTECTED = 22,
	UNICORN_INSN_CPUID = 113, UNICORN_INSN_IN = 218, UNICORN_INSN_OUT = 500, UNICORN_INSN_SYSCALL = 699,
	UNICORN_INSN_SYSENTER = 700,
	UNICORN_REG_CR2 = 52, UNICORN_REG_GDTR = 243, UNICORN_REG_FPCW = 246, UNICORN_REG_MXCSR = 249,
	UNICORN_REG_RAX = 35, UNICORN_REG_R15 = 113, UNICORN_REG_RIP = 41, UNICORN_REG_MSR = 248,
	UNICORN_ACCESS_LOAD = 0, UNICORN_ACCESS_STORE = 1,
};

/* Arguments of uc_ctl(): direction << 30 | arguments << 26 | type. */
#define UNICORN_CTL_USE_EXITS (1u << 30 | 1u << 26 | 4)
#define UNICORN_CTL_REMOVE_CACHE (1u << 30 | 2u << 26 | 9)
#define UNICORN_CTL_FLUSH_CODE (1u << 30 | 10)
#define UNICORN_CTL_BUFFER_SIZE (1u << 30 | 1u << 26 | 13)

struct unicorn_block {		/* what a NEW_BLOCK hook is told */
	uint64_t pc;
	uint16_t instructions;
	uint16_t size;
};

struct unicorn {
	unsigned (*version)(unsigned *major, unsigned *minor);
	int (*open)(int arch, int mode, void **engine);
	int (*close)(void *engine);
	int (*ctl)(void *engine, unsigned control, ...);
	int (*start)(void *engine, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
	int (*stop)(void *engine);
	int (*hook)(void *engine, size_t *hook, int type, void *callback, void *user, uint64_t begin, uint64_t end, ...);
	int (*unhook)(void *engine, size_t hook);
	int (*map)(void *engine, uint64_t address, uint64_t size, uint32_t rights, void *memory);
	int (*map_io)(void *engine, uint64_t address, uint64_t size, void *read, void *read_user, void *write,
		      void *write_user);
	int (*unmap)(void *engine, uint64_t address, uint64_t size);
	int (*protect)(void *engine, uint64_t address, uint64_t size, uint32_t rights);
	int (*read_register)(void *engine, int id, void *value);
	int (*write_register)(void *engine, int id, const void *value);

	/* Exported, undocumented. Those that don't return jump to the innermost start(). */
	void (*leave_code)(void *cpu) __attribute__((noreturn));
	void (*raise)(struct unicorn_cpu *env, int vector, int error_code) __attribute__((noreturn));
	void (*deliver_exception)(void *cpu);
	void (*deliver_interrupt)(struct unicorn_cpu *env, int vector, int hardware);
	void (*update_mode)(struct unicorn_cpu *env);
	void (*update_cr4)(struct unicorn_cpu *env, uint32_t value);
	void (*update_dr7)(struct unicorn_cpu *env, uint32_t value);
	void (*update_fpu)(struct unicorn_cpu *env);
	void (*update_mxcsr)(struct unicorn_cpu *env);
	uint64_t (*read_flags)(struct unicorn_cpu *env);
	void (*write_flags)(struct unicorn_cpu *env, uint64_t value, uint32_t mask);
	void (*flush_tlb)(void *cpu);
	bool (*restore_state)(void *cpu, uintptr_t where, bool leaving);	/* from a place in a block's code */
	void (*look_first)(void *cpu, uint64_t host, uint64_t size);	/* stores there look for code first */
	void *(*probe)(struct unicorn_cpu *env, uint64_t address, int size, int access, int tlb, uintptr_t where);
	uint32_t (*read_u16)(struct unicorn_cpu *env, uint64_t address, int tlb, uintptr_t where);
	uint64_t (*ram_of_host)(void *engine, void *host);
	void (*forget_code)(void *engine, uint64_t first, uint64_t end);	/* by ram_of_host() */
	void (*cpuid)(struct unicorn_cpu *env, uint32_t function, uint32_t index, uint32_t *eax, uint32_t *ebx,
		      uint32_t *ecx, uint32_t *edx);
	uint64_t (*tsc)(struct unicorn_cpu *env);
};

extern struct unicorn unicorn;

/* NULL, or why the library at path can't be used. Loading twice is fine. */
const char *kvmpy_unicorn_load(const char *path);

/* The CPU object of an engine and its state, both inside the library's memory. */
bool kvmpy_unicorn_find(void *engine, void **cpu, struct unicorn_cpu **env);

#endif
