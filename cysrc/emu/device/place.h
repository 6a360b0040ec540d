/* SPDX-License-Identifier: MIT
 *
 * Grids, and where their CTAs are: each SM takes CTAs while it has room for them. */
#ifndef DEEPEP_PTX_EMU_PLACE_H
#define DEEPEP_PTX_EMU_PLACE_H

#include "world.h"

/* Places CTAs while there is room; world->deferred: one that had room was not.  False: a fault. */
bool emu_place_ctas(struct emu_world *world);
/* Takes CTAs without live warps out.  False: a fault. */
bool emu_retire_ctas(struct emu_world *world);
/* Whether a CTA is resident or waits to be. */
bool emu_any_cta(const struct emu_world *world);
void emu_free_grids(struct emu_rank *rank);

#endif
