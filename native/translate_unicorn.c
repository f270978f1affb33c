// SPDX-License-Identifier: MIT
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "translate.h"

#define CPU_IN_ENGINE 440	/* pointer to the CPU object */
#define ENV_IN_CPU 296		/* pointer to the CPU's state */
#define REASON 256

struct unicorn unicorn;

struct symbol {
	size_t slot;
	const char *name;
};

#define SYMBOL(field, name) { offsetof(struct unicorn, field), name }

static const struct symbol symbols[] = {
	SYMBOL(version, "uc_version"),
	SYMBOL(open, "uc_open"),
	SYMBOL(close, "uc_close"),
	SYMBOL(ctl, "uc_ctl"),
	SYMBOL(start, "uc_emu_start"),
	SYMBOL(stop, "uc_emu_stop"),
	SYMBOL(hook, "uc_hook_add"),
	SYMBOL(unhook, "uc_hook_del"),
	SYMBOL(map, "uc_mem_map_ptr"),
	SYMBOL(map_io, "uc_mmio_map"),
	SYMBOL(unmap, "uc_mem_unmap"),
	SYMBOL(protect, "uc_mem_protect"),
	SYMBOL(read_register, "uc_reg_read"),
	SYMBOL(write_register, "uc_reg_write"),
	SYMBOL(leave_code, "cpu_loop_exit_x86_64"),
	SYMBOL(raise, "raise_exception_err_x86_64"),
	SYMBOL(deliver_exception, "x86_cpu_do_interrupt_x86_64"),
	SYMBOL(deliver_interrupt, "do_interrupt_x86_hardirq_x86_64"),
	SYMBOL(update_mode, "x86_update_hflags_x86_64"),
	SYMBOL(update_cr4, "cpu_x86_update_cr4_x86_64"),
	SYMBOL(update_dr7, "cpu_x86_update_dr7_x86_64"),
	SYMBOL(update_fpu, "update_fp_status_x86_64"),
	SYMBOL(update_mxcsr, "update_mxcsr_status_x86_64"),
	SYMBOL(read_flags, "helper_read_eflags_x86_64"),
	SYMBOL(write_flags, "helper_write_eflags_x86_64"),
	SYMBOL(flush_tlb, "tlb_flush_x86_64"),
	SYMBOL(restore_state, "cpu_restore_state_x86_64"),
	SYMBOL(look_first, "tlb_reset_dirty_x86_64"),
	SYMBOL(probe, "probe_access_x86_64"),
	SYMBOL(read_u16, "cpu_lduw_mmuidx_ra_x86_64"),
	SYMBOL(ram_of_host, "qemu_ram_addr_from_host_x86_64"),
	SYMBOL(forget_code, "tb_invalidate_phys_range_x86_64"),
	SYMBOL(cpuid, "cpu_x86_cpuid_x86_64"),
	SYMBOL(tsc, "cpu_get_tsc_x86_64"),
};

/* Reads memory that may not be there. */
static bool peek(const void *address, void *into, size_t length)
{
	struct iovec local = { into, length }, remote = { (void *)address, length };

	return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)length;
}

bool kvmpy_unicorn_find(void *engine, void **cpu, struct unicorn_cpu **env)
{
	static const uint64_t marks[] = { 0x6b766d70792d7561, 0x6b766d70792d7562 };
	uint64_t seen[16];
	bool found;

	unicorn.write_register(engine, UNICORN_REG_RAX, &marks[0]);
	unicorn.write_register(engine, UNICORN_REG_R15, &marks[1]);
	found = peek((char *)engine + CPU_IN_ENGINE, cpu, sizeof(*cpu)) &&
		peek((char *)*cpu + ENV_IN_CPU, env, sizeof(*env)) && peek(*env, seen, sizeof(seen)) &&
		seen[0] == marks[0] && seen[15] == marks[1];
	if (found)
		(*env)->regs[0] = (*env)->regs[15] = 0;
	return found && !((uintptr_t)*env % 16) && !unicorn_front(*env)->nudge && !unicorn_front(*env)->begin;
}

