/* SPDX-License-Identifier: MIT
 *
 * A warp's groups of lanes: how they split and merge, whose turn it is, what they poll. */
#ifndef DEEPEP_PTX_EMU_WARP_H
#define DEEPEP_PTX_EMU_WARP_H

#include "exec.h"

/* One turn of a warp: each ready group gets a slice.  EMU_RUN_FAULT or EMU_RUN_ON. */
int emu_warp_turn(struct emu_exec *x);

/* The lowest pc at or above `pc` of a ready group other than `group`; UINT32_MAX if none. */
uint32_t emu_group_limit(const struct emu_warp *warp, const struct emu_group *group, uint32_t pc);

/* Takes `lanes` out of `group` and makes them a ready group of their own at `pc`. */
void emu_group_split(struct emu_warp *warp, struct emu_group *group, uint32_t lanes, uint32_t pc);

/* Adds the lanes of `other` to `group`; `other` is no more. */
void emu_group_merge(struct emu_group *group, struct emu_group *other);

/* `lanes` exit: those who wait for them look again. */
void emu_lanes_exit(struct emu_exec *x, uint32_t lanes);

/* The exec's lanes do a load that may be a poll. */
void emu_note_poll(struct emu_exec *x, const struct emu_instr *op);

/* The exec's lanes compared %globaltimer (`clock`) with `limit`; with `after`, the comparison
 * turns only behind the limit. */
void emu_note_clock(struct emu_exec *x, const uint64_t *clock, const uint64_t *limit, bool after);

/* Whether the group made the same polls at least `repeats` times since the world last changed. */
bool emu_group_spins(const struct emu_warp *warp, const struct emu_group *group, uint32_t repeats);

/* The lane that elect.sync elects of `lanes`. */
uint32_t emu_leader(const struct emu_world *world, uint32_t lanes);

/* The lane of the group whose poll is the most repeated; -1 if none polls. */
int emu_polling_lane(const struct emu_warp *warp, const struct emu_group *group);

#endif
