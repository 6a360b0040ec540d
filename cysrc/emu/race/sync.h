/* SPDX-License-Identifier: MIT
 *
 * What orders accesses: strong loads and stores, fences, barriers, mbarriers, bulk copies' ends,
 * begins and ends of CTAs. */
#ifndef DEEPEP_PTX_EMU_RACE_SYNC_H
#define DEEPEP_PTX_EMU_RACE_SYNC_H

#include "agents.h"

/* An event of observe.h. */
void race_hear(struct race_checker *c, const struct emu_event *e);

/* One lane's strong access of one element, at byte `at` of the block. */
struct race_touch {
    struct race_warp *warp;
    unsigned lane;
    struct race_block *block;
    unsigned at;
    uint8_t sem, scope;
    bool atomic;             /* what was released there before stays with what it stores      */
    struct race_mark mark;
};
void race_strong_load(struct race_checker *c, const struct race_touch *t);
void race_strong_store(struct race_checker *c, const struct race_touch *t);

/* Whether two agents' scopes include each other. */
bool race_scopes_meet(const struct race_checker *c, const struct race_mark *a,
                      const struct race_mark *b);

struct race_grid *race_grid_of(struct race_checker *c, struct emu_grid *grid,
                               struct race_clock *launch);
void race_cta_free(struct race_checker *c, struct emu_cta *cta);
void race_copy_free(struct emu_copy *copy);

#endif
