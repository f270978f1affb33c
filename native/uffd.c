// SPDX-License-Identifier: MIT
/* Serving a userfaultfd from C, for the kind uffd_fault: what a monitor that brings memory page by page does. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "measure.h"

#ifndef USERFAULTFD_IOC_NEW	/* Linux 6.1 */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define POLL_MS 20

/* A userfaultfd that sees faults of the kernel too, as KVM's are; -errno: EPERM without the right to one. */
int kvmpy_uffd_open(void)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), device;
	struct uffdio_api api = { .api = UFFD_API };

	if (fd < 0 && (device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)) >= 0) {
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(device);
	}
	if (fd < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_API, &api)) {
		int error = errno;

		close(fd);
		return -error;
	}
	return fd;
}

int kvmpy_uffd_register(int fd, void *memory, uint64_t length)
{
	struct uffdio_register range = {
		.range = { .start = (uintptr_t)memory, .len = length }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(fd, UFFDIO_REGISTER, &range) ? -errno : 0;
}

static int serve(struct kvmpy_uffd *u)
{
	struct uffd_msg message;
	struct uffdio_zeropage zero = { 0 };

	if (read(u->fd, &message, sizeof(message)) != sizeof(message))
		return errno == EAGAIN ? 0 : errno;
	if (message.event != UFFD_EVENT_PAGEFAULT)
		return 0;
	zero.range.start = message.arg.pagefault.address & ~(u->page - 1);
	zero.range.len = u->page;
	if (ioctl(u->fd, UFFDIO_ZEROPAGE, &zero) && errno != EEXIST)
		return errno;
	u->served++;
	return 0;
}

static void *server(void *argument)
{
	struct kvmpy_uffd *u = argument;
	struct pollfd wait = { .fd = u->fd, .events = POLLIN };

	while (!u->error && !__atomic_load_n(&u->stop, __ATOMIC_ACQUIRE))
		if (poll(&wait, 1, POLL_MS) > 0)
			u->error = serve(u);
	return NULL;
}

int kvmpy_uffd_start(struct kvmpy_uffd *u, int cpu)
{
	pthread_t thread;
	int error = pthread_create(&thread, NULL, server, u);

	if (error)
		return -error;
	u->thread = thread;
	kvmpy_thread_on_cpu(thread, cpu);
	return 0;
}

void kvmpy_uffd_stop(struct kvmpy_uffd *u)
{
	__atomic_store_n(&u->stop, 1, __ATOMIC_RELEASE);
	pthread_join(u->thread, NULL);
}
