/* SPDX-License-Identifier: MIT
 *
 * The interpreter. */
#ifndef DEEPEP_PTX_EMU_INTERP_H
#define DEEPEP_PTX_EMU_INTERP_H

#include "exec.h"

/* Sets world->run_group, the interpreter compiled for this machine's instruction set.  It executes
 * a group until one of enum emu_run happens; `limit` is the lowest pc, at or above the group's own,
 * of another ready group. */
void emu_choose_run_group(struct emu_world *world);

#endif
