/* SPDX-License-Identifier: MIT
 *
 * Threads of ranks, and their waits. */
#ifndef DEEPEP_PTX_EMU_HOST_RANKS_H
#define DEEPEP_PTX_EMU_HOST_RANKS_H

#include "emu/host/state.h"

/* Waits as host.h says; `w` has kind, what and what the kind needs. */
int host_wait(struct host_world *h, uint32_t rank, struct wait *w, uint64_t timeout_ns);

#endif
