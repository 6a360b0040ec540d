/* SPDX-License-Identifier: MIT
 *
 * Weak visibility: bytes as they were before their last store, for those who need not see it yet.
 *
 * A store that does not come before a load may be seen by it or not, until a time that is drawn for
 * each store, each warp or copy that loads, and each element; from then on it is seen. */
#ifndef DEEPEP_PTX_EMU_RACE_OLD_H
#define DEEPEP_PTX_EMU_RACE_OLD_H

#include "agents.h"

struct race_old;

bool race_old_init(struct race_checker *c);
void race_old_destroy(struct race_checker *c);
/* Bytes [from, to) of the block that starts at `start` are about to be accessed: what a store
 * overwrites is kept, and what a load need not see is noted. */
void race_old_access(struct race_checker *c, const struct emu_access *a, struct race_block *block,
                     uint64_t start, uint64_t from, uint64_t to);
/* What was noted goes to the registers of the lanes that have loaded, or to what a copy has read. */
void race_old_load(struct race_checker *c, struct emu_exec *x, const struct emu_instr *op,
                   uint32_t lanes);
void race_old_copy(struct race_checker *c, struct emu_copy *copy, uint8_t *bytes);

#endif
