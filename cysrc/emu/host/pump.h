/* SPDX-License-Identifier: MIT
 *
 * Work whose turn has come. */
#ifndef DEEPEP_PTX_EMU_HOST_PUMP_H
#define DEEPEP_PTX_EMU_HOST_PUMP_H

#include "emu/host/state.h"

/* Starts the op, a launch.  enum emu_result. */
int host_launch_now(struct host_world *h, struct host_stream *stream, struct op *op);
/* Moves every stream as far as it goes.  Returns whether anything ended or began. */
int host_pump(struct host_world *h);

#endif
