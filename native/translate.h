/* SPDX-License-Identifier: MIT */
/*
 * The translate engine: one vCPU run by Unicorn's binary translation, told to the world as KVM would.
 *
 * Translated code runs on a stack of its own (translate_stack.c). An exit in the middle of an instruction switches
 * stacks, so enter() returns while the instruction waits; the next enter() goes on inside it. Whatever changes the vCPU's
 * state from outside first parks it: the waiting instruction is left, nothing of Unicorn is running, rip stands on the
 * instruction, and the access is completed by hand, as KVM completes it at the next KVM_RUN (translate_enter.c).
 */
#ifndef KVMPY_TRANSLATE_H
#define KVMPY_TRANSLATE_H

#include <pthread.h>

#include "translate_api.h"
#include "translate_unicorn.h"
#include "vcpu.h"

#define TRANSLATE_LONGEST 15		/* bytes of an instruction */
#define TRANSLATE_SLOTS 512
#define TRANSLATE_HOLES 512
#define TRANSLATE_CPUID 256
#define TRANSLATE_PLACES 64
#define TRANSLATE_ACCESSES 128		/* of one instruction: FXSAVE has 64 */
#define TRANSLATE_WROTE 256
#define TRANSLATE_VIEWS 64
#define TRANSLATE_SOURCES 1024
#define TRANSLATE_ADDRESSES (1ull << 40)	/* physical addresses have 40 bits */
#define TRANSLATE_IO_OFFSET 4096	/* of port data in struct kvm_run's mapping, as in KVM's */
#define TRANSLATE_RUN_SIZE (3 * 4096)

/*
 * TR's flags where no task is loaded. To Unicorn TR is always present, and never busy: without that it aborts the
 * process. Its limit of 0 makes an interrupt that needs a stack #TS.
 */
#define NO_TASK 0x01008900u

/* What the vCPU waits for, from an exit to its completion. */
enum translate_wait {
	WAIT_NOTHING,
	WAIT_OUT,
	WAIT_IN,
	WAIT_STRING,
	WAIT_MMIO,
	WAIT_RDMSR,
	WAIT_WRMSR,
	WAIT_HYPERCALL,
	WAIT_NO_MORE,		/* nothing to complete, but not parked */
};

/* What there is to do where a block begins. */
enum translate_attention {
	ATTENTION_EVENT = 1,	/* an exception, interrupt or NMI is to be delivered */
	ATTENTION_WINDOW = 2,	/* *run asks for the interrupt window */
	ATTENTION_WROTE = 4,	/* the host wrote to memory */
	ATTENTION_TASK = 8,	/* TR was loaded */
	ATTENTION_STORES = 16,	/* too many stores look for code where there is none */
	ATTENTION_SINGLE = 32,	/* for good: one instruction at a time */
};

struct translate_slot {
	uint64_t gpa, size;
	uint8_t *host;
	uint32_t number;
	bool readonly;
	uint64_t ram;		/* the library's name for `host` */
	uint8_t *code;		/* a bit for each page that has translated code */
	uint8_t *shown;		/* and for each that a writable view shows */
};

struct translate_piece {	/* of memory, as it was when it was translated */
	uint64_t gpa;
	uint32_t size, at;	/* in translate_kept.bytes */
};

struct translate_kept {
	struct translate_piece *pieces;
	uint8_t *bytes;
	uint32_t count, most, used, room;
};

struct translate_hole {		/* guest physical addresses without memory: MMIO */
	struct kvmpy_translate *engine;
	uint64_t gpa, size;
};

struct translate_access {	/* of the running instruction to MMIO, done */
	uint64_t gpa;
	uint8_t data[8];
	uint8_t size, is_write;
};

struct translate_place {	/* in translated code: what the CPU's state is there */
	uintptr_t where;
	uint64_t rip;
	uint32_t flag_operation;
};