static bool msr_is(void *engine, uint32_t index, uint64_t value)
{
	struct { uint32_t index; uint64_t value; } msr = { index, 0 };

	return !unicorn.read_register(engine, UNICORN_REG_MSR, &msr) && msr.value == value;
}

/* Registers written here and read by the library, and the other way round. */
static bool registers_fit(void *engine, struct unicorn_cpu *env)
{
	struct { uint16_t selector; uint64_t base; uint32_t limit, flags; } gdt = { 0, 0x1234567890, 0x77, 0 };
	uint64_t rip = 0x123456789abcdef, cr2 = 0xabcdef;
	uint16_t control = 0x27f;
	uint32_t mxcsr = 0;

	unicorn.write_register(engine, UNICORN_REG_RIP, &rip);
	unicorn.write_register(engine, UNICORN_REG_CR2, &cr2);
	unicorn.write_register(engine, UNICORN_REG_GDTR, &gdt);
	unicorn.write_register(engine, UNICORN_REG_FPCW, &control);
	env->mxcsr = 0x1fa0;
	unicorn.read_register(engine, UNICORN_REG_MXCSR, &mxcsr);
	env->star = 0x1111;
	env->lstar = 0x2222;
	env->kernel_gs_base = 0x3333;
	env->sysenter_eip = 0x4444;
	env->pat = 0x5555;
	env->tsc_aux = 0x6666;
	return env->rip == rip && env->cr[2] == cr2 && env->gdt.base == gdt.base && env->gdt.limit == gdt.limit &&
	       env->fpu_control == control && mxcsr == 0x1fa0 && env->dr[7] == 0x400 &&
	       env->exception_in_flight == -1 && msr_is(engine, 0xc0000081, 0x1111) &&
	       msr_is(engine, 0xc0000082, 0x2222) && msr_is(engine, 0xc0000102, 0x3333) &&
	       msr_is(engine, 0x176, 0x4444) && msr_is(engine, 0x277, 0x5555) && msr_is(engine, 0xc0000103, 0x6666) &&
	       msr_is(engine, 0xc0000080, env->efer) && env->efer == 0x500;
}

struct seen {
	struct unicorn_cpu *env;
	uint32_t vectors[2];
	int32_t error_code;
	uint64_t next_rip;
	int count, software;
};

static void on_probe(void *engine, uint32_t vector, void *user)
{
	struct seen *seen = user;

	if (seen->count < 2)
		seen->vectors[seen->count] = vector;
	if (!seen->count++) {
		seen->software = seen->env->is_software;
		seen->next_rip = seen->env->next_rip;
		return;
	}
	seen->error_code = seen->env->error_code;
	unicorn.stop(engine);
}

/* int 0x21, then a load of FS with a selector beyond the GDT: how exceptions are told. */
static bool exceptions_fit(void *engine, struct unicorn_cpu *env)
{
	static const uint8_t code[] = { 0xcd, 0x21, 0xb8, 0x28, 0, 0, 0, 0x8e, 0xe0, 0xf4 };
	uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct seen seen = { .env = env };
	size_t hook;
	bool fit;

	if (page == MAP_FAILED)
		return false;
	memcpy(page, code, sizeof(code));
	env->gdt.limit = 0;
	fit = !unicorn.map(engine, 0x1000, 4096, UNICORN_ALL, page) &&
	      !unicorn.hook(engine, &hook, UNICORN_HOOK_INTERRUPT, on_probe, &seen, 1, 0) &&
	      !unicorn.start(engine, 0x1000, -1, 0, 0) && seen.count == 2 && seen.vectors[0] == 0x21 &&
	      seen.software && seen.next_rip == 0x1002 && seen.vectors[1] == 13 && seen.error_code == 0x28 &&
	      env->exception_in_flight == 13 && env->rip == 0x1007;
	unicorn.unmap(engine, 0x1000, 4096);
	munmap(page, 4096);
	return fit;
}

