/* SPDX-License-Identifier: MIT
 *
 * Extents that graphs of the caller's hold: a replay uses them again, whatever has died by then. */
#ifndef DEEPEP_PTX_GRAPHS_H
#define DEEPEP_PTX_GRAPHS_H

#include "core/buffer.h"

/* The running call's graph holds `block` from now on; nothing where the call is not captured. */
int  ep_graphs_keep(struct ep_buffer *b, struct ep_block *block);
/* The same for what lies at `offset` of a segment. */
int  ep_graphs_keep_at(struct ep_buffer *b, uint32_t segment, uint64_t offset);
/* The end of a closed buffer's object: now, or with the last graph that holds something of it. */
void ep_graphs_end(struct ep_buffer *b);

#endif
