/* SPDX-License-Identifier: MIT
 *
 * Weak visibility: bytes as they were before their last store, for those who need not see it yet.
 *
 * A load that a store does not come before may see it or not, until a time that is drawn for each
 * store, each warp or copy that loads, and each element; from then on it does. */
#ifndef DEEPEP_PTX_EMU_RACE_OLD_H
#define DEEPEP_PTX_EMU_RACE_OLD_H

#include "agents.h"

/* Joins the world: it goes on where somebody waits for what he does not see yet. */
bool race_old_init(struct race_checker *c, struct emu_world *world);
void race_old_destroy(struct race_checker *c);

/* A store is about to overwrite bytes [from, to) of the block that starts at `start`, which are
 * `bytes`. */
void race_old_keep(struct race_checker *c, struct race_block *block, uint64_t start, uint64_t from,
                   uint64_t to, const uint8_t *bytes);
/* A load is about to read bytes of a cell, `at` bytes behind the access's first, that the mark's
 * store wrote: what it does not see is noted. */
void race_old_see(struct race_checker *c, const struct emu_access *a, uint32_t reader,
                  const struct race_block *block, unsigned cell, uint64_t at,
                  const struct race_mark *mark, uint16_t bytes);
/* What was noted goes to the registers of lanes that have loaded, or to what a copy has read. */
void race_old_load(struct race_checker *c, struct emu_exec *x, const struct emu_instr *op);
void race_old_copy(struct race_checker *c, uint8_t *bytes);

#endif