struct translate_source {	/* what a block of one instruction was made from */
	uint64_t gpa;
	uint8_t bytes[TRANSLATE_LONGEST];
	uint8_t size;
	bool used;
};

struct translate_instruction {
	uint8_t bytes[16];		/* the longest has 15 */
	uint8_t length;			/* of prefixes and opcode: all there is of what is decoded here */
	uint8_t available;		/* bytes that could be read */
	uint8_t opcode;			/* the first byte behind the prefixes; 0 where nothing could be read */
	uint8_t prefixes;		/* how many bytes of them */
	uint8_t segment;		/* SEG_*, of an override; else SEG_DS */
	bool repeat, operand_prefix, address_prefix;
	uint8_t rex;
};

struct kvmpy_translate {
	struct kvmpy_vcpu *vcpu;
	struct kvm_run *run;
	void *unicorn, *cpu;
	struct unicorn_cpu *env;
	uint32_t attention;		/* enum translate_attention, atomic */
	uint64_t blocks;		/* that have begun with a nudge */
	uint32_t odd_blocks;		/* whose code isn't as expected: none, as found when the library is loaded */
	uint32_t wasted;		/* stores that looked for code where there is none */

	/* Stacks. */
	void *host_sp, *guest_sp;
	uint8_t *stack;
	void *fiber, *host_fiber;	/* AddressSanitizer's */
	const void *host_stack;
	size_t host_stack_size;
	bool inside;			/* in the middle of unicorn.start() */
	bool leave;			/* the order at the switch: leave the instruction */
	int result;			/* of enter() */
	int load_error;			/* of register sets in *run */
	bool stopped;			/* unicorn.start() returns because the engine wanted it */
	bool restart;			/* only to call it again */

	/* The access that waits for its completion. */
	struct {
		enum translate_wait kind;
		uint32_t size, count;
		uint64_t rip;
		struct translate_instruction insn;
	} wait;

	/* MMIO accesses of the running instruction. */
	struct {
		uint64_t rip, block;		/* of that instruction */
		uint32_t count, replay;		/* accesses done; of these, given again so far */
		uint64_t next;			/* address and number of bytes still to come of a split write */
		uint32_t left;
		uint32_t beyond;		/* bytes of a read that lie in the next page */
		uint32_t rest;			/* of a write, and their value */
		uint64_t rest_value;
		struct translate_access last;	/* serves the raw reads that follow */
		struct translate_access done[TRANSLATE_ACCESSES];
	} mmio;

	struct translate_place places[TRANSLATE_PLACES];	/* that accessed MMIO lately */

	/* Events to deliver: -1 for none. */
	int exception, exception_error, interrupt;
	bool exception_has_error;
	int delivering;			/* the event on its way through the IDT */
	bool delivering_software;
	bool nmi;

	/* Memory. */
	struct translate_slot slots[TRANSLATE_SLOTS];
	uint32_t slot_count;
	struct translate_hole *holes[TRANSLATE_HOLES];
	uint32_t hole_count;
	bool holes_open;
	pthread_mutex_t lock;		/* of what follows: any thread writes to memory */
	struct { uint64_t gpa, size; } wrote[TRANSLATE_WROTE];
	uint32_t wrote_count;
	struct { uint64_t gpa, size; } views[TRANSLATE_VIEWS];	/* writable ones, in somebody's hands */
	uint32_t view_count;
	struct translate_kept kept;

	/* Sensitive instructions. */
	uint64_t plain_io[256];		/* linear addresses of IN and OUT without prefixes */
	size_t code_hooks[1024];
	uint64_t code_addresses[1024];
	uint32_t code_count;
	size_t step_hook;
	uint32_t steps;			/* instructions begun since the single step was asked for */

	/* One instruction at a time: translate_single.c. */
	struct {
		bool on;
		bool undefined;			/* it is #UD where the translator has no word for it */
		uint64_t rip;			/* of the instruction under way */
		uint32_t blocks;		/* begun for it */
		kvmpy_goes_on *goes_on;
		kvmpy_wrote *wrote;
		void *user;
		struct translate_source *sources;
	} single;

