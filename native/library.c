// SPDX-License-Identifier: MIT
/* Shared libraries at run time: native handlers by path, and engines that are never linked. */
#include <dlfcn.h>

#include "library.h"

/* Stays open: code of it may stand in a table as long as the process lives. */
void *kvmpy_library_open(const char *path)
{
	return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

const char *kvmpy_library_error(void)
{
	const char *error = dlerror();

	return error ? error : "unknown error";
}

void *kvmpy_library_symbol(void *library, const char *name)
{
	return dlsym(library, name);
}
