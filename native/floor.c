// SPDX-License-Identifier: MIT
/*
 * Also a program: cc -O2 -DKVMPY_FLOOR_PROGRAM -o floor floor.c collect.c histogram.c, then
 * ./floor IMAGE KIND [SECONDS]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/kvm.h>

#include "floor.h"
#include "kvm_run.h"
#include "stamp.h"

#define MEMORY (2u << 20)
#define IMAGE_AT 0x10000
#define SAMPLES_AT 0x20000	/* 16 bytes each: up to 0x24000 */
#define TABLES_AT 0x100000	/* PML4, PDPT and four page directories: 4 GiB, mapped to themselves */
#define STACK_AT 0x80000
#define TSS_AT 0xfffbd000
#define IDENTITY_MAP_AT 0xfffbc000
#define CONTROL 0xe0
#define CPUID_ENTRIES 256

struct image_entry {
	char name[24];
	uint64_t address;
};

static bool failed(struct kvmpy_floor *f, const char *what, int result)
{
	if (result >= 0)
		return false;
	if (!f->failed)
		f->failed = what;
	return true;
}

void kvmpy_floor_close(struct kvmpy_floor *f)
{
	if (!f)
		return;
	if (f->run)
		munmap(f->run, f->run_size);
	if (f->vcpu > 0)
		close(f->vcpu);
	if (f->vm > 0)
		close(f->vm);
	if (f->kvm > 0)
		close(f->kvm);
	if (f->memory)
		munmap(f->memory, MEMORY);
	kvmpy_collector_free(f->collector);
	free(f);
}

static int map_memory(struct kvmpy_floor *f)
{
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY };
	void *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return -1;
	f->memory = memory;
	region.userspace_addr = (uintptr_t)memory;
	return ioctl(f->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static int map_run(struct kvmpy_floor *f)
{
	int size = ioctl(f->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	void *run;

	if (size < 0)
		return -1;
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, f->vcpu, 0);
	if (run == MAP_FAILED)
		return -1;
	f->run = run;
	f->run_size = size;
	return 0;
}

static int set_cpuid(struct kvmpy_floor *f)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + CPUID_ENTRIES * sizeof(*cpuid->entries));
	int result = -1;

	if (!cpuid)
		return -1;
	cpuid->nent = CPUID_ENTRIES;
	if (!ioctl(f->kvm, KVM_GET_SUPPORTED_CPUID, cpuid))
		result = ioctl(f->vcpu, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	return result;
}

static int filter_msr(struct kvmpy_floor *f, uint32_t msr)
{
	uint8_t denied = 0;
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { KVM_MSR_EXIT_REASON_FILTER } };
	struct kvm_msr_filter filter = { .flags = KVM_MSR_FILTER_DEFAULT_ALLOW };

	filter.ranges[0].flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
	filter.ranges[0].base = msr;
	filter.ranges[0].nmsrs = 1;
	filter.ranges[0].bitmap = &denied;
	return ioctl(f->vm, KVM_ENABLE_CAP, &cap) ? -1 : ioctl(f->vm, KVM_X86_SET_MSR_FILTER, &filter);
}

static void write_page_tables(uint8_t *memory)
{
	uint64_t *table = (uint64_t *)(memory + TABLES_AT), *directory = table + 1024;

	table[0] = (TABLES_AT + 4096) | 3;
	for (int i = 0; i < 4; i++)
		table[512 + i] = (TABLES_AT + 4096 * (2 + i)) | 3;
	for (uint64_t i = 0; i < 2048; i++)
		directory[i] = i << 21 | 0x83;
}