	struct kvm_guest_debug debug;
	struct kvm_cpuid_entry2 cpuid[TRANSLATE_CPUID];
	uint32_t cpuid_count;
	uint64_t apic_base;
	uint64_t misc_enable;
	uint32_t msr_exits;		/* KVM_MSR_EXIT_REASON_*: instead of #GP */
	uint64_t mtrr[96];		/* 0x200 on; the last one stands for MTRRdefType */
	uint32_t mp_state;
};

static inline bool translate_protected(const struct kvmpy_translate *t)
{
	return t->env->mode & MODE_PROTECTED;
}

static inline uint32_t translate_cpl(const struct kvmpy_translate *t)
{
	return t->env->mode & MODE_CPL;
}

static inline bool translate_stop_asked(const struct kvmpy_translate *t)
{
	return __atomic_load_n(&t->run->immediate_exit, __ATOMIC_RELAXED);
}

/* Unicorn's number of the address translation that data accesses use, and those of the CPU to its own tables. */
static inline int translate_tlb(const struct kvmpy_translate *t)
{
	if (translate_cpl(t) == 3)
		return 1;
	return !(t->env->mode & MODE_SMAP) || t->env->rflags & (1 << 18) ? 2 : 0;
}

static inline int translate_system_tlb(const struct kvmpy_translate *t)
{
	return t->env->mode & MODE_SMAP ? 0 : 2;
}

/* The next block tells that it begins. From any thread. */
static inline void translate_nudge(struct kvmpy_translate *t)
{
	__atomic_store_n(&unicorn_front(t->env)->nudge, 1, __ATOMIC_SEQ_CST);
}

/* Something is to be done where the next block begins. From any thread. */
static inline void translate_attend(struct kvmpy_translate *t, uint32_t what)
{
	__atomic_fetch_or(&t->attention, what, __ATOMIC_SEQ_CST);
	translate_nudge(t);
}

/* Whether an instruction that was left in the middle of its MMIO is about to begin again. */
static inline bool translate_again(const struct kvmpy_translate *t, uint64_t block)
{
	return t->mmio.replay < t->mmio.count && t->mmio.block == block && t->mmio.rip == t->env->rip;
}

/* translate_interpose.c, and who uses it */
bool translate_interpose(void *library, const char *name, void *instead, void *original);
bool translate_interpose_in_table(void *library, const char *name, void *instead, void *original);
bool translate_guard_accesses(void *library);
void translate_forget_places(struct kvmpy_translate *t);
bool translate_guard_instructions(void *library);
bool translate_guard_blocks(void *library, void *look);
bool translate_guard_stores(void *library);

/* translate_blocks.c */
void translate_running(struct kvmpy_translate *t);	/* this is the engine that runs on this thread */
struct kvmpy_translate *translate_current(void);
void translate_prepare_blocks(struct kvmpy_translate *t);

/* translate_stores.c */
bool translate_new_stores(struct kvmpy_translate *t, struct translate_slot *slot);
void translate_renew_stores(struct kvmpy_translate *t);
void translate_forget_code(struct kvmpy_translate *t);

/* translate_views.c */
void translate_keep_block(struct kvmpy_translate *t, uint64_t linear, uint32_t size);
void translate_compare_views(struct kvmpy_translate *t);
void translate_renew_views(struct kvmpy_translate *t);
void translate_free_views(struct kvmpy_translate *t);

/* translate_stack.c */
int translate_stack_new(struct kvmpy_translate *t);
void translate_stack_free(struct kvmpy_translate *t);
void translate_to_guest(struct kvmpy_translate *t);
bool translate_yield(struct kvmpy_translate *t);	/* false: leave the instruction */