/* A jump to HLT: both blocks are made as expected, and the first tells that it begins. */
static bool blocks_fit(void *engine, void *cpu, struct unicorn_cpu *env)
{
	struct kvmpy_translate *t = calloc(1, sizeof(*t));
	struct kvm_run *run = calloc(1, TRANSLATE_RUN_SIZE);
	uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool fit = false;

	if (t && run && page != MAP_FAILED) {
		*t = (struct kvmpy_translate) { .run = run, .unicorn = engine, .cpu = cpu, .env = env };
		memcpy(page, "\xeb\x00\xf4", 3);
		translate_prepare_blocks(t);
		unicorn_front(env)->nudge = 1;
		translate_running(t);
		fit = !unicorn.map(engine, 0x2000, 4096, UNICORN_ALL, page) &&
		      !unicorn.start(engine, 0x2000, -1, 0, 0) && env->rip == 0x2003 && t->blocks == 1 &&
		      !t->odd_blocks && !unicorn_front(env)->nudge;
		translate_running(NULL);
		env->engine = NULL;
		unicorn.unmap(engine, 0x2000, 4096);
	}
	if (page != MAP_FAILED)
		munmap(page, 4096);
	free(run);
	free(t);
	return fit;
}

static bool guard(void *library)
{
	void *look = dlsym(library, "helper_check_exit_request_x86_64");

	return look && translate_guard_instructions(library) && translate_guard_blocks(library, look) &&
	       translate_guard_stores(library) && translate_guard_accesses(library);
}

static const char *check_layout(void *library)
{
	struct unicorn_cpu *env = NULL;
	void *engine = NULL, *cpu = NULL;
	const char *wrong = NULL;

	if (unicorn.open(UNICORN_X86, UNICORN_MODE_64, &engine))
		return "it can't make an x86 engine";
	unicorn.ctl(engine, UNICORN_CTL_BUFFER_SIZE, 1 << 20);
	if (!kvmpy_unicorn_find(engine, &cpu, &env))
		wrong = "its CPU state isn't where version 2.1.4 from PyPI has it";
	else if (!registers_fit(engine, env))
		wrong = "its registers aren't where version 2.1.4 from PyPI has them";
	else if (!guard(library))
		wrong = "its translator can't be guarded";
	else if (!blocks_fit(engine, cpu, env))
		wrong = "its code isn't what version 2.1.4 from PyPI makes";
	else if (!exceptions_fit(engine, env))
		wrong = "its exceptions don't work as in version 2.1.4 from PyPI";
	unicorn.close(engine);
	return wrong;
}

static const char *load(const char *path)
{
	static char reason[REASON];
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

	if (!library) {
		snprintf(reason, sizeof(reason), "%s", dlerror());
		return reason;
	}
	for (size_t i = 0; i < sizeof(symbols) / sizeof(*symbols); i++) {
		void *address = dlsym(library, symbols[i].name);

		if (!address) {
			snprintf(reason, sizeof(reason), "it has no %s", symbols[i].name);
			return reason;
		}
		memcpy((char *)&unicorn + symbols[i].slot, &address, sizeof(address));
	}
	if (unicorn.version(NULL, NULL) >> 8 != 0x020104) {
		unsigned all = unicorn.version(NULL, NULL);

		snprintf(reason, sizeof(reason), "it is version %u.%u.%u", all >> 24, all >> 16 & 0xff, all >> 8 & 0xff);
		return reason;
	}
	return check_layout(library);
}

const char *kvmpy_unicorn_load(const char *path)
{
	static const char *answer;
	static bool loaded;

	if (!loaded) {
		answer = load(path);
		loaded = true;
	}
	return answer;
}