/* 64-bit mode, ring 0, flat: SDM vol. 3 ch. 10.8.5. */
static int set_sregs(struct kvmpy_floor *f)
{
	struct kvm_segment code = { .limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_sregs sregs;

	if (ioctl(f->vcpu, KVM_GET_SREGS, &sregs))
		return -1;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.tr.type = 11;
	sregs.tr.limit = 0x67;
	sregs.tr.present = 1;
	sregs.tr.s = 0;
	sregs.tr.unusable = 0;
	sregs.cr0 = 0x80010033;
	sregs.cr3 = TABLES_AT;
	sregs.cr4 = 0x620;
	sregs.efer = 0xd01;
	return ioctl(f->vcpu, KVM_SET_SREGS, &sregs);
}

static uint64_t find_entry(const struct kvmpy_floor_setup *setup)
{
	const struct image_entry *entry = (const void *)((const char *)setup->image + 8);

	for (; entry->name[0]; entry++)
		if (!strncmp(entry->name, setup->kind, sizeof(entry->name)))
			return entry->address;
	return 0;
}

static int set_regs(struct kvmpy_floor *f, const struct kvmpy_floor_setup *setup)
{
	struct kvm_regs regs = {
		.rip = find_entry(setup), .rflags = 2, .rsp = STACK_AT, .r12 = SAMPLES_AT, .r13 = setup->chunk,
		.r14 = setup->r14, .r15 = setup->r15,
	};

	errno = ENOENT;
	return regs.rip ? ioctl(f->vcpu, KVM_SET_REGS, &regs) : -1;
}

/* Host's and guest's TSC the same, so that a sample can be split; where that can't be, splits fail by themselves. */
static void align_tsc(struct kvmpy_floor *f)
{
#ifdef KVM_VCPU_TSC_CTRL
	uint64_t offset = 0;
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET };

	attr.addr = (uintptr_t)&offset;
	ioctl(f->vcpu, KVM_SET_DEVICE_ATTR, &attr);
#else
	(void)f;
#endif
}

static void set_up(struct kvmpy_floor *f, const struct kvmpy_floor_setup *setup)
{
	uint64_t identity_map = IDENTITY_MAP_AT;

	if (failed(f, "open /dev/kvm", f->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)) ||
	    failed(f, "KVM_CREATE_VM", f->vm = ioctl(f->kvm, KVM_CREATE_VM, 0)) ||
	    failed(f, "KVM_SET_IDENTITY_MAP_ADDR", ioctl(f->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map)) ||
	    failed(f, "KVM_SET_TSS_ADDR", ioctl(f->vm, KVM_SET_TSS_ADDR, TSS_AT)))
		return;
	if (setup->flags & KVMPY_FLOOR_IRQCHIP && failed(f, "KVM_CREATE_IRQCHIP", ioctl(f->vm, KVM_CREATE_IRQCHIP, 0)))
		return;
	if (failed(f, "KVM_SET_USER_MEMORY_REGION", map_memory(f)) ||
	    failed(f, "KVM_CREATE_VCPU", f->vcpu = ioctl(f->vm, KVM_CREATE_VCPU, 0)) ||
	    failed(f, "map struct kvm_run", map_run(f)) || failed(f, "KVM_SET_CPUID2", set_cpuid(f)))
		return;
	if (setup->filtered_msr && failed(f, "KVM_X86_SET_MSR_FILTER", filter_msr(f, setup->filtered_msr)))
		return;
	memcpy(f->memory + IMAGE_AT, setup->image, setup->length);
	write_page_tables(f->memory);
	if (failed(f, "KVM_SET_SREGS", set_sregs(f)) || failed(f, "KVM_SET_REGS", set_regs(f, setup)))
		return;
	align_tsc(f);
	f->collector->samples = (uint64_t *)(f->memory + SAMPLES_AT);
}

struct kvmpy_floor *kvmpy_floor_open(const struct kvmpy_floor_setup *setup)
{
	struct kvmpy_floor *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->collector = kvmpy_collector_new(setup->chunk);
	if (!f->collector || setup->length > SAMPLES_AT - IMAGE_AT) {
		kvmpy_floor_close(f);
		return NULL;
	}
	set_up(f, setup);
	return f;
}

