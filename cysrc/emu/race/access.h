/* SPDX-License-Identifier: MIT
 *
 * Accesses of memory: each is compared with those before it that it conflicts with. */
#ifndef DEEPEP_PTX_EMU_RACE_ACCESS_H
#define DEEPEP_PTX_EMU_RACE_ACCESS_H

#include "agents.h"

/* An access of observe.h. */
void race_look_at(struct race_checker *c, const struct emu_access *a);

#endif
