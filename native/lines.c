// SPDX-License-Identifier: MIT
#include <stdlib.h>
#include <string.h>

#include "lines.h"

void *kvmpy_lines(uint64_t bytes)
{
	if (bytes > UINT64_MAX - KVMPY_LINE)
		return NULL;
	return aligned_alloc(KVMPY_LINE, (bytes + KVMPY_LINE - 1) / KVMPY_LINE * KVMPY_LINE);
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
