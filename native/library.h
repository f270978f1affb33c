/* SPDX-License-Identifier: MIT */
#ifndef KVMPY_LIBRARY_H
#define KVMPY_LIBRARY_H

void *kvmpy_library_open(const char *path);
const char *kvmpy_library_error(void);
void *kvmpy_library_symbol(void *library, const char *name);

#endif
