/* SPDX-License-Identifier: MIT
 *
 * Who waits for marks. */
#ifndef DEEPEP_PTX_EMU_HOST_EVENT_H
#define DEEPEP_PTX_EMU_HOST_EVENT_H

#include "emu/host/state.h"

/* The host waits until `mark` is passed; takes the caller's reference.  An error in a capture. */
int host_wait_mark(struct host_world *h, uint32_t rank, struct mark *mark, const char *what);
void host_free_events(struct rank *r);

#endif
