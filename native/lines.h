/* SPDX-License-Identifier: MIT */
/* Memory that shares no cache line with anybody else's: what a vCPU's thread writes at every exit. */
#ifndef KVMPY_LINES_H
#define KVMPY_LINES_H

#include <stdint.h>

#define KVMPY_LINE 128	/* bytes: two lines of 64, for processors fetch them in pairs */

/* Not zeroed; NULL: no memory. */
void *kvmpy_lines(uint64_t bytes);
void *kvmpy_lines_zeroed(uint64_t bytes);
void kvmpy_lines_free(void *lines);

#endif
