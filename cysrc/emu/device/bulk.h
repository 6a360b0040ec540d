/* SPDX-License-Identifier: MIT
 *
 * Bulk copies, which read and write memory some time after they were issued: all those of a world
 * are one of its agents.
 *
 * A load reads global memory, writes shared memory and then delivers its bytes to an mbarrier.  A
 * store reads shared memory, and later writes global memory; it belongs to a bulk group of the lane
 * that issued it.  When each step happens is the scheduler's choice. */
#ifndef DEEPEP_PTX_EMU_BULK_H
#define DEEPEP_PTX_EMU_BULK_H

#include "exec.h"

/* cp.async.bulk: every lane of m issues a copy.  EMU_RUN_ON or EMU_RUN_FAULT. */
int emu_bulk_issue(struct emu_exec *x, const struct emu_instr *op, uint32_t m);
/* commit_group; wait_group: EMU_RUN_ON, or EMU_RUN_BLOCKED until its copies are far enough. */
void emu_bulk_commit(struct emu_exec *x, uint32_t m);
int emu_bulk_wait(struct emu_exec *x, const struct emu_instr *op, uint32_t m);

/* Whether a group in EMU_WAIT_COPIES still has to wait. */
bool emu_bulk_waits(const struct emu_warp *warp, const struct emu_group *group);
/* Copies of the group's waiting lanes that are under way. */
uint32_t emu_bulk_in_flight(const struct emu_warp *warp, const struct emu_group *group);

/* Makes the world's copies one of its agents. */
void emu_copies_join(struct emu_world *world);

/* All threads of the CTA have exited; copies that still need its shared memory are a fault (false).
 * Stores that have read it stay with the grid. */
bool emu_bulk_leave(struct emu_cta *cta);
void emu_bulk_free(struct emu_world *world, struct emu_copy *copies);

#endif
