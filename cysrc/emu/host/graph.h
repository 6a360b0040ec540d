/* SPDX-License-Identifier: MIT
 *
 * Graphs of captured work. */
#ifndef DEEPEP_PTX_EMU_HOST_GRAPH_H
#define DEEPEP_PTX_EMU_HOST_GRAPH_H

#include "emu/host/state.h"

void host_free_graphs(struct host_world *h, struct rank *r);

#endif
