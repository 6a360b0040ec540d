/* SPDX-License-Identifier: MIT
 *
 * Bulk copies: what they come after, and who comes after them. */
#ifndef DEEPEP_PTX_EMU_RACE_COPIES_H
#define DEEPEP_PTX_EMU_RACE_COPIES_H

#include "agents.h"

void race_copy_issue(struct race_checker *c, const struct emu_event *e, struct race_cta *cta,
                     struct race_warp *warp);
void race_copy_end(struct race_checker *c, const struct emu_event *e);
void race_copy_free(struct emu_copy *copy);
void race_groups_waited(struct race_checker *c, const struct emu_event *e,
                        struct race_warp *warp);

/* The clock, its holder's alone, comes after an access of a copy. */
void race_copy_note(struct race_clock *clock, uint32_t slot, uint32_t time);
/* *clock, made if it is NULL, comes after the copy's end. */
void race_copy_end_for(struct race_checker *c, struct race_clock **clock,
                       const struct race_copy *copy);
/* For the history. */
void race_copy_edge(struct race_checker *c, uint32_t slot, uint32_t time, uint32_t to,
                    uint32_t to_time, uint32_t pc);

#endif
