/* SPDX-License-Identifier: MIT
 *
 * Begins and ends of grids, CTAs and warps. */
#ifndef DEEPEP_PTX_EMU_RACE_GRIDS_H
#define DEEPEP_PTX_EMU_RACE_GRIDS_H

#include "agents.h"

/* What is known of a grid, made where it is not there, behind `launch` (NULL: behind nothing).
 * NULL: no memory. */
struct race_grid *race_grid_of(struct race_checker *c, struct emu_grid *grid,
                               struct race_clock *launch);
void race_cta_begin(struct race_checker *c, const struct emu_event *e);
void race_cta_end(struct race_checker *c, const struct emu_event *e, struct race_cta *cta);
void race_cta_free(struct emu_cta *cta);

#endif
