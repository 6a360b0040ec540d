/* SPDX-License-Identifier: MIT
 *
 * Lists of what has an owner outside. */
#ifndef DEEPEP_PTX_EMU_HOST_OWNED_H
#define DEEPEP_PTX_EMU_HOST_OWNED_H

#include "emu/host/state.h"

void host_own(struct owned **list, struct owned *what);
void host_disown(struct owned **list, struct owned *what);
/* NULL with an error: `what` is not in the list.  name: "event"; one: "an event". */
void *host_find(struct host_world *h, uint32_t rank, struct owned *list, const void *what,
                const char *name, const char *one);

#endif
