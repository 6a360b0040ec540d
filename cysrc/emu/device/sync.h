/* SPDX-License-Identifier: MIT
 *
 * Lanes that wait for each other: `.sync` warp operations and CTA barriers. */
#ifndef DEEPEP_PTX_EMU_SYNC_H
#define DEEPEP_PTX_EMU_SYNC_H

#include "exec.h"

/* The lanes x->mask of the group execute a `.sync` operation.  EMU_RUN_ON when all members are
 * there: x->mask and the group's mask then include those who came earlier. */
int emu_sync_members(struct emu_exec *x, const struct emu_instr *op);

/* They execute bar.sync.  EMU_RUN_ON when the barrier completes with this warp. */
int emu_sync_barrier(struct emu_exec *x, const struct emu_instr *op);

#endif
