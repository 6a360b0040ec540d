/* SPDX-License-Identifier: MIT
 *
 * The CPU executor's table for one rank of a world. */
#ifndef DEEPEP_PTX_EMU_EXECUTOR_H
#define DEEPEP_PTX_EMU_EXECUTOR_H

#include "emu/host/host.h"

struct emu_executor;

/* `host` must outlive it.  NULL: no memory. */
struct emu_executor *emu_executor_create(struct host_world *host, uint32_t rank);
void emu_executor_destroy(struct emu_executor *executor);
const struct ep_executor *emu_executor_table(const struct emu_executor *executor);

#endif