/* Answers are whatever lies there: nobody looks at them. */
static bool handle(struct kvmpy_floor *f)
{
	struct kvm_run *run = f->run;

	switch (run->exit_reason) {
	case KVM_EXIT_X86_RDMSR:
	case KVM_EXIT_X86_WRMSR:
		run->msr.error = 0;
		return true;
	case KVM_EXIT_IO:
	case KVM_EXIT_MMIO:
	case KVM_EXIT_HLT:
		return true;
	}
	f->exit_reason = run->exit_reason;
	return false;
}

int kvmpy_floor_run(struct kvmpy_floor *f, uint64_t deadline, uint64_t most)
{
	struct kvmpy_collector *c = f->collector;
	struct kvm_run *run = f->run;

	kvmpy_collector_start(c);
	while (c->chunks < most && (!c->chunks || kvmpy_stamp() < deadline)) {
		if (kvmpy_stamp() >= deadline)
			c->warm = true;	/* nothing is recorded yet: the next chunk is */
		do {
			struct kvmpy_crossing *crossing = &c->crossings[c->crossed];
			int result;

			if (c->crossed < KVMPY_CROSSINGS - 1)
				c->crossed++;
			crossing->enter = kvmpy_stamp();
			result = kvmpy_kvm_run(f->vcpu);
			crossing->leave = kvmpy_stamp();
			if (result && result != -EINTR)
				return result;
			if (!result && !handle(f))
				return -EPROTO;
		} while (run->exit_reason != KVM_EXIT_IO || run->io.port != CONTROL);
		kvmpy_collect(c);
	}
	return 0;
}

static void recorded(struct kvmpy_collector *c, const uint64_t *durations, uint64_t count, uint64_t switches)
{
	bool interrupted = kvmpy_switches() != switches;

	for (uint64_t i = 0; i < count; i++)
		kvmpy_histogram_record(interrupted ? c->interrupted : c->total, durations[i]);
	c->chunks++;
	c->chunks_interrupted += interrupted;
}

int kvmpy_floor_immediate(struct kvmpy_floor *f, uint64_t count)
{
	uint64_t durations[KVMPY_CHUNK_MAX], switches = kvmpy_switches();

	if (count > KVMPY_CHUNK_MAX)
		return -E2BIG;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t began;
		int result;

		f->run->immediate_exit = 1;
		began = kvmpy_stamp();
		result = kvmpy_kvm_run(f->vcpu);
		durations[i] = kvmpy_stamp() - began;
		if (result != -EINTR)
			return result ? result : -EPROTO;
	}
	f->run->immediate_exit = 0;
	recorded(f->collector, durations, count, switches);
	return 0;
}

int kvmpy_floor_regs(struct kvmpy_floor *f, uint64_t count, int set)
{
	uint64_t durations[KVMPY_CHUNK_MAX], switches = kvmpy_switches();
	struct kvm_regs regs;

	if (count > KVMPY_CHUNK_MAX)
		return -E2BIG;
	if (ioctl(f->vcpu, KVM_GET_REGS, &regs))
		return -errno;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t began = kvmpy_stamp();
		int result = set ? ioctl(f->vcpu, KVM_SET_REGS, &regs) : ioctl(f->vcpu, KVM_GET_REGS, &regs);

		durations[i] = kvmpy_stamp() - began;
		if (result)
			return -errno;
	}
	recorded(f->collector, durations, count, switches);
	return 0;
}

#ifdef KVMPY_FLOOR_PROGRAM
#include <sys/stat.h>
#include <time.h>

