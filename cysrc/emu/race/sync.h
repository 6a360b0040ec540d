/* SPDX-License-Identifier: MIT
 *
 * Events of observe.h, and whom they are for. */
#ifndef DEEPEP_PTX_EMU_RACE_SYNC_H
#define DEEPEP_PTX_EMU_RACE_SYNC_H

#include "agents.h"

void race_hear(struct race_checker *c, const struct emu_event *e);

#endif
