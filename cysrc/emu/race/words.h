/* SPDX-License-Identifier: MIT
 *
 * Strong loads, stores and atomics, and fences: what is released at a word, and who acquires it. */
#ifndef DEEPEP_PTX_EMU_RACE_WORDS_H
#define DEEPEP_PTX_EMU_RACE_WORDS_H

#include "agents.h"

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

void race_fence(struct race_checker *c, const struct emu_event *e, struct race_warp *warp);

/* Whether two agents' scopes include each other. */
bool race_scopes_meet(const struct race_checker *c, const struct race_mark *a,
                      const struct race_mark *b);

#endif
