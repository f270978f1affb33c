// SPDX-License-Identifier: MIT
#include <stdlib.h>
#include <string.h>

#include "lines.h"

#define PAGE 4096

void *kvmpy_lines(uint64_t bytes)
{
	uint64_t unit = bytes < PAGE ? KVMPY_LINE : PAGE;

	if (bytes > UINT64_MAX - PAGE)
		return NULL;
	return aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
}

void *kvmpy_lines_zeroed(uint64_t bytes)
{
	void *lines = kvmpy_lines(bytes);

	if (lines)
		memset(lines, 0, bytes);
	return lines;
}

void kvmpy_lines_free(void *lines)
{
	free(lines);
}