/* translate_enter.c */
int kvmpy_translate_enter(struct kvmpy_vcpu *vcpu);
void translate_park(struct kvmpy_translate *t);
void translate_leave(struct kvmpy_translate *t) __attribute__((noreturn));
void translate_restart(struct kvmpy_translate *t);
void translate_stop(struct kvmpy_translate *t, int result) __attribute__((noreturn));
void translate_complete(struct kvmpy_translate *t);
void translate_skip(struct kvmpy_translate *t, uint32_t length);
void translate_guest_main(struct kvmpy_translate *t);

/* translate_io.c, translate_mmio.c, translate_events.c, translate_sensitive.c, translate_cpuid.c, translate_debug.c */
int translate_hook_io(struct kvmpy_translate *t);
int translate_hook_mmio(struct kvmpy_translate *t);
void translate_access_hole(struct kvmpy_translate *t, uint64_t gpa, uint32_t size, uint64_t value, bool is_write);
int translate_hook_events(struct kvmpy_translate *t);
int translate_hook_new_blocks(struct kvmpy_translate *t);
int translate_hook_cpuid(struct kvmpy_translate *t);
void translate_complete_string(struct kvmpy_translate *t, bool in_code);
void translate_record_mmio(struct kvmpy_translate *t);
bool translate_read_msr(struct kvmpy_translate *t, uint32_t index, uint64_t *value);
bool translate_write_msr(struct kvmpy_translate *t, uint32_t index, uint64_t value, bool host);
void translate_debug_exit(struct kvmpy_translate *t, uint32_t exception, uint64_t dr6);
uint64_t translate_hole_read(void *engine, uint64_t offset, unsigned size, void *user);
void translate_hole_write(void *engine, uint64_t offset, unsigned size, uint64_t value, void *user);

/* translate_single.c */
void translate_single_next(struct kvmpy_translate *t);
void translate_single_block(struct kvmpy_translate *t);
void translate_single_done(struct kvmpy_translate *t);
bool translate_single_undefined(struct kvmpy_translate *t);

/* translate_events.c */
bool translate_has_event(const struct kvmpy_translate *t);
void translate_deliver(struct kvmpy_translate *t, int vector) __attribute__((noreturn));
void translate_begin_block(struct unicorn_cpu *env, uintptr_t where) __attribute__((used, visibility("hidden")));

/* translate_sensitive.c, translate_msr.c */
void translate_check_task(struct kvmpy_translate *t);
void translate_do_msr(struct kvmpy_translate *t, bool is_write) __attribute__((noreturn));

/* translate_decode.c */
void translate_decode_bytes(struct translate_instruction *insn, bool code64);
void translate_decode(struct kvmpy_translate *t, struct translate_instruction *insn);
bool translate_modifies_memory(const struct translate_instruction *insn);
bool translate_rotates_memory(const struct translate_instruction *insn);

/* translate_memory.c */
struct translate_slot *translate_slot_at(struct kvmpy_translate *t, uint64_t gpa);
uint8_t *translate_host(struct kvmpy_translate *t, uint64_t gpa, bool write);
bool translate_linear(struct kvmpy_translate *t, uint64_t linear, uint64_t *gpa);
size_t translate_read(struct kvmpy_translate *t, uint64_t linear, void *into, size_t size);
void translate_forget(struct kvmpy_translate *t, uint64_t gpa, uint64_t size);
void translate_forget_written(struct kvmpy_translate *t);
void translate_note_written(struct kvmpy_translate *t, uint64_t gpa, uint64_t size);	/* with t->lock */
int translate_open_holes(struct kvmpy_translate *t);
int translate_open_hole(struct kvmpy_translate *t, uint64_t gpa);

/* translate_registers.c, translate_state.c */
void translate_reset(struct kvmpy_translate *t);
void translate_load(struct kvmpy_translate *t, uint64_t dirty);
void translate_store(struct kvmpy_translate *t, uint64_t valid);
void translate_get_events(const struct kvmpy_translate *t, struct kvm_vcpu_events *events);
void translate_set_events(struct kvmpy_translate *t, const struct kvm_vcpu_events *events);

#endif
