/* SPDX-License-Identifier: MIT
 *
 * The agent that all warps of a world are: a turn of each in a round. */
#ifndef DEEPEP_PTX_EMU_TURNS_H
#define DEEPEP_PTX_EMU_TURNS_H

#include "world.h"

void emu_warps_join(struct emu_world *world);

#endif
