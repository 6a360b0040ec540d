/* SPDX-License-Identifier: MIT
 *
 * Errors of calls, and how a run fails. */
#ifndef DEEPEP_PTX_EMU_HOST_FAILURE_H
#define DEEPEP_PTX_EMU_HOST_FAILURE_H

#include "emu/host/state.h"

/* Records the thread's error text and returns `code`. */
__attribute__((format(printf, 4, 5)))
int host_error(struct host_world *h, uint32_t rank, int code, const char *format, ...);
/* The same with the text of h->report. */
int host_report_error(struct host_world *h, int code);
/* The same for a result of the core (not EMU_OK); `what` names the argument. */
int host_emu_error(struct host_world *h, uint32_t rank, int result, const char *what);
/* EP_OK, or what every call of `rank` returns since the run failed. */
int host_failure_code(struct host_world *h, uint32_t rank);
/* The first failure stays. */
void host_fail(struct host_world *h, enum host_failure failure, int rank);
void host_fail_by_fault(struct host_world *h);
/* What each rank does. */
void host_describe(const struct host_world *h, char *buf, size_t size);
/* For struct emu_observer: `self` is the world. */
void host_hear(void *self, const struct emu_finding *finding);

#endif