/* What a kind needs beside its name; all others need nothing. */
static const struct {
	const char *kind;
	uint64_t r14, r15;
	uint32_t flags, filtered_msr;
} kinds[] = {
	{ "inl_from_kernel", .flags = KVMPY_FLOOR_IRQCHIP }, { "outl_to_kernel", .flags = KVMPY_FLOOR_IRQCHIP },
	{ "mov_from_cr8", .flags = KVMPY_FLOOR_IRQCHIP }, { "mov_to_cr8", .flags = KVMPY_FLOOR_IRQCHIP },
	{ "mmio_read", .r14 = 0xd0000000 }, { "mmio_write", .r14 = 0xd0000000 },
	{ "rdmsr", .r14 = 0x10000, .filtered_msr = 0x10000 }, { "wrmsr", .r14 = 0x10000, .filtered_msr = 0x10000 },
};

static uint64_t quantile(const struct kvmpy_histogram *h, double share)
{
	uint64_t wanted = h->total * share, seen = 0;

	for (uint32_t i = 0; i < KVMPY_HISTOGRAM_LENGTH; i++) {
		uint32_t bucket = i < 2 * KVMPY_HISTOGRAM_HALF ? 0 : i / KVMPY_HISTOGRAM_HALF - 1;

		seen += h->counts[i];
		if (seen > wanted)
			return ((uint64_t)(i - bucket * KVMPY_HISTOGRAM_HALF + 1) << bucket) - 1;
	}
	return h->max;
}

static double tsc_per_second(void)
{
	struct timespec wait = { .tv_nsec = 20000000 }, from, to;
	uint64_t began, ended;

	clock_gettime(CLOCK_MONOTONIC, &from);
	began = kvmpy_stamp();
	nanosleep(&wait, NULL);
	clock_gettime(CLOCK_MONOTONIC, &to);
	ended = kvmpy_stamp();
	return (ended - began) / (to.tv_sec - from.tv_sec + (to.tv_nsec - from.tv_nsec) * 1e-9);
}

static int measure(const struct kvmpy_floor_setup *setup, double seconds)
{
	struct kvmpy_floor *f = kvmpy_floor_open(setup);
	double hz = tsc_per_second();
	int error;

	if (!f || f->failed) {
		fprintf(stderr, "floor: %s: %s\n", f ? f->failed : "set-up", strerror(errno));
		kvmpy_floor_close(f);
		return 1;
	}
	error = kvmpy_floor_run(f, kvmpy_stamp() + seconds * hz, UINT64_MAX);
	if (error) {
		fprintf(stderr, "floor: %s (exit reason %u)\n", strerror(-error), f->exit_reason);
		kvmpy_floor_close(f);
		return 1;
	}
	printf("%s samples=%lu interrupted=%lu p50=%lu p99=%lu min=%lu cycles, %.0f MHz\n", setup->kind,
	       f->collector->total->total, f->collector->interrupted->total, quantile(f->collector->total, 0.5),
	       quantile(f->collector->total, 0.99), f->collector->total->min, hz / 1e6);
	kvmpy_floor_close(f);
	return 0;
}

int main(int argc, char **argv)
{
	struct kvmpy_floor_setup setup = { .chunk = 32 };
	struct stat status;
	void *image;
	int fd;

	if (argc != 3 && argc != 4) {
		fprintf(stderr, "usage: floor IMAGE KIND [SECONDS]\n");
		return 2;
	}
	fd = open(argv[1], O_RDONLY);
	if (fd < 0 || fstat(fd, &status) || !(image = malloc(status.st_size)) ||
	    read(fd, image, status.st_size) != status.st_size) {
		fprintf(stderr, "floor: %s: %s\n", argv[1], strerror(errno));
		return 2;
	}
	setup.image = image;
	setup.length = status.st_size;
	setup.kind = argv[2];
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		if (!strcmp(kinds[i].kind, setup.kind)) {
			setup.r14 = kinds[i].r14;
			setup.r15 = kinds[i].r15;
			setup.flags = kinds[i].flags;
			setup.filtered_msr = kinds[i].filtered_msr;
		}
	return measure(&setup, argc == 4 ? atof(argv[3]) : 1.0);
}
#endif
