/* SPDX-License-Identifier: MIT
 *
 * One group of lanes executing: what is at hand while it does, and how its turn ends. */
#ifndef DEEPEP_PTX_EMU_EXEC_H
#define DEEPEP_PTX_EMU_EXEC_H

#include "world.h"

enum emu_run {
    EMU_RUN_ON,              /* (of a part of an instruction) carry on                        */
    EMU_RUN_BUDGET,          /* the slice is over                                             */
    EMU_RUN_POLLED,          /* a poll loop went around without news: somebody else's turn    */
    EMU_RUN_LIMIT,           /* another group of the warp is at this pc                       */
    EMU_RUN_SPLIT,           /* the lanes branched apart                                      */
    EMU_RUN_BLOCKED,         /* the group waits; its state says for what                      */
    EMU_RUN_EXITED,          /* no lane is left                                               */
    EMU_RUN_FAULT            /* the world has a fault                                         */
};

struct emu_exec {
    struct emu_world *world;
    struct emu_rank *rank;
    struct emu_grid *grid;
    struct emu_kernel *kernel;
    struct emu_cta *cta;
    struct emu_warp *warp;
    struct emu_group *group;
    uint32_t pc, mask;       /* the instruction at hand and the lanes that execute it         */
    bool check_uninit;
    uint64_t executed;       /* instructions of this turn                                     */
};

static inline const struct emu_instr *emu_exec_op(const struct emu_exec *x)
{
    return &x->kernel->ops[x->pc];
}

/* Operand `at`: a register of the warp or a constant. */
static inline const void *emu_operand(const struct emu_exec *x, int32_t at)
{
    return at < 0 ? x->kernel->constants + ~at : x->warp->registers + at;
}

/* Address that `lane` accesses. */
static inline uint64_t emu_lane_address(const struct emu_exec *x, const struct emu_instr *op,
                                        unsigned lane)
{
    const void *a = emu_operand(x, op->src[0]);

    if (op->flags & EMU_F_ADDR32)
        return (uint32_t)(((const uint32_t *)a)[lane] + (uint32_t)op->imm);
    return ((const uint64_t *)a)[lane] + (uint64_t)op->imm;
}

#endif
